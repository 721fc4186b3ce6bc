from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest
from tensorflow_datasets.core import DatasetBuilder

from dfpjax.training import TrainConfig
from dfpjax.training.data.digits import prepared_digits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory for datasets, empty at first."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def digits(data_dir: str) -> DatasetBuilder:
    return prepared_digits(data_dir)


@pytest.fixture
def make_config(data_dir: str) -> Callable[..., TrainConfig]:
    """A function that changes fields of a default configuration small enough to train in a second or two."""

    def make(**changes: object) -> TrainConfig:
        small = {
            "train_split": "train[:128]",
            "test_split": "test[:50]",
            "epochs": 2,
            "batch_size": 32,
            "mesh": (1,),
        }
        values = run_path(str(ROOT / "configs" / "default.py"))["get_config"]().to_dict()
        return TrainConfig.from_dict(values | small | {"data_dir": data_dir} | changes)

    return make
