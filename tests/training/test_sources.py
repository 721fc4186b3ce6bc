import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_images

from dfpjax.training import DatasetError
from dfpjax.training.data import load_dataset
from dfpjax.training.data.source import select

CHINA, FLOWER = load_sample_images().images
MEAN, DEVIATION = (255 * np.array(v) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def _jpeg(photograph: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph).save(file, "JPEG", quality=95)
    return file.getvalue()


class Photographs(tfds.core.GeneratorBasedBuilder):
    """Parts of two photographs, as JPEG files of different sizes."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["china", "flower"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(range(10)),
            "validation": self._generate_examples(range(10, 14)),
        }

    def _generate_examples(self, numbers):
        for number in numbers:
            image = (CHINA, FLOWER)[number % 2][: 300 + number, : 400 - number]
            yield (
                number,
                {"image": io.BytesIO(_jpeg(image)), "label": number % 2, "file_name": f"{number}.jpg"},
            )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A folder that contains the dataset `photographs`."""
    path = tmp_path_factory.mktemp("prepared")
    Photographs(data_dir=path, file_format="array_record").download_and_prepare()
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of photographs with a colour, a grey and a PNG image, and a file that is not an image."""
    for split, sizes in (("train", (300, 310, 320)), ("val", (330, 340))):
        for name, photograph in (("flower", FLOWER), ("china", CHINA)):
            (tmp_path / split / name).mkdir(parents=True)
            for size in sizes:
                path = tmp_path / split / name / f"{size}.JPEG"
                path.write_bytes(_jpeg(photograph[:size]))
    Image.fromarray(CHINA).convert("L").save(tmp_path / "train" / "china" / "grey.jpg")
    Image.fromarray(FLOWER).save(tmp_path / "train" / "flower" / "a.png")
    (tmp_path / "train" / "china" / "notes.txt").write_text("no image")
    return tmp_path


def _centre(photograph: np.ndarray, size: int) -> np.ndarray:
    """A photograph's crop for evaluation, scaled in float64 by code that is independent of Pillow."""

    def weights(length: int, start: float, extent: float) -> np.ndarray:
        scale = extent / size
        centres = start + scale * (np.arange(size) + 0.5)
        distances = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
        table = np.maximum(0, 1 - distances)
        return table / table.sum(axis=1, keepdims=True)

    height, width, _ = photograph.shape
    side = min(height, width) * 224 / 256
    rows = weights(height, (height - side) / 2, side)
    columns = weights(width, (width - side) / 2, side)
    scaled = np.einsum("ij,jkc,lk->ilc", rows, photograph.astype(np.float64), columns, optimize=True)
    return (scaled - MEAN) / DEVIATION


def test_a_prepared_dataset_is_read_and_scaled(photographs, make_config):
    dataset = load_dataset(
        make_config(
            dataset="tfds:photographs",
            data_dir=str(photographs),
            train_split="train",
            test_split="validation",
            image_size=64,
            flip=True,
            min_crop_area=0.08,
        )
    )
    assert (dataset.classes, dataset.image_shape) == (2, (64, 64, 3))
    assert (dataset.train_size, dataset.test_size) == (10, 4)
    images, labels = next(dataset.train_batches(10, seed=0))
    assert (images.shape, images.dtype) == ((10, 64, 64, 3), np.float32)
    assert sorted(labels) == [0] * 5 + [1] * 5
    ((images, labels),) = dataset.test_batches(4)
    assert sorted(labels) == [0, 0, 1, 1]
    stored = tfds.data_source("photographs", split="validation", data_dir=photographs)
    for image, label, record in zip(images, labels, stored, strict=True):
        assert label == record["label"]
        assert np.abs(image - _centre(record["image"], 64)).max() < 0.03  # one level of the image is 0.017


@pytest.mark.slow
def test_workers_read_a_prepared_dataset(photographs, make_config):
    config = make_config(
        dataset="tfds:photographs",
        data_dir=str(photographs),
        train_split="train[:50%]+validation",
        test_split="validation",
        image_size=32,
    )
    alone, shared = (load_dataset(dataclasses.replace(config, workers=workers)) for workers in (0, 2))
    assert shared.train_size == 9
    batches, expected = (dataset.train_batches(4, seed=1) for dataset in (shared, alone))
    for _ in range(3):
        for found, wanted in zip(next(batches), next(expected), strict=True):
            np.testing.assert_array_equal(found, wanted)
    batches.close()
    expected.close()


def test_images_that_differ_in_size_must_be_scaled(photographs, make_config):
    config = make_config(
        dataset="tfds:photographs", data_dir=str(photographs), train_split="train", test_split="validation"
    )
    with pytest.raises(DatasetError, match="differ in size: image_size must be given"):
        load_dataset(config)


def test_a_dataset_that_is_not_prepared_is_an_error_that_says_how_to(make_config, tmp_path):
    with pytest.raises(DatasetError) as error:
        load_dataset(make_config(dataset="imagenet2012", data_dir=str(tmp_path)))
    assert str(error.value) == (
        f"imagenet2012 is not prepared in {tmp_path}; prepare it with `tfds build imagenet2012"
        f" --file_format=array_record --manual_dir=FOLDER_OF_THE_DOWNLOADED_ARCHIVES --data_dir={tmp_path}`,"
        " which needs TensorFlow although training does not, or set data_dir"
    )
    with pytest.raises(DatasetError, match=r"cifar10 is not prepared .* `tfds build cifar10 --file_format="):
        load_dataset(make_config(dataset="tfds:cifar10", data_dir=str(tmp_path)))


def test_a_dataset_without_images_is_an_error(digits, make_config):
    with pytest.raises(DatasetError, match=r"digits is no image .* and has .*image \(Tensor\)"):
        load_dataset(make_config(dataset="tfds:digits"))


def test_a_dataset_in_another_format_is_an_error_that_says_how_to_convert_it(
    photographs, make_config, tmp_path
):
    (info,) = photographs.glob("photographs/*/dataset_info.json")
    copy = tmp_path / info.relative_to(photographs)
    copy.parent.mkdir(parents=True)
    for file in info.parent.iterdir():
        (copy.parent / file.name.replace("array_record", "tfrecord")).write_bytes(file.read_bytes())
    copy.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DatasetError, match=r"is prepared as tfrecord.* `tfds convert_format .*array_record`"):
        load_dataset(make_config(dataset="tfds:photographs", data_dir=str(tmp_path)))


