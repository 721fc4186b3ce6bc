"""Batches from a source, with Grain. Every batch is a pure function of the seed and its number.

Grain's elements are numbers, which one function maps to whole batches. Grain's own shuffling, mapping and
batching handle one example at a time, which for small images takes longer than training on them.
"""

import contextlib
import dataclasses
import functools
import itertools
import signal
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from .images import Box, centre_box, normalize, random_box, random_flip, random_shift, resize
from .rows import Rows
from .source import DatasetError, Examples, Source

PADDING = -1
"""Label of an image that only pads a batch. Such images do not count."""

Batch = tuple[np.ndarray, np.ndarray]
"""Images float32[N, H, W, C] and labels int32[N]."""

# A batch of 256 images of 224×224 pixels takes 154 MB. So each process makes one batch while at most one
# other waits. (Grain's defaults are meant for single examples and would keep hundreds.)
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)

# Purposes of random numbers. The same seed gives different numbers for each purpose.
_SHUFFLE, _AUGMENTATION, _CROP = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """The batches of a source.

    **Raises:** `DatasetError` if a split is empty, or if the source's images differ in size and `image_size`
    is None.
    """

    source: Source
    # Height and width of the images in a batch, which are cropped from the source's images and scaled. None
    # leaves images unchanged.
    image_size: int | None = None
    # Minimum share of a training image's area in a crop.
    min_crop_area: float = 1.0
    # Mirror training images with probability 1/2.
    flip: bool = False
    # Maximum shift of training images along each axis, in pixels.
    max_shift: int = 0
    # Number of processes that make batches; 0 for a thread of this process.
    workers: int = 0

    def __post_init__(self) -> None:
        for split, size in (("train_split", self.train_size), ("test_split", self.test_size)):
            if size == 0:
                raise DatasetError(f"{split} has no images")
        if self.image_size is None and self.source.image_shape is None:
            raise DatasetError("the images of this dataset differ in size: image_size must be given")

    @property
    def classes(self) -> int:
        """Number of classes. Labels are from 0 to `classes` − 1."""
        return self.source.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images in a batch."""
        channels = 3 if self.source.image_shape is None else self.source.image_shape[-1]
        return self.source.image_shape if self.image_size is None else (self.image_size,) * 2 + (channels,)

    @property
    def train_size(self) -> int:
        """Number of images in the training split."""
        return len(self.source.train)

    @property
    def test_size(self) -> int:
        """Number of images in the test split."""
        return len(self.source.test)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of full training batches in an epoch.

        **Raises:** `DatasetError` if the training split has fewer images than a batch.
        """
        if batch_size > self.train_size:
            raise DatasetError(f"batch_size is {batch_size}; train_split has {self.train_size} images only")
        return self.train_size // batch_size

    def train_batches(
        self, batch_size: int, *, seed: int, start_step: int = 0, rows: Rows | None = None
    ) -> Iterator[Batch]:
        """An endless iterator over shuffled and augmented batches, starting with step `start_step`.

        An epoch has `steps_per_epoch` full batches. It leaves out the few remaining images, which differ from
        epoch to epoch. The batch of a step depends only on `seed` and the step, not on the number of workers
        or the step at which a run began. With `rows`, only these rows of every batch are read.

        To end the worker processes, close the iterator, which is a generator.

        **Raises:** `DatasetError` if the training split has fewer images than a batch.
        """
        self.steps_per_epoch(batch_size)  # raises the error
        rows = Rows.all(batch_size) if rows is None else rows
        steps = grain.MapDataset.range(start_step, sys.maxsize)
        return self._read(steps.map(functools.partial(self._train_batch, rows=rows, seed=seed)))

    def test_batches(self, batch_size: int, *, rows: Rows | None = None) -> Iterator[Batch]:
        """All test images once, in order. Images with the label `PADDING` fill up the last batch.

        With `rows`, only these rows of every batch are read.
        """
        rows = Rows.all(batch_size) if rows is None else rows
        numbers = grain.MapDataset.range(-(-self.test_size // batch_size))
        batches = numbers.map(functools.partial(self._test_batch, rows=rows))
        # Grain 0.2.18 never frees the shared memory of a worker's last batch, so no worker may reach its end.
        return self._read(batches.repeat(), count=len(batches))

    def _read(self, batches: grain.MapDataset, count: int | None = None) -> Iterator[Batch]:
        dataset = batches.to_iter_dataset(_READ)
        if self.workers > 0:
            # Grain reads its flags when it starts a process. If absl's parser has not run, as in a test or a
            # notebook, this gives the flags their default values.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self.workers)
            dataset = dataset.mp_prefetch(options)
        with contextlib.closing(iter(dataset)) as iterator:
            for images, labels in itertools.islice(_started(iterator), count):
                # Workers put batches into shared memory, which is scarce, and JAX may keep an array that it
                # was given longer than we do. So copy the batch.
                yield np.array(images), np.array(labels)

    def _train_batch(self, step: int, *, rows: Rows, seed: int) -> Batch:
        epoch, number = divmod(step, self.steps_per_epoch(rows.batch_size))
        order = _order(self.train_size, seed, epoch)
        images, labels = _read_examples(self.source.train, order[number * rows.batch_size + rows.indices])
        random = _generator(seed, _AUGMENTATION, step)
        if self.image_size is not None:
            # How many random numbers a box takes depends on the image, so each image has its own.
            generators = (_generator(seed, _CROP, step * rows.batch_size + row) for row in rows.indices)
            boxes = [
                random_box(*image.shape[:2], self.min_crop_area, own)
                for image, own in zip(images, generators, strict=True)
            ]
            images = self._resized(images, boxes)
        stacked = np.stack(images)
        if self.flip:
            stacked = random_flip(stacked, random, rows)
        if self.max_shift > 0:
            stacked = random_shift(stacked, self.max_shift, random, rows)
        return self._normalized(stacked), labels

    def _test_batch(self, number: int, *, rows: Rows) -> Batch:
        indices = number * rows.batch_size + rows.indices
        # Rows that all lie beyond the last image are copies of it.
        count = np.count_nonzero(indices < self.test_size)
        indices = np.minimum(indices[: max(count, 1)], self.test_size - 1)
        images, labels = _read_examples(self.source.test, indices)
        if self.image_size is not None:
            images = self._resized(images, [centre_box(*image.shape[:2]) for image in images])
        return padded_batch(self._normalized(np.stack(images)), labels[:count], len(rows.indices))

    def _resized(self, images: Sequence[np.ndarray], boxes: Sequence[Box]) -> list[np.ndarray]:
        return [resize(image, self.image_size, box) for image, box in zip(images, boxes, strict=True)]

    def _normalized(self, images: np.ndarray) -> np.ndarray:
        return normalize(images, self.source.mean, self.source.deviation)


def _started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches. Worker processes start with the first one, and ignore Ctrl-C, which this process
    handles."""
    interrupt = {signal.SIGINT}
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)  # processes inherit the mask
    try:
        first = next(batches)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
    yield first
    yield from batches


def padded_batch(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Batch:
    """A batch of `batch_size` images, filled up with copies of the last one that have the label `PADDING`, as
    has an image without a label.

    Unlike a black image, a copy of one in the batch has no effect on the others, even if all numbers of a
    batch share an exponent.
    """
    return (
        np.pad(images, ((0, batch_size - len(images)), (0, 0), (0, 0), (0, 0)), mode="edge"),
        np.pad(labels, (0, batch_size - len(labels)), constant_values=PADDING),
    )


def _read_examples(examples: Examples, indices: np.ndarray) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Images, which may differ in size, and labels int32[N]."""
    images, labels = zip(*(examples[index] for index in indices.tolist()), strict=True)
    return images, np.array(labels, np.int32)


@functools.lru_cache(maxsize=1)  # all batches of an epoch use the same order
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Indices of all images, int64[size], in the order of an epoch."""
    return _generator(seed, _SHUFFLE, epoch).permutation(size)


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    """A random generator for these arguments, independent of those for all other arguments."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, number)))
