"""Frozen weights as plain arrays, and in files.

As plain arrays, a frozen leaf is a dictionary: `mantissa`, int16 of the leaf's shape; `exponent`, int32, one
number or one for each block; and `blocks`, int32[2], the rows and columns of a block, unless there is one
exponent. This is what `train.py` writes with `--config.export_weights=dfp16`, and what Orbax and safetensors
can write.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.frozen import FrozenArray, Rows, is_frozen

MANTISSA, EXPONENT, BLOCKS = "mantissa", "exponent", "blocks"
_BITS = "bits"


def to_arrays(variables: Any) -> Any:
    """A tree whose frozen leaves are dictionaries of NumPy arrays, to be written by Orbax or another library.

    Arguments:
        variables: a pytree in which some leaves are `FrozenArray`s.

    Returns:
        The pytree with a dictionary in place of each: `mantissa`, `exponent` and `blocks`, as above. Other
        leaves stay.
    """
    return jax.tree.map(_to_arrays, variables, is_leaf=is_frozen)


def from_arrays(tree: Any) -> Any:
    """The tree of which `to_arrays` made another one, or `train.py` its weights in DFP16.

    Arguments:
        tree: nested dictionaries (and other containers) of arrays.

    Returns:
        The tree with a `FrozenArray` in place of each dictionary of `mantissa`, `exponent` and `blocks`.
        `dfpjax.freeze` packs its matrices.

    Raises:
        ValueError: if exponents do not fit the mantissas they stand beside.
    """
    return jax.tree.map(lambda x: _from_arrays(x) if _is_stored(x) else x, tree, is_leaf=_is_stored)


def save_safetensors(path: str | Path, variables: Any) -> None:
    """Write a tree of dictionaries, with frozen leaves or without, as a safetensors file.

    A frozen leaf at `a/b` is the tensors `a/b/mantissa`, `a/b/exponent` and `a/b/blocks`.

    Arguments:
        path: the file, which is replaced if it exists.
        variables: nested dictionaries of arrays and `FrozenArray`s.

    Raises:
        ImportError: if safetensors is not installed: `pip install "dfpjax[safetensors]"`.
        TypeError: if the tree has containers other than dictionaries with strings as keys.
    """
    numpy = _safetensors("save_safetensors")
    flat: dict[str, np.ndarray] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(to_arrays(variables))[0]:
        names = [getattr(key, "key", None) for key in keys]
        if not names or not all(isinstance(name, str) and "/" not in name for name in names):
            raise TypeError(
                "save_safetensors: variables must be nested dictionaries whose keys are strings without "
                f"slashes, got {jax.tree_util.keystr(keys)}"
            )
        flat["/".join(names)] = np.ascontiguousarray(leaf)
    numpy.save_file(flat, str(path), {"format": "dfpjax", "version": json.dumps(1)})


def load_safetensors(path: str | Path) -> dict[str, Any]:
    """Read what `save_safetensors` has written, as nested dictionaries of NumPy arrays and `FrozenArray`s.

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if exponents do not fit the mantissas they stand beside.
    """
    tree: dict[str, Any] = {}
    for name, tensor in _safetensors("load_safetensors").load_file(str(path)).items():
        *inside, last = name.split("/")
        node = tree
        for key in inside:
            node = node.setdefault(key, {})
        node[last] = tensor
    return from_arrays(tree)


def _safetensors(function: str):
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f'{function} needs safetensors: pip install "dfpjax[safetensors]"') from error
    return safetensors.numpy


def _to_arrays(leaf: Any) -> Any:
    if not is_frozen(leaf):
        return leaf
    form = leaf.form
    of_one = form.rows_of
    stacked = len(leaf.shape) - (leaf.arrays[0].ndim if isinstance(form, Rows) else len(form.shape))
    mantissa, exponent = (jax.vmap(of_one) if stacked else of_one)(*leaf.arrays)
    if stacked:  # of one row each
        exponent = exponent[:, :, 0, :]
    stored = {MANTISSA: np.asarray(mantissa), EXPONENT: np.asarray(exponent)}
    if form.blocks is not None:
        rows, _ = form.blocks.size(leaf.shape)
        stored[BLOCKS] = np.asarray([rows, form.blocks.columns], np.int32)
    if form.bits != 16:
        stored[_BITS] = np.asarray(form.bits, np.int32)
    return stored


def _is_stored(node: Any) -> bool:
    if not isinstance(node, Mapping) or set(node) - {BLOCKS, _BITS} != {MANTISSA, EXPONENT}:
        return False
    return getattr(node[MANTISSA], "dtype", None) == np.int16


def _from_arrays(node: Mapping[str, Any]) -> FrozenArray:
    mantissa, exponent = jnp.asarray(node[MANTISSA]), jnp.asarray(node[EXPONENT], jnp.int32)
    blocks = stored_blocks(node)
    if blocks is not None:
        default = Blocks(columns=blocks.columns)
        blocks = default if default.size(mantissa.shape) == blocks.size(mantissa.shape) else blocks
    wanted = () if blocks is None else blocks.counts(mantissa.shape)
    if exponent.shape != wanted and exponent.size != 1:
        raise ValueError(
            f"from_arrays: mantissas of shape {mantissa.shape} in blocks ({blocks}) need exponents of shape "
            f"{wanted}, got {exponent.shape}"
        )
    bits = int(node.get(_BITS, 16))
    return FrozenArray((mantissa, exponent.reshape(wanted)), Rows(blocks=blocks, bits=bits))


def stored_blocks(node: Mapping[str, Any]) -> Blocks | None:
    """The size of blocks that stands beside mantissas and exponents; None if there is none.

    Raises:
        ValueError: if it is not the rows and columns of a block.
    """
    if BLOCKS not in node:
        return None
    stored = np.asarray(node[BLOCKS])
    if stored.shape != (2,) or not np.issubdtype(stored.dtype, np.integer):
        raise ValueError(
            f"{BLOCKS} must be the rows and columns of a block, int32[2], got "
            f"{stored.dtype}{list(stored.shape)}"
        )
    rows, columns = stored.tolist()
    return Blocks(rows=rows, columns=columns)
