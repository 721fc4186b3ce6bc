"""Images in folders: `DIR/SPLIT/CLASS/*.jpg`."""

import dataclasses
import os
from pathlib import Path

from .images import decode
from .source import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    DataConfig,
    DatasetError,
    Example,
    Source,
    select,
)

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Possible names of the test split.
_TEST_NAMES = ("val", "validation", "test")
_LAYOUT = "image_folder expects data_dir to hold train/CLASS/*.jpg and val/CLASS/*.jpg"


@dataclasses.dataclass(frozen=True)
class FolderExamples:
    """Image files, which are read on access, and their labels."""

    files: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        try:
            image = decode(Path(self.files[index]).read_bytes())
        except OSError as error:
            raise OSError(f"cannot read {self.files[index]}: {error}") from error
        return Example(image, self.labels[index])


def folder_source(config: DataConfig) -> Source:
    """`read_folder` with the folder and the splits of a configuration.

    **Raises:** `DatasetError` if `config.data_dir` is None, and where `read_folder` does.
    """
    if config.data_dir is None:
        raise DatasetError(f"data_dir is None; {_LAYOUT}")
    return read_folder(config.data_dir, train_split=config.train_split, test_split=config.test_split)


def read_folder(folder: str | os.PathLike[str], *, train_split: str, test_split: str) -> Source:
    """The images in a folder. The classes are the subfolders of `train`, in the order of their names.

    `train_split` and `test_split` are TFDS split expressions with the names of folders. The test folder may
    be called `val`, `validation` or `test`. If only one of these exists, all three names refer to it.

    **Raises:** `DatasetError` if there is no such folder, if a class of another split is missing in `train`,
    or if a split is unknown or empty. The message says what is expected.
    """
    root = Path(folder)
    if not (root / "train").is_dir():
        raise DatasetError(f"there is no folder {root / 'train'}; {_LAYOUT}")
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    classes = _subfolders(folders["train"])
    splits = {name: _examples(path, classes) for name, path in folders.items()}
    if len(tests := [name for name in _TEST_NAMES if name in splits]) == 1:
        splits |= dict.fromkeys(_TEST_NAMES, splits[tests[0]])
    return Source(
        classes=len(classes),
        image_shape=None,
        mean=IMAGENET_MEAN,
        deviation=IMAGENET_DEVIATION,
        train=select(train_split, splits),
        test=select(test_split, splits),
    )


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _examples(folder: Path, classes: list[str]) -> FolderExamples:
    """The images in the subfolders. They are sorted by class and name, because directories have no order."""
    label_of = {name: label for label, name in enumerate(classes)}
    files, labels = [], []
    for name in _subfolders(folder):
        if name not in label_of:
            raise DatasetError(f"{folder / name} is a class without training images; {_LAYOUT}")
        images = [entry.path for entry in os.scandir(folder / name) if entry.name.lower().endswith(_SUFFIXES)]
        files += sorted(images)
        labels += [label_of[name]] * len(images)
    return FolderExamples(files, labels)
