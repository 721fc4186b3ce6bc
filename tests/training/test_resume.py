"""Runs that are killed or stopped resume to bit-identical parameters and the same metrics."""

import io
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from killing import train_until
from rich.console import Console
from tiny import MODEL, MODEL_IN_DFP16

from dfpjax.training import CheckpointError, Report, Stopped, TrainConfig, train
from dfpjax.training.weights import checkpoint_steps, read_tree

# They differ between runs.
TIMES = ("seconds", "images_per_second")


@pytest.fixture
def make_run(make_config):
    """A function that changes fields of a run of 2 epochs of 4 steps, with a checkpoint every 3 steps."""

    def make(**changes: object) -> TrainConfig:
        return make_config(
            **({"model": MODEL, "checkpoint_every": 3, "max_shift": 1, "warmup": 0.0} | changes)
        )

    return make


class CountingReport(Report):
    """Counts the steps."""

    steps = 0

    def step(self, *arguments) -> None:
        super().step(*arguments)
        self.steps += 1


def _train(
    config: TrainConfig, workdir: Path, stop_after: int | None = None, stop_at_call: int | None = None
) -> tuple[list, str]:
    """The results and the printed text of a run. If given, it stops after `stop_after` steps, or at call
    `stop_at_call` of `stop`, counted from 0."""
    console = Console(file=io.StringIO(), width=120)
    calls = itertools.count()
    with CountingReport(console, workdir) as report:
        if stop_after is not None:
            stop = lambda: report.steps == stop_after  # noqa: E731
        elif stop_at_call is not None:
            stop = lambda: next(calls) == stop_at_call  # noqa: E731
        else:
            return train(config, report), console.file.getvalue()
        with pytest.raises(Stopped):
            train(config, report, stop=stop)
        return [], console.file.getvalue()


