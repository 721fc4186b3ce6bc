"""Decoding, cropping, augmentation and normalisation of images uint8[H, W, C], with NumPy and Pillow only."""

import io

import numpy as np
from PIL import Image

from .rows import Rows

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edges of a part of an image, in pixels."""

# Range of the aspect ratios of random crops, and number of attempts to find a crop that fits. ResNet and its
# successors use the same values.
_ASPECT_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
# Share of the shorter side that evaluation uses: 224 of 256 pixels.
_CENTRE = 224 / 256


def decode(encoded: bytes) -> np.ndarray:
    """The image in the bytes of a JPEG, a PNG or another file that Pillow reads, as uint8[H, W, 3].

    Like other readers of ImageNet, it converts grey images, palettes and CMYK to RGB, drops transparency, and
    ignores an orientation in the metadata.

    **Raises:** `OSError` if `encoded` is not a complete image.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def resize(image: np.ndarray, size: int, box: Box) -> np.ndarray:
    """The part of an image in `box`, scaled to uint8[size, size, C] bilinearly with antialiasing."""
    channels = image.shape[-1]
    scaled = Image.fromarray(image[..., 0] if channels == 1 else image).resize(
        (size, size), Image.Resampling.BILINEAR, box
    )
    return np.asarray(scaled).reshape(size, size, channels)


def centre_box(height: int, width: int) -> Box:
    """The central square whose side is 224/256 of the image's shorter side."""
    side = _CENTRE * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(height: int, width: int, min_area: float, random: np.random.Generator) -> Box:
    """A random part of an image, with a share from `min_area` to 1 of its area and an aspect ratio from 3:4
    to 4:3.

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
    # Most crops do not fit a panorama. Take the largest central crop with an allowed aspect ratio.
    narrowest, widest = _ASPECT_RATIOS
    box_width, box_height = min(width, round(height * widest)), min(height, round(width / narrowest))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def random_shift(
    images: np.ndarray, most: int, random: np.random.Generator, rows: Rows | None = None
) -> np.ndarray:
    """Images [N, H, W, C], each shifted by at most `most` pixels along each axis and padded with black.

    With `rows`, the images are these rows of a batch, and are shifted as they are in the whole batch.
    """
    rows = Rows.all(len(images)) if rows is None else rows
    height, width = images.shape[1:3]
    tops, lefts = random.integers(0, 2 * most, size=(2, rows.batch_size), endpoint=True)[:, rows.indices]
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    parts = zip(padded, tops, lefts, strict=True)
    return np.stack([image[top : top + height, left : left + width] for image, top, left in parts])


def random_flip(images: np.ndarray, random: np.random.Generator, rows: Rows | None = None) -> np.ndarray:
    """Images [N, H, W, C], each mirrored with probability 1/2. `rows` as for `random_shift`."""
    rows = Rows.all(len(images)) if rows is None else rows
    mirrored = random.random(rows.batch_size)[rows.indices] < 0.5
    return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def normalize(images: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """(images − mean) / deviation, as float32[..., C]. `mean` and `deviation` are float32[C], per channel."""
    normal = images.astype(np.float32)
    # In place, because a batch of photographs takes a hundred megabytes.
    normal -= mean
    normal /= deviation
    return normal
