import contextlib
import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from dfpjax.training import DatasetError
from dfpjax.training.data import PADDING, Dataset, Source
from dfpjax.training.data.source import Example


def _numbered(count: int) -> list[Example]:
    """Images whose pixels all hold the image's number, counted from 1."""
    return [Example(np.full((8, 8, 1), n, np.uint8), n) for n in range(1, count + 1)]


def _dataset(train: int = 22, test: int = 22, **settings) -> Dataset:
    source = Source(
        classes=100,
        image_shape=(8, 8, 1),
        mean=np.zeros(1, np.float32),
        deviation=np.ones(1, np.float32),
        train=_numbered(train),
        test=_numbered(test),
    )
    return Dataset(source=source, **settings)


def _train(dataset: Dataset, steps: int, *, seed: int = 0, start_step: int = 0) -> list:
    """The batches of `steps` steps, each of 5 images."""
    with contextlib.closing(dataset.train_batches(5, seed=seed, start_step=start_step)) as batches:
        return list(itertools.islice(batches, steps))


def _labels(batches) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


def _assert_equal(batches, expected) -> None:
    for (images, labels), (expected_images, expected_labels) in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


def test_an_epoch_has_full_batches_without_repetition():
    dataset = _dataset()
    assert dataset.steps_per_epoch(5) == 4
    batches = _train(dataset, 12)
    assert {(images.shape, images.dtype, labels.dtype) for images, labels in batches} == {
        ((5, 8, 8, 1), np.dtype(np.float32), np.dtype(np.int32))
    }
    for images, labels in batches:
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
    epochs = [_labels(batches[first : first + 4]) for first in (0, 4, 8)]
    assert [len(set(epoch)) for epoch in epochs] == [20] * 3
    # Over several epochs, all examples occur.
    assert set(_labels(_train(dataset, 40))) == set(range(1, 23))


def test_every_seed_and_epoch_has_an_order_of_its_own():
    orders = set()
    for seed in (0, 1, 2, 2**32, 2**40 + 1):
        batches = _train(_dataset(), 12, seed=seed)
        orders |= {tuple(_labels(batches[first : first + 4])) for first in (0, 4, 8)}
    assert len(orders) == 15


def test_an_image_is_augmented_afresh_each_time():
    batches = _train(_dataset(train=5, max_shift=3), 20)
    views = {image.tobytes() for images, labels in batches for image in images[labels == 3]}
    assert len(views) > 10


def test_images_of_a_batch_are_augmented_independently():
    """All combinations of views of two neighbouring images occur."""
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    source = dataclasses.replace(_dataset().source, image_shape=(4, 4, 1), train=[Example(image, 0)] * 5)
    views = Counter()
    for images, _ in _train(Dataset(source=source, flip=True, max_shift=1), 200):
        mirrored = [bool(np.max(np.diff(view[1:3, 1:3, 0])) < 0) for view in images]
        shifted = [int(view[1, 1, 0]) // 4 for view in images]
        views.update(zip(mirrored, mirrored[1:], shifted, shifted[1:], strict=False))
    # 800 pairs of views. A view has one of three vertical shifts and one of two directions.
    assert len(views) == 36
    assert min(views.values()) > 5


@pytest.mark.parametrize("start_step", [1, 3, 4, 5, 11, 16])
def test_a_run_may_begin_at_any_step(start_step):
    dataset = _dataset(max_shift=2)
    later = _train(dataset, 6, seed=3, start_step=start_step)
    _assert_equal(later, _train(dataset, start_step + 6, seed=3)[start_step:])


def test_a_run_may_begin_where_no_run_has_come_to():
    dataset = _dataset(max_shift=2)
    (before,) = _train(dataset, 1, seed=3)
    later = _train(dataset, 4, seed=3, start_step=4 * 10**9)
    assert len(set(_labels(later))) == 20
    assert _labels(later)[:5] != _labels([before])
    _assert_equal(later[2:], _train(dataset, 2, seed=3, start_step=4 * 10**9 + 2))


@pytest.mark.slow
def test_worker_processes_change_nothing():
    alone, shared = (_dataset(max_shift=2, flip=True, image_size=6, workers=workers) for workers in (0, 2))
    expected = _train(alone, 10, seed=3)
    _assert_equal(_train(shared, 7, seed=3, start_step=3), expected[3:])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluation_sees_every_image_once_in_order_and_pads_the_last_batch(workers):
    batches = list(_dataset(workers=workers).test_batches(5))
    assert _labels(batches) == [*range(1, 23), PADDING, PADDING, PADDING]
    assert {(images.shape, images.dtype, labels.dtype) for images, labels in batches} == {
        ((5, 8, 8, 1), np.dtype(np.float32), np.dtype(np.int32))
    }
    # Padding repeats the last image, so it is no brighter or darker than real images.
    np.testing.assert_array_equal(batches[-1][0][:, 0, 0, 0], [21, 22, 22, 22, 22])


def test_evaluation_is_not_augmented():
    ((images, _),) = _dataset(max_shift=2, flip=True, min_crop_area=0.1).test_batches(22)
    ((expected, _),) = _dataset().test_batches(22)
    np.testing.assert_array_equal(images, expected)


def test_image_size_is_that_of_the_batches():
    dataset = _dataset(image_size=5)
    assert dataset.image_shape == (5, 5, 1)
    ((images, _),) = _train(dataset, 1)
    assert images.shape == (5, 5, 5, 1)
    ((images, _),) = dataset.test_batches(22)
    assert images.shape == (22, 5, 5, 1)


def test_a_split_without_a_full_batch_is_an_error():
    with pytest.raises(DatasetError, match="batch_size is 23; train_split has 22 images only"):
        _dataset().train_batches(23, seed=0)
    with pytest.raises(DatasetError, match="test_split has no images"):
        _dataset(test=0)
