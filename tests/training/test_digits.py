import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from dfpjax.training import DatasetError
from dfpjax.training.data import load_dataset
from dfpjax.training.data.digits import prepared_digits
from dfpjax.training.data.prepared import read_split


def _split(digits, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a split."""
    images, labels = zip(*read_split(digits, name), strict=True)
    return np.stack(images), np.array(labels)


def _rows(images: np.ndarray) -> set[bytes]:
    """Each image as a hashable value; no two of the 1797 are equal."""
    return {image.tobytes() for image in images}


def test_splits_are_disjoint_and_complete(digits):
    (train, _), (test, _) = _split(digits, "train"), _split(digits, "test")
    assert train.shape == (1352, 8, 8, 1)
    assert test.shape == (445, 8, 8, 1)
    original = _rows(load_digits().images.astype(np.uint8))
    assert len(original) == 1797
    assert _rows(train).isdisjoint(_rows(test))
    assert _rows(train) | _rows(test) == original


def test_splits_are_stratified(digits):
    train, test = (np.bincount(_split(digits, name)[1]) for name in ("train", "test"))
    np.testing.assert_array_equal(train + test, np.bincount(load_digits().target))
    np.testing.assert_array_equal(test, (train + test) // 4)


def test_labels_belong_to_images(digits):
    label_of = {image.tobytes(): label for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    for image, label in zip(*_split(digits, "test"), strict=True):
        assert label == label_of[image.astype(np.float64).tobytes()]


def test_pixels_are_scaled(digits, make_config):
    dataset = load_dataset(make_config(train_split="train", test_split="test"))
    assert (dataset.classes, dataset.image_shape) == (10, (8, 8, 1))
    assert (dataset.train_size, dataset.test_size) == (1352, 445)
    ((images, labels),) = dataset.test_batches(445)
    stored_images, stored_labels = _split(digits, "test")
    np.testing.assert_array_equal(images, stored_images / np.float32(16))
    np.testing.assert_array_equal(labels, stored_labels)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)


def test_preparing_again_gives_the_same_examples(digits, tmp_path):
    for name in ("train", "test"):
        pairs = zip(_split(digits, name), _split(prepared_digits(str(tmp_path)), name), strict=True)
        for first, second in pairs:
            np.testing.assert_array_equal(first, second)


def test_tfds_finds_the_prepared_dataset(digits, data_dir):
    source = tfds.data_source("digits", split="test", data_dir=data_dir)
    assert len(source) == 445
    assert source[0]["image"].dtype == np.uint8


@pytest.mark.slow
def test_several_processes_may_prepare_at_once_and_need_no_tensorflow(tmp_path):
    program = """
import sys
from dfpjax.training.data.digits import prepared_digits
from dfpjax.training.data.prepared import read_split
digits = prepared_digits()
print(len(read_split(digits, "train")), len(read_split(digits, "test")), "tensorflow" in sys.modules)
"""
    environment = {"TFDS_DATA_DIR": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert output == "1352 445 False\n"  # no output of a download
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_an_unwritable_directory_is_an_error(tmp_path):
    (tmp_path / "digits").write_text("a file where a directory should be")
    with pytest.raises(OSError, match="digits"):
        prepared_digits(str(tmp_path))


def test_an_unknown_split_is_an_error_that_names_the_splits(digits):
    with pytest.raises(DatasetError, match=r"'trian'.*'train', 'test'"):
        read_split(digits, "trian")
