"""Checkpoints of a run: written in the background, a few of them kept, restored bit for bit."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from .state import TrainState
from .weights import ALONE, STATE, CheckpointError, checkpoint_steps, read_tree

# In the directory of a step, beside the state: JSON values, and the checksum of the state.
_PROGRESS = "progress"
_CHECKSUM = "checksum"


class Checkpoints:
    """Writes the checkpoints of one seed into `directory/STEP`; a context manager that waits for the last.

    In a run of several processes, the first one has it.

    A checkpoint has a temporary name until it is complete, so an interrupted one does not count. A complete
    one replaces the oldest if there are more than `keep`.

    **Raises:** `CheckpointError` if one cannot be written; the error may appear some steps later.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                directory.absolute(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=False,
                    cleanup_tmp_directories=True,
                    save_root_metadata=False,
                    multiprocessing_options=ALONE,
                ),
            )
        except OSError as error:
            raise self._cannot_write(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            # An exception that ended the run takes precedence.
            if kind is None:
                raise self._cannot_write(error) from error
        finally:
            self._manager.close()

    def save(self, state: TrainState, *, step: int, progress: dict[str, Any]) -> None:
        """Starts writing a checkpoint, unless the step already has one; waits for the previous one.

        Arguments:

        - `state`: may be donated as soon as this returns.
        - `progress`: JSON values that a resumed run needs beside the state.
        """
        if step == self._manager.latest_step():
            return
        # Copies, since the next step overwrites the memory of the state.
        tree = jax.tree.map(np.array, serialization.to_state_dict(state))
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        STATE: ocp.args.StandardSave(tree),
                        _PROGRESS: ocp.args.JsonSave(progress | {_CHECKSUM: _checksum(tree)}),
                    }
                ),
            )
        except (OSError, ValueError) as error:
            raise self._cannot_write(error) from error

    def wait(self) -> None:
        """Waits until everything saved is on disk."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot write a checkpoint into {self._directory}: {error}")


def restore(
    directory: Path, like: TrainState, tell: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest intact state and progress that `Checkpoints` has written; None if there is none.

    Damaged ones are renamed to `unreadable_STEP`, and `tell` gets a line of text about each.

    Arguments:

    - `like`: a state of the same model and optimizer, arrays or their shapes and dtypes.

    **Raises:** `CheckpointError` if there are checkpoints and none can be read.
    """
    unreadable = []
    for step in reversed(checkpoint_steps(directory)):
        try:
            restored = _read(directory / str(step), like)
        except CheckpointError as error:
            unreadable.append((step, error))
            continue
        for newer, error in unreadable:
            (directory / str(newer)).rename(directory / f"unreadable_{newer}")
            tell(f"the checkpoint of step {newer} is left out: {error}")
        return restored
    if unreadable:
        raise CheckpointError(f"{unreadable[0][1]}; remove {directory} to start this seed anew")
    return None


def _read(path: Path, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    tree = read_tree(path.absolute() / STATE)
    try:
        progress = ocp.JsonCheckpointHandler().restore(path.absolute() / _PROGRESS)
        state = serialization.from_state_dict(like, tree)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if progress.pop(_CHECKSUM, None) != _checksum(tree):
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in (state, like)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"{path} is a checkpoint of another model")
    # Copied into memory of JAX's own, which a step may write to.
    return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), state), progress


def _checksum(tree: Any) -> int:
    """Of all bytes, in the order of the names: detects what a file system or a copy has damaged."""
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), checksum)
    return checksum