def test_an_unknown_split_of_a_prepared_dataset_is_an_error(photographs, make_config):
    with pytest.raises(DatasetError, match=r"Unknown split 'test'.*'train', 'validation'"):
        load_dataset(
            make_config(
                dataset="tfds:photographs", data_dir=str(photographs), train_split="train", image_size=32
            )
        )


def _folder_config(make_config, folder: Path, **changes):
    settings = {"train_split": "train", "test_split": "val", "image_size": 48}
    return make_config(dataset="image_folder", data_dir=str(folder), **settings | changes)


def test_a_folder_is_read_and_scaled(folder, make_config):
    dataset = load_dataset(_folder_config(make_config, folder))
    assert (dataset.classes, dataset.image_shape) == (2, (48, 48, 3))
    assert (dataset.train_size, dataset.test_size) == (8, 4)
    _, labels = next(dataset.train_batches(8, seed=0))
    assert sorted(labels) == [0] * 4 + [1] * 4
    ((images, labels),) = dataset.test_batches(4)
    np.testing.assert_array_equal(labels, [0, 0, 1, 1])
    for image, name in zip(images, ("china/330", "china/340", "flower/330", "flower/340"), strict=True):
        photograph = np.asarray(Image.open(folder / "val" / f"{name}.JPEG"))
        assert np.abs(image - _centre(photograph, 48)).max() < 0.03


