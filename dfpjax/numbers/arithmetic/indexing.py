"""Indexing. Exponents per slice are indexed with their slices, those of blocks with their elements. Indexing
along the first axis alone keeps blocks."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from dfpjax import _checks
from dfpjax.numbers.arithmetic.operands import Tensor, check_operand
from dfpjax.numbers.format.array import keeps_blocks

Shape = Sequence[int]


def index(x: Tensor, key) -> Tensor:
    """x[key], where the key has integers, slices, None, ... and integer arrays. Indexing follows JAX: a
    position outside the array is clamped to the array.

    Raises:
        TypeError: if the key has entries of other types, or is a boolean mask and x has exponents per slice.
        IndexError: if the key has more indices than x has axes.
    """
    check_operand("index", "x", x)
    _check_key(key, x.ndim)
    if keeps_blocks(x, 0) and _is_of_first_axis(key):
        first = key[:1] if isinstance(key, tuple) else key
        return type(x)(x.values[key], x.block_exponent[first], x.blocks)
    exponent = x.exponent
    if exponent.ndim:
        exponent = exponent[_exponent_key(key, exponent.shape)]
    return type(x)(x.values[key], exponent)


def take(x: Tensor, indices, axis: int) -> Tensor:
    """The elements at `indices`, an integer or integer array, along an axis. Indexing follows `x[...]`."""
    check_operand("take", "x", x)
    before = (slice(None),) * _checks.axis("take", "axis", axis, x.ndim)
    if not hasattr(indices, "dtype"):
        try:
            indices = np.asarray(indices)
        except (TypeError, ValueError):
            raise _checks.wrong_type("take", "indices", _INDICES, indices) from None
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise _checks.wrong_type("take", "indices", _INDICES, indices)
    return index(x, (*before, jnp.asarray(indices)))


_INDICES = "an integer or an integer array"


def _is_of_first_axis(key) -> bool:
    """Whether a valid key selects along the first axis and takes the others whole."""
    first, *others = key if isinstance(key, tuple) and key else (key,)
    is_selection = hasattr(first, "__index__") or isinstance(first, slice) or hasattr(first, "dtype")
    is_mask = isinstance(first, bool) or getattr(first, "dtype", None) == np.dtype(bool)
    return (
        is_selection
        and not is_mask
        and all(one is Ellipsis or (isinstance(one, slice) and one == slice(None)) for one in others)
    )


def _check_key(key, ndim: int) -> None:
    keys = key if isinstance(key, tuple) else (key,)
    for one in keys:
        if one is None or one is Ellipsis or isinstance(one, slice | bool):
            continue
        if hasattr(one, "dtype") and hasattr(one, "shape"):
            if jnp.issubdtype(one.dtype, jnp.integer) or one.dtype == bool:
                continue
        elif not isinstance(one, str | bytes | list) and hasattr(one, "__index__"):
            continue
        raise _checks.wrong_type(
            "index", "key", "made of integers, slices, None, ... and integer arrays", one
        )
    axes = sum(map(_axes_taken, keys))
    if axes > ndim:
        raise IndexError(f"index: key has {axes} indices, for an array of {ndim} axes")


def _axes_taken(entry) -> int:
    """Number of axes that one entry of a key indexes."""
    if entry is None or entry is Ellipsis or isinstance(entry, bool):
        return 0
    is_mask = getattr(entry, "dtype", None) == np.dtype(bool)
    return entry.ndim if is_mask else 1


def _exponent_key(key, exponent_shape: Shape) -> tuple:
    """The key that selects the exponents of x[key]. On an axis that shares its exponent, any index becomes an
    index into extent 1."""
    key = key if isinstance(key, tuple) else (key,)
    if any(isinstance(entry, bool) or jnp.issubdtype(getattr(entry, "dtype", int), bool) for entry in key):
        raise TypeError(
            "index: key must not be a boolean mask where x has exponents per slice; use integer indices"
        )
    consumed = sum(entry is not None and entry is not Ellipsis for entry in key)
    rest = (slice(None),) * (len(exponent_shape) - consumed)
    if not any(entry is Ellipsis for entry in key):
        key = (*key, Ellipsis)
    where = next(position for position, entry in enumerate(key) if entry is Ellipsis)
    extents = iter(exponent_shape)
    return tuple(
        entry if entry is None or next(extents) > 1 else _shared(entry)
        for entry in (*key[:where], *rest, *key[where + 1 :])
    )


def _shared(entry):
    """An index of the same kind into an axis of extent 1."""
    if isinstance(entry, slice):
        return slice(None)
    return np.zeros((1,) * np.ndim(entry), int) if np.ndim(entry) or hasattr(entry, "dtype") else 0
