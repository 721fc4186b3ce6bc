"""Runs whose steps are shared by several devices, against one device's."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny import MODEL

from dfpjax.training import MeshError, Report, Stopped, TrainConfig, train
from dfpjax.training.data import Rows, load_dataset
from dfpjax.training.devices import Devices
from dfpjax.training.program import Program

LOSSES = ("train_loss", "test_loss")


def _train(config: TrainConfig, workdir: Path, stop=lambda: False) -> list[dict]:
    with Report(Console(file=io.StringIO(), width=120), workdir) as report:
        train(config, report, stop=stop)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _losses(lines: list[dict]) -> np.ndarray:
    return np.array([[line[name] for name in LOSSES] for line in lines])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder that keeps the runs of one device."""
    return tmp_path_factory.mktemp("alone")


def _alone(config: TrainConfig, folder: Path) -> list[dict]:
    workdir = folder / f"accumulate_{config.accumulate}"
    if not workdir.exists():
        _train(dataclasses.replace(config, mesh=(1,), gradient_dtype="float32"), workdir)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes", [{"mesh": (2,)}, {"mesh": ()}, {"mesh": (2,), "accumulate": 2}], ids=["2", "all", "accumulate"]
)
def test_several_devices_reach_the_losses_of_one(make_config, alone, tmp_path, changes):
    # 50 test images, which four devices do not divide.
    config = make_config(model=MODEL, max_shift=1, warmup=0.0, **changes)
    lines = _train(config, tmp_path)
    np.testing.assert_allclose(_losses(lines), _losses(_alone(config, alone)), rtol=1e-4)


def test_gradients_in_dfp16_train_as_well(make_config, alone, tmp_path):
    config = make_config(model=MODEL, max_shift=1, warmup=0.0, mesh=(2,), gradient_dtype="dfp16")
    losses, expected = _losses(_train(config, tmp_path)), _losses(_alone(config, alone))
    # Batch statistics are those of 16 instead of 32 images, and dropout differs.
    assert (losses[1] < losses[0]).all()
    np.testing.assert_allclose(losses, expected, rtol=0.2)


def test_gradients_in_dfp16_travel_as_integers(make_config):
    config = make_config(model=MODEL, mesh=(2,), gradient_dtype="dfp16")
    program = Program(config, load_dataset(config)).step.as_text()
    assert "s16" in program and " all-reduce(" in program


@pytest.mark.parametrize("meshes", [((2,), (1,)), ((1,), (4,))], ids=str)
def test_a_run_goes_on_with_another_number_of_devices(make_config, alone, tmp_path, meshes):
    before, after = (make_config(model=MODEL, max_shift=1, warmup=0.0, mesh=mesh) for mesh in meshes)
    steps = iter(range(100))
    with pytest.raises(Stopped, match="after step 5"):
        _train(before, tmp_path, stop=lambda: next(steps) == 6)
    lines = _train(after, tmp_path)
    np.testing.assert_allclose(_losses(lines), _losses(_alone(after, alone)), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": (99,)}, r"mesh is \(99,\); it must be at most \(4,\), all devices there are"),
        ({"mesh": (3,)}, r"a step takes 32 images .* which 3 devices do not divide; change batch_size"),
        ({"mesh": (), "batch_size": 6, "accumulate": 3}, r"a step takes 2 images .* 4 devices do not divide"),
    ],
)
def test_a_mesh_that_cannot_share_the_work_is_refused(make_config, changes, message):
    with pytest.raises(MeshError, match=message):
        Devices(make_config(**changes))


@pytest.mark.parametrize("parts", [1, 2])
def test_processes_read_each_row_once_and_share_each_part(parts):
    shares = [Rows.share(24, parts=parts, devices=4, own=own) for own in (range(0, 1), range(1, 4))]
    indices = [share.indices.reshape(parts, -1) for share in shares]
    for part, rows in enumerate(np.concatenate(indices, axis=1)):
        np.testing.assert_array_equal(rows, np.arange(24).reshape(parts, -1)[part])


@pytest.mark.parametrize("own", [range(0, 1), range(1, 2)])
def test_the_rows_of_a_process_are_those_of_the_batch(make_config, own):
    config = make_config(max_shift=2, flip=True, image_size=6, min_crop_area=0.3)
    dataset = load_dataset(config)
    rows = Rows.share(10, parts=1, devices=2, own=own)
    for whole, part in (
        (dataset.train_batches(10, seed=3), dataset.train_batches(10, seed=3, rows=rows)),
        # 50 images: the last batch of 48 has 2, both in the first half.
        (
            dataset.test_batches(48),
            dataset.test_batches(48, rows=Rows.share(48, parts=1, devices=2, own=own)),
        ),
    ):
        for _ in range(2):
            batch, share = next(whole), next(part)
            half = len(share[1])
            for expected, actual in zip(batch, share, strict=True):
                np.testing.assert_array_equal(actual, expected[own.start * half :][:half])
