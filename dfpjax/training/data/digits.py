"""scikit-learn's handwritten digits as a tensorflow-datasets builder, without TensorFlow or a download."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from .prepared import read_split
from .source import DataConfig, DatasetError, Example, Source

_WHITE = 16
_TEST_EVERY = 4  # every fourth image of each digit is for testing


class Digits(tfds.core.GeneratorBasedBuilder):
    """1797 handwritten digits: `image` uint8[8, 8, 1] with values from 0 to 16, and `label`, an integer.

    The split `test` has every fourth image of each digit, in scikit-learn's order; `train` has the others.
    So the split is stratified, and always the same, because it uses no random generator.

    Source: the test set, which scikit-learn contains, of E. Alpaydin and C. Kaynak, Optical Recognition of
    Handwritten Digits, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49.
    """

    VERSION = tfds.core.Version("1.0.0")
    # There are no downloads. Without this attribute, TFDS looks for checksums with a package that it does not
    # install.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8×8 pixels of 17 grey levels, as contained in scikit-learn.",
            # A tensor, because tfds.features.Image needs TensorFlow to encode a PNG.
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        digits = load_digits()
        in_test = _in_test(digits.target)
        return {
            "train": self._generate_examples(digits.images, digits.target, np.flatnonzero(~in_test)),
            "test": self._generate_examples(digits.images, digits.target, np.flatnonzero(in_test)),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices:
            image = images[index, :, :, None].astype(np.uint8)
            yield int(index), {"image": image, "label": int(labels[index])}


def _in_test(labels: np.ndarray) -> np.ndarray:
    """bool[N], true for test images: every fourth one of each label, in the order of `labels`."""
    in_test = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        in_test[np.flatnonzero(labels == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return in_test


def prepared_digits(data_dir: str | None = None) -> Digits:
    """A builder of the digits. If its files are missing, it writes them under `data_dir`.

    Without `data_dir`, the files are in the folder of tensorflow-datasets: `$TFDS_DATA_DIR`, or
    `~/tensorflow_datasets`. Several processes may call this function at once.

    **Raises:** `OSError` if the files are missing and cannot be written.
    """

    def builder() -> Digits:
        return Digits(data_dir=data_dir, file_format="array_record")

    digits = builder()
    try:
        # Does nothing if the files exist. Otherwise TFDS prints, wrongly, that it downloads them.
        with contextlib.redirect_stdout(io.StringIO()):
            digits.download_and_prepare()
    except OSError:
        # TFDS writes into a temporary directory and renames it. Renaming fails if another process was faster,
        # but then the files of that process are complete.
        if not digits.data_path.exists():
            raise
    # A builder reads its splits at construction, and the first one may be older than the files.
    return builder()


def digits_source(config: DataConfig) -> Source:
    """The digits, with pixels scaled to 0 to 1. If their files are missing, it writes them under
    `config.data_dir`.

    **Raises:** `DatasetError` if a split is unknown or empty, or the files cannot be written.
    """
    try:
        builder = prepared_digits(config.data_dir)
    except OSError as error:
        where = config.data_dir or "the folder of tensorflow-datasets"
        raise DatasetError(
            f"cannot write the digits into {where}: {error.filename or where}: {error.strerror or error}; set"
            " data_dir to a directory that you may write to"
        ) from error

    def in_memory(split: str) -> list[Example]:
        # Reading an example from its file takes longer than a training step of a small network.
        return list(read_split(builder, split))

    features = builder.info.features
    return Source(
        classes=features["label"].num_classes,
        image_shape=features["image"].shape,
        mean=np.zeros(1, np.float32),
        deviation=np.full(1, _WHITE, np.float32),
        train=in_memory(config.train_split),
        test=in_memory(config.test_split),
    )
