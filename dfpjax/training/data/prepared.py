"""Datasets that tensorflow-datasets has prepared, read without TensorFlow."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from .images import decode
from .source import IMAGENET_DEVIATION, IMAGENET_MEAN, DataConfig, DatasetError, Example, Source, split_parts


@dataclasses.dataclass(frozen=True)
class PreparedExamples:
    """The examples of a TFDS data source. Its images are encoded files if `encoded`, otherwise arrays."""

    records: Sequence[dict[str, Any]]
    encoded: bool

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        image = decode(record["image"]) if self.encoded else record["image"]
        return Example(image, int(record["label"]))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))


def read_split(builder: tfds.core.DatasetBuilder, split: str) -> PreparedExamples:
    """The examples that a TFDS split expression selects from a prepared dataset with features `image` and
    `label`.

    **Raises:** `DatasetError` if the split is unknown or empty. The message names the available splits.
    """
    encoded = isinstance(builder.info.features["image"], tfds.features.Image)
    # Our decoder converts every image to RGB.
    split_parts(split, builder.info.splits)
    decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
    try:
        records = builder.as_data_source(split, decoders=decoders)
    except (AssertionError, ValueError) as error:
        raise DatasetError(str(error).split("\n")[0]) from error
    return PreparedExamples(records, encoded)


def prepared_source(name: str, config: DataConfig) -> Source:
    """A dataset of photographs that the user has prepared. `name` may include a TFDS config and version.

    **Raises:** `DatasetError` if the dataset is missing (the message names the command that prepares it), is
    not in a format that allows random access, or has no images with classes.
    """
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=config.data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise DatasetError(_not_found(name, config.data_dir)) from error
    except ValueError as error:
        raise DatasetError(f"{name!r} is not a name that tensorflow-datasets can read") from error
    features = builder.info.features
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise DatasetError(
            f"{name} is prepared as {', '.join(sorted(formats))}, which is not read in random order; convert"
            f" it with `tfds convert_format --dataset_version_dir={builder.data_path}"
            " --out_file_format=array_record`"
        )
    wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kind) for key, kind in wanted.items()):
        found = ", ".join(f"{key} ({type(features[key]).__name__})" for key in features)
        raise DatasetError(
            f"{name} is no image classification dataset: it needs the features image (Image) and label"
            f" (ClassLabel), and has {found}"
        )
    shape = features["image"].shape
    return Source(
        classes=features["label"].num_classes,
        image_shape=None if None in shape[:2] else (*shape[:2], 3),
        mean=IMAGENET_MEAN,
        deviation=IMAGENET_DEVIATION,
        train=read_split(builder, config.train_split),
        test=read_split(builder, config.test_split),
    )


def _not_found(name: str, data_dir: str | None) -> str:
    manual = " --manual_dir=FOLDER_OF_THE_DOWNLOADED_ARCHIVES" if name.startswith("imagenet2012") else ""
    place = f" --data_dir={data_dir}" if data_dir else ""
    return (
        f"{name} is not prepared in {data_dir or 'the folder of tensorflow-datasets'}; prepare it with"
        f" `tfds build {name} --file_format=array_record{manual}{place}`, which needs TensorFlow although"
        " training does not, or set data_dir"
    )
