"""From a source to batches with Grain: every batch is a pure function of the seed and its number."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import grain
import numpy as np
from absl import flags

from .images import centre_box, normalize, random_box, random_flip, random_shift, resize
from .source import DatasetError, Example, Source

PADDING = -1
"""Label of an image that only fills up a batch and counts for nothing."""

Batch = tuple[np.ndarray, np.ndarray]
"""Images float32[N, H, W, C] and labels int32[N]."""

# A batch of 256 images of 224×224 pixels has 154 MB: in each process no more than one is being made while
# another waits (Grain's defaults are meant for single examples and would keep hundreds).
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)


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
        # Grain wants 32 bits; and its shuffle of seed 1 must not be that of seed 0 an epoch later.
        (seed,) = np.random.SeedSequence(seed).generate_state(1)
        batches = (
            self.source.train.seed(int(seed))
            .shuffle()
            .random_map(self._train_example)
            .batch(batch_size, drop_remainder=True)
            .repeat()
        )
        return self._read(batches[start_step:])

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every test image once, in order; the last batch is filled up with images labelled `PADDING`."""
        batches = self.source.test.map(self._test_example).batch(
            batch_size, batch_fn=partial(padded_batch, batch_size=batch_size)
        )
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
            for images, labels in itertools.islice(iterator, count):
                # Workers leave a batch in shared memory, of which there is little, and JAX may hold on to
                # what it was given for longer than we do.
                yield np.array(images), np.array(labels)

    def _train_example(self, example: Example, random: np.random.Generator) -> Example:
        image, label = example
        if self.image_size is not None:
            box = random_box(*image.shape[:2], self.min_crop_area, random)
            image = resize(image, self.image_size, box)
        if self.flip:
            image = random_flip(image, random)
        if self.max_shift > 0:
            image = random_shift(image, self.max_shift, random)
        return self._finished(image, label)

    def _test_example(self, example: Example) -> Example:
        image, label = example
        if self.image_size is not None:
            image = resize(image, self.image_size, centre_box(*image.shape[:2]))
        return self._finished(image, label)

    def _finished(self, image: np.ndarray, label: int) -> Example:
        return Example(normalize(image, self.source.mean, self.source.deviation), np.int32(label))


def padded_batch(examples: Sequence[Example], *, batch_size: int) -> Batch:
    """A batch of so many images; the last one is repeated, with the label `PADDING`, where there are fewer.

    An image of the batch, and not a black one, changes nothing for the others even where the numbers of a
    whole batch share an exponent.
    """
    missing = batch_size - len(examples)
    images, labels = zip(*examples, strict=True)
    labels = np.pad(np.array(labels, np.int32), (0, missing), constant_values=PADDING)
    return np.stack([*images, *[images[-1]] * missing]), labels
