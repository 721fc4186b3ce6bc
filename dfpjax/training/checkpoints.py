"""Checkpoints of a run: written in the background, the newest few kept, read back to the last bit."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from .state import TrainState
from .weights import STATE, CheckpointError, checkpoint_steps, read_tree

# In the directory of a step, beside the state: JSON values, and the checksum of the state.
_PROGRESS = "progress"
_CHECKSUM = "checksum"


class Checkpoints:
    """Writes the checkpoints of one seed into `directory/STEP`; a context manager that waits for the last.

    A checkpoint is written under another name and gets its own in the end, so that one that was interrupted
    does not count. The oldest of more than `keep` is deleted when a new one is complete.

    **Raises:** `CheckpointError` if one cannot be written, be it some steps later.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory = directory
        try:
            self._manager = ocp.CheckpointManager(
                directory.absolute(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, cleanup_tmp_directories=True, save_root_metadata=False
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
            # What stopped the run matters more.
            if kind is None:
                raise self._cannot_write(error) from error
        finally:
            self._manager.close()

    def save(self, state: TrainState, *, step: int, progress: dict[str, Any]) -> None:
        """Starts to write a checkpoint, unless the step has one already; waits for the one before.

        Arguments:

        - `state`: may be donated as soon as this returns.
        - `progress`: what else the run needs to go on, as JSON.
        """
        if step == self._manager.latest_step():
            return
        # Copies: without, this would be the memory that the next step writes to.
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
        """Until what has been saved is on disk."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot write a checkpoint into {self._directory}: {error}")


def restore(
    directory: Path, like: TrainState, tell: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest state and progress that `Checkpoints` has written and that is intact; None if none is there.

    Those that are not intact are renamed to `unreadable_STEP`, and `tell` is called with a line of text.

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
        raise CheckpointError(f"{path} is damaged: its checksum is another one")
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in (state, like)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"{path} is a checkpoint of another model")
    # Copied into memory of JAX's own, which a step may write to.
    return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), state), progress


def _checksum(tree: Any) -> int:
    """Of all bytes, in the order of the names; a file system or a copy may change some unnoticed."""
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), checksum)
    return checksum
