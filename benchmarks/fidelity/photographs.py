"""Photographs that come with Python packages, as batches to train on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SCIKIT_IMAGE = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
"""Colour photographs that its package contains; it would download others."""


def photographs() -> dict[str, np.ndarray]:
    """uint8 `[H, W, 3]` photographs by name: scikit-learn's two, and scikit-image's where it is installed."""
    from sklearn.datasets import load_sample_images

    samples = load_sample_images()
    found = {Path(name).stem: image for name, image in zip(samples.filenames, samples.images, strict=True)}
    try:
        import skimage.data
    except ModuleNotFoundError:
        return found
    return found | {name: getattr(skimage.data, name)() for name in SCIKIT_IMAGE}


MEAN, DEVIATION = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
"""Per channel, over ImageNet's pixels; normalizes images."""


def batches(photos: list[np.ndarray], *, batch: int, size: int, seed: int = 0) -> Iterator:
    """Endless batches of random crops, `float32[batch, size, size, 3]`, and which photograph each is from.

    A crop has 8 to 100 % of the area and is mirrored half of the time, as ResNet-50's usual augmentation
    has it.
    """
    rng = np.random.default_rng(seed)

    def crop(photo):
        height, width, _ = photo.shape
        side = min(height, width, np.sqrt(rng.uniform(0.08, 1) * height * width))
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        box = (left, top, left + side, top + side)
        image = Image.fromarray(photo).resize((size, size), Image.Resampling.BILINEAR, box)
        pixels = (np.asarray(image, np.float32) / 255 - MEAN) / DEVIATION
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    while True:
        labels = rng.integers(len(photos), size=batch)
        yield np.stack([crop(photos[label]) for label in labels]), labels
