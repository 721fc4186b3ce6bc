"""Datasets and batches. `DATASETS` maps dataset names in configurations to functions that make a source."""

from collections.abc import Callable
from functools import partial

from .digits import digits_source
from .fake import fake_source
from .folder import folder_source
from .pipeline import PADDING as PADDING
from .pipeline import Batch as Batch
from .pipeline import Dataset as Dataset
from .prepared import prepared_source
from .rows import Rows as Rows
from .source import DataConfig as DataConfig
from .source import DatasetError as DatasetError
from .source import Example as Example
from .source import Examples as Examples
from .source import Source as Source

DATASETS: dict[str, Callable[[DataConfig], Source]] = {
    "digits": digits_source,
    "fake_imagenet": fake_source,
    "image_folder": folder_source,
    "imagenet2012": partial(prepared_source, "imagenet2012"),
}

# Prefix of the names of other datasets, which tensorflow-datasets has prepared.
_PREPARED = "tfds:"
DATASET_NAMES = (*DATASETS, f"{_PREPARED}NAME")


def is_dataset(name: str) -> bool:
    """Whether a configuration may use this name. `DATASET_NAMES` lists the names, with a placeholder."""
    return name in DATASETS or (name.startswith(_PREPARED) and name != _PREPARED)


def load_dataset(config: DataConfig) -> Dataset:
    """The dataset that a configuration names, with the configuration's augmentation.

    **Raises:** `DatasetError` if the dataset is missing or cannot be used as `config` asks. The message says
    what to do.
    """
    if config.dataset.startswith(_PREPARED):
        source = prepared_source(config.dataset.removeprefix(_PREPARED), config)
    else:
        source = DATASETS[config.dataset](config)
    return Dataset(
        source=source,
        image_size=config.image_size,
        min_crop_area=config.min_crop_area,
        flip=config.flip,
        max_shift=config.max_shift,
        workers=config.workers,
    )
