"""From a source to batches with Grain: every batch is a pure function of the seed and its number.

What Grain passes around are whole batches, made from their numbers. Its own shuffling, mapping and batching
handle one example at a time, and for small images that takes longer than to train on them.
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
from .source import DatasetError, Examples, Source

PADDING = -1
"""Label of an image that only fills up a batch and counts for nothing."""

Batch = tuple[np.ndarray, np.ndarray]
"""Images float32[N, H, W, C] and labels int32[N]."""

# A batch of 256 images of 224×224 pixels has 154 MB: in each process no more than one is being made while
# another waits (Grain's defaults are meant for single examples and would keep hundreds).
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)

# What random numbers are for: the same seed gives other ones for each.
_SHUFFLE, _AUGMENTATION = range(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """The batches of a source.

    **Raises:** `DatasetError` if a split is empty, or if images that differ in size are to stay as they are.
    """

    source: Source
    # Height and width of the images in a batch, cut out of the source's and scaled; None takes them whole.
    image_size: int | None = None
    # Cut out of a training image is at least this share of its area.
    min_crop_area: float = 1.0
    # Training images are mirrored half of the time.
    flip: bool = False
    # Training images are moved by up to so many pixels along each axis.
    max_shift: int = 0
    # Processes that make batches; with 0 a thread of this one does.
    workers: int = 0

    def __post_init__(self) -> None:
        for split, size in (("train_split", self.train_size), ("test_split", self.test_size)):
            if size == 0:
                raise DatasetError(f"{split} has no images")
        if self.image_size is None and self.source.image_shape is None:
            raise DatasetError("the images of this dataset differ in size: image_size must be given")

    @property
    def classes(self) -> int:
        """Labels are from 0 to below this."""
        return self.source.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images in a batch."""
        channels = 3 if self.source.image_shape is None else self.source.image_shape[-1]
        return self.source.image_shape if self.image_size is None else (self.image_size,) * 2 + (channels,)

    @property
    def train_size(self) -> int:
        """Images in the training split."""
        return len(self.source.train)

    @property
    def test_size(self) -> int:
        """Images in the test split."""
        return len(self.source.test)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full training batches in an epoch.

        **Raises:** `DatasetError` if there is none.
        """
        if batch_size > self.train_size:
            raise DatasetError(f"batch_size is {batch_size}; train_split has {self.train_size} images only")
        return self.train_size // batch_size

    def train_batches(self, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Batch]:
        """Shuffled and augmented batches without end, from that of step `start_step` on.

        An epoch has `steps_per_epoch` batches, all of them full: the few images left over, others
        in each epoch, are not seen in this one. The batch of a step depends on `seed` and the step alone:
        not on the number of workers, and not on where a run began.

        To end the worker processes, close the iterator, which is a generator.

        **Raises:** `DatasetError` if the split has no full batch.
        """
        self.steps_per_epoch(batch_size)  # for its error
        steps = grain.MapDataset.range(start_step, sys.maxsize)
        return self._read(steps.map(functools.partial(self._train_batch, batch_size=batch_size, seed=seed)))

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every test image once, in order; the last batch is filled up with images labelled `PADDING`."""
        numbers = grain.MapDataset.range(-(-self.test_size // batch_size))
        batches = numbers.map(functools.partial(self._test_batch, batch_size=batch_size))
        # Grain 0.2.18 leaves the last batch of a worker that comes to its end in shared memory for good.
        return self._read(batches.repeat(), count=len(batches))

    def _read(self, batches: grain.MapDataset, count: int | None = None) -> Iterator[Batch]:
        dataset = batches.to_iter_dataset(_READ)
        if self.workers > 0:
            # Grain looks at flags of its own when it starts a process: wherever absl's parser has not run,
            # as in a test or a notebook, they have their default values.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self.workers)
            dataset = dataset.mp_prefetch(options)
        with contextlib.closing(iter(dataset)) as iterator:
            for images, labels in itertools.islice(_started(iterator), count):
                # Workers leave a batch in shared memory, of which there is little, and JAX may hold on to
                # what it was given for longer than we do.
                yield np.array(images), np.array(labels)

    def _train_batch(self, step: int, *, batch_size: int, seed: int) -> Batch:
        epoch, number = divmod(step, self.steps_per_epoch(batch_size))
        order = _order(self.train_size, seed, epoch)
        images, labels = _read_examples(self.source.train, order[number * batch_size :][:batch_size])
        random = _generator(seed, _AUGMENTATION, step)
        if self.image_size is not None:
            boxes = [random_box(*image.shape[:2], self.min_crop_area, random) for image in images]
            images = self._resized(images, boxes)
        stacked = np.stack(images)
        if self.flip:
            stacked = random_flip(stacked, random)
        if self.max_shift > 0:
            stacked = random_shift(stacked, self.max_shift, random)
        return self._normalized(stacked), labels

    def _test_batch(self, number: int, *, batch_size: int) -> Batch:
        first = number * batch_size
        indices = np.arange(first, min(first + batch_size, self.test_size))
        images, labels = _read_examples(self.source.test, indices)
        if self.image_size is not None:
            images = self._resized(images, [centre_box(*image.shape[:2]) for image in images])
        return padded_batch(self._normalized(np.stack(images)), labels, batch_size)

    def _resized(self, images: Sequence[np.ndarray], boxes: Sequence[Box]) -> list[np.ndarray]:
        return [resize(image, self.image_size, box) for image, box in zip(images, boxes, strict=True)]

    def _normalized(self, images: np.ndarray) -> np.ndarray:
        return normalize(images, self.source.mean, self.source.deviation)


def _started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same; worker processes, which start before the first one, leave Ctrl-C to this process."""
    interrupt = {signal.SIGINT}
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)  # processes inherit it
    try:
        first = next(batches)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
    yield first
    yield from batches


def padded_batch(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Batch:
    """A batch of so many images; the last one is repeated, with the label `PADDING`, where there are fewer.

    An image of the batch, and not a black one, changes nothing for the others even where the numbers of a
    whole batch share an exponent.
    """
    missing = (0, batch_size - len(images))
    return (
        np.pad(images, (missing, (0, 0), (0, 0), (0, 0)), mode="edge"),
        np.pad(labels, missing, constant_values=PADDING),
    )


def _read_examples(examples: Examples, indices: np.ndarray) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Images, which may differ in size, and labels int32[N]."""
    images, labels = zip(*(examples[index] for index in indices.tolist()), strict=True)
    return images, np.array(labels, np.int32)


@functools.lru_cache(maxsize=1)  # all batches of an epoch need it
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers of all images, int64[size], in the order in which an epoch sees them."""
    return _generator(seed, _SHUFFLE, epoch).permutation(size)


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    """One for each of its arguments' values, none of which has to do with another."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, number)))
