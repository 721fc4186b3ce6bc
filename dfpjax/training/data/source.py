"""Sources of datasets: examples with random access, and their properties."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

IMAGENET_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_DEVIATION = 255 * np.array([0.229, 0.224, 0.225], np.float32)
"""Mean and standard deviation of each channel (RGB) over the pixels of ImageNet's training images. All
datasets of photographs use them."""


class DatasetError(ValueError):
    """A dataset cannot be used as the configuration asks. The message says what to do."""


class DataConfig(Protocol):
    """The fields of a configuration that determine the data. `TrainConfig` documents them."""

    dataset: str
    data_dir: str | None
    train_split: str
    test_split: str
    image_size: int | None
    min_crop_area: float
    flip: bool
    max_shift: int
    workers: int


class Example(NamedTuple):
    """One image and its class."""

    # uint8[H, W, C].
    image: np.ndarray
    label: int


class Examples(Protocol):
    """The examples of a split, with random access by indices from 0. Worker processes get copies of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The two splits that a run uses, as stored, neither shuffled nor processed."""

    # Number of classes. Labels are from 0 to `classes` − 1.
    classes: int
    # Height, width and channels; None for RGB images of different sizes.
    image_shape: tuple[int, int, int] | None
    # Mean and standard deviation of the pixels in each channel, float32[C], for normalisation.
    mean: np.ndarray
    deviation: np.ndarray
    train: Examples
    test: Examples


@dataclasses.dataclass(frozen=True)
class Selection:
    """A sequence of parts of splits."""

    # For each part, the split and the indices of its examples.
    parts: Sequence[tuple[Examples, range]]

    def __len__(self) -> int:
        return sum(len(indices) for _, indices in self.parts)

    def __getitem__(self, index: int) -> Example:
        for examples, indices in self.parts:
            if index < len(indices):
                return examples[indices[index]]
            index -= len(indices)
        raise IndexError(f"there are {len(self)} examples")


def select(split: str, splits: Mapping[str, Examples]) -> Examples:
    """The examples that a TFDS split expression such as "train[:256]" selects.

    **Raises:** `DatasetError` if `split` is not a split expression, names an unknown split, or selects no
    example.
    """
    sizes = {
        name: tfds.core.SplitInfo(
            name=name, shard_lengths=[len(examples)], num_bytes=0, filename_template=None
        )
        for name, examples in splits.items()
    }
    parts = split_parts(split, sizes)
    return Selection(
        [(splits[part.splitname], range(len(splits[part.splitname]))[part.from_ : part.to]) for part in parts]
    )


def split_parts(split: str, splits: Mapping[str, tfds.core.SplitInfo]) -> Sequence[Any]:
    """The parts of splits that a TFDS split expression selects, with fields `splitname`, `from_` and `to`.

    **Raises:** `DatasetError` if `split` is not a split expression, names an unknown split, or selects no
    example.
    """
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    except (AssertionError, ValueError) as error:
        raise DatasetError(str(error).split("\n")[0]) from error
    if not any(range(splits[part.splitname].num_examples)[part.from_ : part.to] for part in parts):
        raise DatasetError(f"the split {split!r} has no images")
    return parts