def _lines(workdir: Path, name: str = "metrics.jsonl") -> list[dict]:
    lines = map(json.loads, (workdir / name).read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def _state(workdir: Path, seed: int = 0) -> dict:
    """The training state at the end of a run."""
    directory = workdir / "checkpoints" / f"seed_{seed}"
    return read_tree(directory.absolute() / str(checkpoint_steps(directory)[-1]) / "state")


def _assert_same(workdir: Path, expected: Path) -> None:
    """Compare states bit for bit, and metrics except times."""
    jax.tree.map(np.testing.assert_array_equal, _state(workdir), _state(expected))
    assert _lines(workdir) == _lines(expected)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder that keeps uninterrupted runs, so each of them is made once."""
    return tmp_path_factory.mktemp("kept")


def _uninterrupted(config: TrainConfig, kept: Path) -> Path:
    workdir = kept / f"{config.precision}_{config.model}_{config.accumulate}_{config.statistics_every}"
    if not workdir.exists():
        _train(config, workdir)
    return workdir


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_killed_run_goes_on_to_the_same_bits(make_run, kept, tmp_path, step):
    """Kill it before the first checkpoint, at the end of an epoch (then once more), or in the next epoch."""
    config = make_run()
    assert train_until(config, tmp_path, signal.SIGKILL, step=step) == (-signal.SIGKILL, None)
    if step == 4:
        assert train_until(config, tmp_path, signal.SIGKILL, step=1) == (-signal.SIGKILL, None)
    _train(config, tmp_path)
    _assert_same(tmp_path, _uninterrupted(config, kept))


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(make_run, kept, tmp_path):
    config = make_run(checkpoint_every=1)
    _train(config, tmp_path, stop_after=2)
    before = checkpoint_steps(tmp_path / "checkpoints" / "seed_0")
    assert train_until(config, tmp_path, signal.SIGKILL, while_writing=True) == (-signal.SIGKILL, None)
    directory = tmp_path / "checkpoints" / "seed_0"
    assert [path for path in directory.iterdir() if "tmp" in path.name]
    assert checkpoint_steps(directory) == before
    _train(config, tmp_path)
    assert not [path for path in directory.iterdir() if "tmp" in path.name]
    _assert_same(tmp_path, _uninterrupted(make_run(), kept))


def test_sigterm_saves_the_step_it_finishes(make_run, kept, tmp_path):
    config = make_run()
    code, text = train_until(config, tmp_path, signal.SIGTERM, step=5)
    assert (code, text) == (128 + signal.SIGTERM, "after step 5 of seed 0")
    assert checkpoint_steps(tmp_path / "checkpoints" / "seed_0") == [3, 5]
    _, printed = _train(config, tmp_path)
    assert "seed 0 goes on after step 5 of 8 in float32" in printed
    _assert_same(tmp_path, _uninterrupted(config, kept))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2},
        pytest.param({"model": MODEL_IN_DFP16, "precision": "dfp16_paper"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_run_goes_on_from_any_step(make_run, kept, tmp_path, changes):
    config = make_run(**changes, checkpoint_every=0)
    steps = 8 * config.accumulate
    for stop_after in (3, steps // 2) if config.model == MODEL else (5,):
        _train(config, tmp_path, stop_after=stop_after)
    _train(config, tmp_path)
    _assert_same(tmp_path, _uninterrupted(config, kept))


def test_a_run_stopped_in_an_evaluation_repeats_that_alone(make_run, kept, tmp_path):
    config = make_run(eval_batch_size=25)
    # `stop` is called before the first step, after each of four, and before each of two test batches.
    _train(config, tmp_path, stop_at_call=6)
    assert checkpoint_steps(tmp_path / "checkpoints" / "seed_0") == [3, 4]
    assert not (tmp_path / "metrics.jsonl").exists()
    _train(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, _state(tmp_path), _state(_uninterrupted(make_run(), kept)))
    assert [line["epoch"] for line in _lines(tmp_path)] == [1, 2]
    expected = _lines(_uninterrupted(make_run(), kept))
    assert [line["train_loss"] for line in _lines(tmp_path)] == [line["train_loss"] for line in expected]


@pytest.mark.slow
def test_statistics_are_cut_where_the_run_goes_on_and_drawn_as_a_whole(make_run, kept, tmp_path):
    config = make_run(precision="dfp16_paper", statistics_every=2, model=MODEL_IN_DFP16)
    expected = _uninterrupted(config, kept)
    # As if killed: after the checkpoint of step 3, the statistics of step 4 are written and others begun.
    _train(config, tmp_path, stop_after=5)
    shutil.rmtree(tmp_path / "checkpoints" / "seed_0" / "5")
    with open(tmp_path / "statistics.jsonl", "a") as file:
        file.write('{"seed": 0, "st')
    _train(config, tmp_path)
    _assert_same(tmp_path, expected)
    statistics = _lines(tmp_path, "statistics.jsonl")
    assert statistics and statistics == _lines(expected, "statistics.jsonl")


def test_a_run_goes_on_in_another_precision(make_run, tmp_path):
    for precision, stop_after in (("float32", 2), ("dfp16", 3)):
        _train(make_run(precision=precision), tmp_path, stop_after=stop_after)
    (result,), printed = _train(make_run(precision="bfloat16"), tmp_path)
    assert "seed 0 goes on after step 5 of 8, reached in dfp16, in bfloat16" in printed
    assert [line["precision"] for line in _lines(tmp_path)] == ["dfp16", "bfloat16"]
    assert result.precision == "bfloat16"
    assert np.isfinite(result.test_loss)
    assert {leaf.dtype for leaf in jax.tree.leaves(_state(tmp_path)["params"])} == {np.dtype(np.float32)}


def test_seeds_that_are_trained_are_not_trained_again(make_run, tmp_path):
    (first,), _ = _train(make_run(seed=(1,)), tmp_path)
    results, printed = _train(make_run(seed=(1, 2), workers=0, checkpoint_every=5), tmp_path)
    assert results[0] == first  # including times
    assert "seed 1 has been trained: nothing to do" in printed
    assert [(line["seed"], line["epoch"]) for line in _lines(tmp_path)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert len((tmp_path / "result.md").read_text().splitlines()) == 5
    _, printed = _train(make_run(seed=(1, 2)), tmp_path)
    assert "compiled" not in printed


def test_the_newest_checkpoints_are_kept(make_run, tmp_path):
    _train(make_run(checkpoint_every=1, keep_checkpoints=2), tmp_path)
    assert checkpoint_steps(tmp_path / "checkpoints" / "seed_0") == [7, 8]


def _truncate(checkpoint: Path) -> None:
    largest = max(checkpoint.glob("state/**/*"), key=lambda path: path.is_file() and path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def _flip_a_bit(checkpoint: Path) -> None:
    largest = max(checkpoint.glob("state/**/*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def _empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _empty])
def test_a_damaged_checkpoint_never_wins_over_a_complete_one(make_run, kept, tmp_path, damage):
    config = make_run()
    _train(config, tmp_path, stop_after=5)
    directory = tmp_path / "checkpoints" / "seed_0"
    damage(directory / "5")
    _, printed = _train(config, tmp_path)
    assert "the checkpoint of step 5 is left out: " in printed
    assert "goes on after step 3 of 8" in printed
    assert (directory / "unreadable_5").exists()
    _assert_same(tmp_path, _uninterrupted(config, kept))


def test_where_no_checkpoint_can_be_read_the_user_decides(make_run, tmp_path):
    _train(make_run(), tmp_path, stop_after=2)
    _empty(tmp_path / "checkpoints" / "seed_0" / "2")
    with pytest.raises(CheckpointError, match=r"cannot be read: .*; remove .*/checkpoints/seed_0 to start"):
        _train(make_run(), tmp_path)


def test_a_workdir_of_another_run_is_refused(make_run, tmp_path):
    _train(make_run(), tmp_path, stop_after=2)
    message = (
        f"{tmp_path} has checkpoints of another run: epochs was 2 and is 3, learning_rate was 0.1 and is 0.2;"
        " give the former values to go on with it, or another --workdir to start a new one"
    )
    with pytest.raises(CheckpointError) as refused:
        _train(make_run(epochs=3, learning_rate=0.2), tmp_path)
    assert str(refused.value) == message
    with pytest.raises(CheckpointError, match=r"train_split was .*, train_size was 128 and is 96;"):
        _train(make_run(train_split="train[:96]"), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"config.json says what .* and cannot be read; give another --wo"
    ):
        _train(make_run(), tmp_path)


def test_what_cannot_go_on_is_replaced(make_run, tmp_path):
    _train(make_run(checkpoint_every=0), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    _train(make_run(epochs=1, seed=(5,)), tmp_path)
    assert [(line["seed"], line["epoch"]) for line in _lines(tmp_path)] == [(5, 1)]
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["seed_5"]


def test_a_loss_that_is_not_finite_is_not_saved(make_run, tmp_path):
    with pytest.raises(FloatingPointError, match="the training loss of epoch 1, seed 0, is nan; a lower"):
        _train(make_run(learning_rate=1e30, checkpoint_every=1), tmp_path)
    saved = checkpoint_steps(tmp_path / "checkpoints" / "seed_0")
    assert len(saved) < 4
    for step in saved:
        state = read_tree(tmp_path / "checkpoints" / "seed_0" / str(step) / "state")
        assert state["step"] == step


def test_a_place_that_cannot_be_written_to_is_an_error(make_run, tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint into .*/checkpoints/seed_0: "):
        _train(make_run(), tmp_path)
