"""The digits in three parts: to train on, to choose recipes by, and to test on once."""

import functools
import tempfile

import numpy as np

from dfpjax.training.data.digits import prepared_digits
from dfpjax.training.data.prepared import read_split

TRAIN, VALIDATION, TEST = "train[:1152]", "train[1152:]", "test"
"""1152, 200 and 445 images; the first two in the random order in which tensorflow-datasets writes them."""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def data_dir() -> str:
    """Where the prepared digits are kept while the program runs."""
    return _folder().name


@functools.cache
def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `float32[N, 8, 8, 1]` from -1 to 1, and their labels `int[N]`."""
    examples = list(read_split(prepared_digits(data_dir()), split))
    images = np.stack([example.image for example in examples]).astype(np.float32)
    return images / 8 - 1, np.array([example.label for example in examples])