def test_crops_show_the_photograph_they_are_labelled_with(folder, make_config):
    # The flower is red and yellow. Nothing in the photograph of China is as far from grey.
    dataset = load_dataset(_folder_config(make_config, folder, train_split="train", flip=True))
    means = {0: [], 1: []}
    batches = dataset.train_batches(8, seed=0)
    for _ in range(8):
        for image, label in zip(*next(batches), strict=True):
            red, _, blue = (image * DEVIATION + MEAN).mean(axis=(0, 1))
            means[int(label)].append(red - blue)
    assert np.mean(means[0]) < np.mean(means[1])


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_the_folder_for_testing_has_any_of_three_names(folder, make_config, name):
    (folder / "val").rename(folder / name)
    for split in ("val", "validation", "test"):
        assert load_dataset(_folder_config(make_config, folder, test_split=f"{split}[:3]")).test_size == 3


def test_a_folder_of_another_layout_is_an_error_that_says_what_is_expected(folder, make_config):
    expected = "image_folder expects data_dir to hold train/CLASS/*.jpg and val/CLASS/*.jpg"

    def message(config) -> str:
        with pytest.raises(DatasetError) as error:
            load_dataset(config)
        return str(error.value)

    config = _folder_config(make_config, folder)
    assert message(dataclasses.replace(config, data_dir=None)) == f"data_dir is None; {expected}"
    nowhere = folder / "nowhere"
    assert message(dataclasses.replace(config, data_dir=str(nowhere))) == (
        f"there is no folder {nowhere / 'train'}; {expected}"
    )
    (folder / "val" / "tower").mkdir()
    assert message(config) == f"{folder / 'val' / 'tower'} is a class without training images; {expected}"
    (folder / "val").rename(folder / "elsewhere")
    (folder / "elsewhere" / "tower").rmdir()
    assert "Unknown split 'val'. Should be one of ['elsewhere', 'train']" in message(config)


def test_a_broken_image_is_an_error_that_names_the_file(folder, make_config):
    broken = folder / "val" / "china" / "330.JPEG"
    broken.write_bytes(broken.read_bytes()[:5000])
    with pytest.raises(OSError, match=r"cannot read .*china/330.JPEG: .*truncated"):
        list(load_dataset(_folder_config(make_config, folder)).test_batches(4))


def test_fake_images_are_the_same_for_ever_and_tell_their_class(make_config):
    config = make_config(
        dataset="fake_imagenet", train_split="train", test_split="validation[:12]", image_size=None
    )
    dataset = load_dataset(config)
    assert (dataset.classes, dataset.image_shape) == (1000, (224, 224, 3))
    assert dataset.train_size == 1_281_167
    assert load_dataset(dataclasses.replace(config, test_split="validation")).test_size == 50_000
    ((images, labels),) = dataset.test_batches(12)
    np.testing.assert_array_equal(labels, range(12))
    assert len({image.tobytes() for image in images}) == 12
    pixels = images * DEVIATION + MEAN
    assert -0.01 < pixels.min() < pixels.max() < 255
    # Without the noise, a class has the same squares as in its training images.
    squares = dataset.source.train[3000].image.reshape(7, 32, 7, 32, 3).mean(axis=(1, 3))
    distances = np.abs(pixels.reshape(12, 7, 32, 7, 32, 3).mean(axis=(2, 4)) - squares).mean(axis=(1, 2, 3))
    assert distances[0] < 3 < 20 < distances[1:].min()
    # Splits share no image.
    assert not np.array_equal(dataset.source.train[0].image, dataset.source.test[0].image)


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train", range(10)),
        ("test", [100, 101, 102]),
        ("train[3:5]", [3, 4]),
        ("train[-2:]+test[1:]", [8, 9, 101, 102]),
        ("test[:50%]+train[:10%]+test[2:]", [100, 101, 0, 102]),
    ],
)
def test_a_split_expression_selects_examples_in_its_order(split, numbers):
    splits = {"train": list(range(10)), "test": [100, 101, 102]}
    selected = select(split, splits)
    assert [selected[index] for index in range(len(selected))] == list(numbers)
    with pytest.raises(IndexError, match=f"there are {len(selected)} examples"):
        selected[len(selected)]


def test_fake_images_without_a_split_are_an_error(make_config):
    with pytest.raises(DatasetError, match=r"Unknown split 'test'.*'train', 'validation'"):
        load_dataset(make_config(dataset="fake_imagenet"))
