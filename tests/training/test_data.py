import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from dfpjax.training.data import Split, eval_batches, load_split, prepared_digits, train_batches


def _rows(split: Split) -> set[bytes]:
    """Each image as a hashable value; no two of the 1797 are equal."""
    return {image.tobytes() for image in split.images}


def test_splits_are_disjoint_and_complete(digits):
    train, test = load_split(digits, "train"), load_split(digits, "test")
    assert train.images.shape == (1352, 8, 8, 1)
    assert test.images.shape == (445, 8, 8, 1)
    original = {image.astype(np.float32).tobytes() for image in load_digits().images / 16}
    assert len(original) == 1797
    assert _rows(train).isdisjoint(_rows(test))
    assert _rows(train) | _rows(test) == original


def test_splits_are_stratified(digits):
    train, test = (np.bincount(load_split(digits, name).labels) for name in ("train", "test"))
    np.testing.assert_array_equal(train + test, np.bincount(load_digits().target))
    np.testing.assert_array_equal(test, (train + test) // 4)


def test_labels_belong_to_images(digits):
    label_of = {image.tobytes(): label for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    test = load_split(digits, "test")
    for image, label in zip(test.images, test.labels, strict=True):
        assert label == label_of[(image * 16).astype(np.float64).tobytes()]


def test_pixels_are_scaled(digits):
    train = load_split(digits, "train")
    assert train.images.dtype == np.float32
    assert train.labels.dtype == np.int32
    assert (train.images.min(), train.images.max()) == (0, 1)


def test_preparing_again_gives_the_same_examples(digits, tmp_path):
    for name in ("train", "test"):
        first, second = load_split(digits, name), load_split(prepared_digits(str(tmp_path)), name)
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)


def test_tfds_finds_the_prepared_dataset(digits, data_dir):
    source = tfds.data_source("digits", split="test", data_dir=data_dir)
    assert len(source) == 445
    assert source[0]["image"].dtype == np.uint8


def test_several_processes_may_prepare_at_once_and_need_no_tensorflow(tmp_path):
    program = """
import sys
from dfpjax.training.data import load_split, prepared_digits
digits = prepared_digits()
print(len(load_split(digits, "train")), len(load_split(digits, "test")), "tensorflow" in sys.modules)
"""
    environment = {"TFDS_DATA_DIR": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert output.endswith("1352 445 False\n")
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_an_unwritable_directory_is_an_error(tmp_path):
    (tmp_path / "digits").write_text("a file where a directory should be")
    with pytest.raises(OSError, match="digits"):
        prepared_digits(str(tmp_path))


def test_an_unknown_split_is_an_error_that_names_the_splits(digits):
    with pytest.raises(ValueError, match=r"'trian'.*'train', 'test'"):
        load_split(digits, "trian")


def _numbered(count: int) -> Split:
    """Images whose every pixel is the image's number, counted from 1."""
    numbers = np.arange(1, count + 1)
    images = np.broadcast_to(numbers[:, None, None, None], (count, 8, 8, 1)).astype(np.float32)
    return Split(images=images, labels=numbers.astype(np.int32))


def _labels(batches) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


def test_an_epoch_has_full_batches_without_repetition():
    batches = list(train_batches(_numbered(22), batch_size=5, seed=0, epoch=1))
    assert [images.shape for images, _ in batches] == [(5, 8, 8, 1)] * 4
    assert len(set(_labels(batches))) == 20
    for images, labels in batches:
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


def test_batches_depend_on_seed_and_epoch_alone():
    def epoch(seed: int, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(train_batches(_numbered(20), batch_size=5, seed=seed, epoch=epoch, max_shift=1))

    for (images, labels), (images_again, labels_again) in zip(epoch(3, 7), epoch(3, 7), strict=True):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(labels, labels_again)
    orders = {tuple(_labels(epoch(seed, number))) for seed in range(3) for number in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("max_shift", [0, 1, 2])
def test_shifts_cover_their_range_and_no_more(max_shift):
    images = np.zeros((500, 8, 8, 1), np.float32)
    images[:, 3, 4] = 1
    split = Split(images=images, labels=np.zeros(500, np.int32))
    ((shifted, _),) = train_batches(split, batch_size=500, seed=0, epoch=1, max_shift=max_shift)
    assert shifted.dtype == np.float32
    _, row, column, _ = np.nonzero(shifted)
    reach = range(-max_shift, max_shift + 1)
    assert {*zip(row - 3, column - 4, strict=True)} == {(down, right) for down in reach for right in reach}


def test_evaluation_sees_every_image_once_in_order():
    batches = list(eval_batches(_numbered(22), batch_size=5))
    assert _labels(batches) == list(range(1, 23))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 2]
