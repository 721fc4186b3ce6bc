"""A working directory belongs to one configuration: which fields may change when a run is resumed."""

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .weights import CheckpointError, checkpoint_steps

# Fields of `TrainConfig` that do not affect what a run computes, or that may change during a run.
_MAY_CHANGE = {
    "precision",
    "seed",
    "data_dir",
    "mesh",
    "gradient_dtype",
    "eval_batch_size",
    "workers",
    "statistics_every",
    "checkpoint_every",
    "keep_checkpoints",
    "export_weights",
}


@contextlib.contextmanager
def writing(workdir: Path | None) -> Iterator[None]:
    """**Raises:** `CheckpointError` in place of an `OSError`: one line with the path and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and give the same command again"
        else:
            remedy = "give --workdir a directory that you may write to"
        reason = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror or error
        raise CheckpointError(f"cannot write {error.filename or workdir}: {reason}; {remedy}") from error


def checkpoint_directory(workdir: Path, seed: int) -> Path:
    """Where the checkpoints of a seed are, each in a directory named by its step."""
    return workdir / "checkpoints" / f"seed_{seed}"


def weights_directory(workdir: Path, seed: int) -> Path:
    """Where a finished run leaves the weights of a seed."""
    return workdir / "weights" / f"seed_{seed}"


def has_checkpoints(workdir: Path) -> bool:
    """Whether there is a checkpoint to resume a run from."""
    return any(checkpoint_steps(seed) for seed in (workdir / "checkpoints").glob("seed_*"))


def claim(workdir: Path, config: TrainConfig, *, train_size: int) -> None:
    """Writes `config.json`, after a check that the runs in `workdir` can be resumed with `config`.

    Arguments:

    - `train_size`: images in the training split, on which the steps depend as they do on a field.

    **Raises:** `CheckpointError` if they cannot, and the message names the fields; or if the file cannot be
    written.
    """
    path = workdir / "config.json"
    # Through JSON, which turns tuples into lists, as in the file.
    settings = json.loads(json.dumps(dataclasses.asdict(config) | {"train_size": train_size}))
    if has_checkpoints(workdir):
        changes = ", ".join(
            f"{name} was {before!r} and is {settings[name]!r}"
            for name, before in _read(path).items()
            if name in settings and name not in _MAY_CHANGE and before != settings[name]
        )
        if changes:
            raise CheckpointError(
                f"{workdir} has checkpoints of another run: {changes}; give the former values to go on with"
                " it, or another --workdir to start a new one"
            )
    # Renamed when complete: a run may be killed at any time.
    with writing(workdir):
        path.with_suffix(".new").write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(path.with_suffix(".new"), path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} says what the checkpoints beside it are of, and cannot be read; give another --workdir"
            " to start a new run"
        ) from error
