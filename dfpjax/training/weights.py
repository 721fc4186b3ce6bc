"""Weights on disk, in float32 or in DFP16: a finished run writes them, other runs start from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

import dfpjax
from dfpjax.numbers.format.frozen import FrozenArray, Rows
from dfpjax.operations.exponents import blocks_of
from dfpjax.serving import load_safetensors, to_arrays
from dfpjax.serving._storage import BLOCKS, EXPONENT, MANTISSA, stored_blocks

from .models.from_torch import from_torch

WEIGHT_FORMATS = ("float32", "dfp16")

STATE = "state"
"""In the directory of a step, the item of a checkpoint that has the whole training state."""

_HINT = (
    "give WORKDIR/weights/seed_N, WORKDIR/checkpoints/seed_N, one of the steps in it, or a .safetensors file"
)

ALONE = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
)
"""Every process of a run has all arrays, so the first one alone writes them, and Orbax waits for no other."""


class CheckpointError(ValueError):
    """A checkpoint or weights cannot be written, read or used; the message says what to do."""


DEFAULT_BLOCKS = blocks_of(dfpjax.OpConfig().quantizers().rhs)
"""The size of the blocks in which operations read their kernels by default; None for whole tensors."""


def save_weights(
    path: Path,
    variables: dict[str, Any],
    weight_format: str,
    blocks: dfpjax.Blocks | None = DEFAULT_BLOCKS,
) -> None:
    """Writes `params` and `batch_stats`, as a plain Orbax checkpoint, in place of what is at `path`.

    With "dfp16" each parameter of two or more dimensions becomes a `mantissa`, int16 of its shape, and an
    `exponent`, int32[]: mantissa · 2^exponent, rounded to nearest, as an operation in DFP16 reads it. With
    `blocks` the exponent is int32 of shape `blocks.counts(shape)`, one number for each block, and `blocks`,
    int32[2], has the rows and columns of a block. Everything else stays float32: it is small, and some of it,
    such as the variances of batch norm, spans too many magnitudes for one exponent.

    Arguments:

    - `path`: a directory, which is made or replaced.
    - `variables`: `params` and `batch_stats`, float32.
    - `weight_format`: one of `WEIGHT_FORMATS`.
    - `blocks`: the size of blocks that have an exponent each, or None for one exponent per parameter. By
      default as `dfpjax.OpConfig()` has it.

    **Raises:** `CheckpointError` if this is not possible.
    """
    params = jax.tree.map(np.asarray, variables["params"])
    if weight_format == "dfp16":
        params = jax.tree.map(lambda parameter: _to_dfp16(parameter, blocks), params)
    tree = {"params": params, "batch_stats": jax.tree.map(np.asarray, variables["batch_stats"])}
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=ALONE) as checkpointer:
            checkpointer.save(path.absolute(), tree, force=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot write weights to {path}: {error}") from error


def saved_format(path: Path) -> str | None:
    """The one of `WEIGHT_FORMATS` in which weights are saved at `path`; None if there are none."""
    if not _is_tree(path):
        return None
    names = traverse_util.flatten_dict(_metadata(path), keep_empty_nodes=True)
    return "dfp16" if any(name[-1] == MANTISSA for name in names) else "float32"


def load_weights(path: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The float32 variables `params` and `batch_stats` at `path`.

    Arguments:

    - `path`: what `save_weights` has written, the directory of a checkpoint (`checkpoints/seed_N/STEP`), or
      that of a seed's checkpoints (`checkpoints/seed_N`), of which the newest is read. Or a `.safetensors`
      file: what `dfpjax.serving.save_safetensors` has written, or a state dict of torchvision's or timm's
      (`dfpjax.training.models.from_torch`).
    - `like`: variables of the model, arrays or their shapes and dtypes. From a state dict for another number
      of classes, all but the last dense layer is taken, and that layer of `like`, which must be an array.

    DFP16 weights are read with the exponents and the size of blocks that they were written with.

    **Raises:** `CheckpointError` if there are none, or some do not fit or are no DFP16 weights; the message
    names those.
    """
    path = path.absolute()
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; {_HINT}")
    if path.suffix == ".safetensors":
        return _from_safetensors(path, like)
    if steps := checkpoint_steps(path):
        path /= str(steps[-1])
    tree = path / STATE if _is_tree(path / STATE) else path
    if not _is_tree(tree):
        raise CheckpointError(f"{path} holds no weights; {_HINT}")
    stored = read_tree(tree)
    if "params" not in stored or "batch_stats" not in stored:
        raise CheckpointError(f"{path} is a checkpoint of another program: it has no params and batch_stats")
    variables = {
        "params": _from_dfp16(path, ("params",), stored["params"]),
        "batch_stats": stored["batch_stats"],
    }
    _check_fit(path, variables, {name: like.get(name, {}) for name in variables})
    return variables


