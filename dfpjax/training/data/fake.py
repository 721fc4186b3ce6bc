"""Synthetic images in the number and size of ImageNet's, to try or time a model without data."""

import dataclasses

import numpy as np

from .source import IMAGENET_DEVIATION, IMAGENET_MEAN, DataConfig, Example, Source, select

_CLASSES = 1000
_SIZE = 224
# Side, in pixels, of the coloured squares of a class. Half of the signal is noise.
_SQUARE = 32


@dataclasses.dataclass(frozen=True)
class FakeExamples:
    """Example `i` has class `i % 1000`. Its image is the coloured squares of the class plus noise."""

    # Number of the split, which makes its noise different.
    split: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        label = int(index) % _CLASSES
        of_class = np.random.default_rng(label)
        squares = of_class.integers(128, size=(_SIZE // _SQUARE, _SIZE // _SQUARE, 3), dtype=np.uint8)
        of_example = np.random.default_rng((self.split, int(index)))
        noise = of_example.integers(128, size=(_SIZE, _SIZE, 3), dtype=np.uint8)
        return Example(squares.repeat(_SQUARE, axis=0).repeat(_SQUARE, axis=1) + noise, label)


def fake_source(config: DataConfig) -> Source:
    """Splits `train` and `validation` with ImageNet's sizes and number of classes.

    **Raises:** `DatasetError` if a split is unknown or empty.
    """
    splits = {"train": FakeExamples(0, 1_281_167), "validation": FakeExamples(1, 50_000)}
    return Source(
        classes=_CLASSES,
        image_shape=(_SIZE, _SIZE, 3),
        mean=IMAGENET_MEAN,
        deviation=IMAGENET_DEVIATION,
        train=select(config.train_split, splits),
        test=select(config.test_split, splits),
    )
