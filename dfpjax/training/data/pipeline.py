"""From a prepared dataset to batches: a pure function of the seed and the epoch, all in NumPy."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A whole split in memory."""

    # Pixels between 0 and 1, float32[N, H, W, C].
    images: np.ndarray
    # Classes, int32[N].
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def load_split(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    """Reads a split, given as any TFDS split expression, of a prepared dataset.

    The dataset has the features `image` and `label`, and its metadata say which pixel value is `white`.

    **Raises:** `ValueError` for an unknown split; the message names the splits there are.
    """
    examples = list(builder.as_data_source(split))
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples], np.int32)
    return Split(images=images.astype(np.float32) / np.float32(builder.info.metadata["white"]), labels=labels)


def train_batches(
    split: Split, *, batch_size: int, seed: int, epoch: int, max_shift: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch of shuffled batches, each image moved by up to `max_shift` pixels along both axes.

    Yields images `float32[batch_size, H, W, C]` and labels `int32[batch_size]`. Every batch is full: the few
    images left over, others in each epoch, are not seen in this one. Order and shifts depend on `seed` and
    `epoch` alone, so an epoch can be repeated without the ones before it.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(split))
    for start in range(0, len(split) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        yield _shifted(split.images[chosen], max_shift, random), split.labels[chosen]


def eval_batches(split: Split, *, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every image once, in order; the last batch holds what is left and may be smaller."""
    for start in range(0, len(split), batch_size):
        yield split.images[start : start + batch_size], split.labels[start : start + batch_size]


def _shifted(images: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """Each image moved by its own random offset of at most `most` pixels on each axis; black moves in."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    top, left = random.integers(0, 2 * most, size=(2, count, 1), endpoint=True)
    rows, columns = top + np.arange(height), left + np.arange(width)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