def _from_safetensors(path: Path, like: dict[str, Any]) -> dict[str, Any]:
    try:
        stored = dfpjax.thaw(load_safetensors(path))
        if "params" not in stored:
            return {"batch_stats": {}} | from_torch(stored, like)
    except Exception as error:  # safetensors has errors of its own
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    variables = {"batch_stats": {}} | jax.tree.map(np.asarray, stored)
    _check_fit(path, variables, {name: like.get(name, {}) for name in variables})
    return variables


def checkpoint_steps(directory: Path) -> list[int]:
    """The steps that have a finished checkpoint in a seed's directory, in ascending order."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal() and path.is_dir())


def read_tree(path: Path) -> dict[str, Any]:
    """The tree that Orbax has written at `path`, as nested dictionaries of NumPy arrays.

    **Raises:** `CheckpointError` if not all of it can be read.
    """
    try:
        # What was written as NumPy arrays is read as such.
        return ocp.PyTreeCheckpointHandler().restore(path)
    except (OSError, ValueError, KeyError) as error:
        (reason, *_) = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} cannot be read: {reason}") from error


def _metadata(path: Path) -> dict[str, Any]:
    return dict(ocp.PyTreeCheckpointHandler().metadata(path).tree)


def _is_tree(path: Path) -> bool:
    return (path / "_METADATA").is_file()


def _to_dfp16(parameter: np.ndarray, blocks: dfpjax.Blocks | None) -> np.ndarray | dict[str, np.ndarray]:
    if parameter.ndim < 2:
        return parameter
    quantized = dfpjax.quantize(parameter, blocks=blocks)
    exponent = quantized.exponent if blocks is None else quantized.block_exponent
    return to_arrays(FrozenArray((quantized.mantissa, exponent), Rows(blocks=blocks)))


def _from_dfp16(path: Path, name: tuple[str, ...], params: Any) -> Any:
    """The parameters with that name at `path`, with float32 in place of DFP16."""
    if not isinstance(params, dict):
        return params
    if _is_dfp16(params):
        try:
            tensor = dfpjax.DFPArray(params[MANTISSA], params[EXPONENT], stored_blocks(params))
            return np.asarray(tensor)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{'/'.join(name)} in {path} is no tensor in DFP16: {error}; write the weights again, with "
                f"dfpjax.training.save_weights or train.py, or restore the file {path} as it was"
            ) from error
    return {key: _from_dfp16(path, (*name, key), value) for key, value in params.items()}


def _is_dfp16(params: dict[str, Any]) -> bool:
    if {MANTISSA, EXPONENT} != set(params) - {BLOCKS}:
        return False
    return getattr(params[MANTISSA], "dtype", None) == np.int16


def _check_fit(path: Path, variables: dict[str, Any], like: dict[str, Any]) -> None:
    stored, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (variables, like))
    if problems := list(_differences(stored, wanted)):
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"the weights in {path} are not of this model and dataset: {', '.join(problems[:4])}{more}; check"
            " config.model and config.dataset"
        )


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for name, leaf in wanted.items():
        if name not in stored:
            yield f"{name} is missing"
        elif stored[name].shape != leaf.shape:
            yield f"{name} is {list(stored[name].shape)} and should be {list(leaf.shape)}"
    for name in stored:
        if name not in wanted:
            yield f"{name} is not expected"
