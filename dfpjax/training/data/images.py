"""Images as uint8[H, W, C]: decoding, cropping, augmentation, normalisation; NumPy and Pillow only."""

import io

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a part of an image, in pixels."""

# What random crops look like, and how often one that fits is looked for: as for ResNet and its successors.
_ASPECT_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
# The share of the shorter side that evaluation looks at: 224 of 256 pixels.
_CENTRE = 224 / 256


def decode(encoded: bytes) -> np.ndarray:
    """The image in a JPEG, PNG or any other file that Pillow reads, uint8[H, W, 3].

    Grey images, palettes and CMYK become RGB, transparency is dropped, and an orientation in the metadata is
    ignored, as it is wherever ImageNet is read.

    **Raises:** `OSError` if this is no image, or not all of it.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def resize(image: np.ndarray, size: int, box: Box) -> np.ndarray:
    """The part of an image within `box`, scaled to uint8[size, size, C], bilinear and antialiased."""
    channels = image.shape[-1]
    scaled = Image.fromarray(image[..., 0] if channels == 1 else image).resize(
        (size, size), Image.Resampling.BILINEAR, box
    )
    return np.asarray(scaled).reshape(size, size, channels)


def centre_box(height: int, width: int) -> Box:
    """The central square that is left when the shorter side is scaled to 256 and 224 of it are cut out."""
    side = _CENTRE * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(height: int, width: int, min_area: float, random: np.random.Generator) -> Box:
    """A random part of an image: `min_area` to all of its area, 3:4 to 4:3 in shape.

    Source: C. Szegedy et al., Going Deeper with Convolutions, https://arxiv.org/abs/1409.4842, section 6.
    """
    for _ in range(_ATTEMPTS):
        area = random.uniform(min_area, 1) * height * width
        ratio = np.exp(random.uniform(*np.log(_ASPECT_RATIOS)))
        box_width, box_height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(random.integers(width - box_width, endpoint=True))
            top = int(random.integers(height - box_height, endpoint=True))
            return left, top, left + box_width, top + box_height
    # Most parts of a panorama do not fit: the largest part in its middle that has one of the shapes.
    narrowest, widest = _ASPECT_RATIOS
    box_width, box_height = min(width, round(height * widest)), min(height, round(width / narrowest))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def random_shift(images: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """Images [N, H, W, C], each moved by at most `most` pixels along each axis; black moves in."""
    count, height, width, _ = images.shape
    tops, lefts = random.integers(0, 2 * most, size=(2, count), endpoint=True)
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    parts = zip(padded, tops, lefts, strict=True)
    return np.stack([image[top : top + height, left : left + width] for image, top, left in parts])


def random_flip(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images [N, H, W, C], of which each is, half of the time, its mirror image."""
    mirrored = random.random(len(images)) < 0.5
    return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def normalize(images: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """float32[..., C] with the channels' mean subtracted and divided by their deviation, float32[C]."""
    normal = images.astype(np.float32)
    # In place: a batch of photographs takes a hundred megabytes.
    normal -= mean
    normal /= deviation
    return normal
