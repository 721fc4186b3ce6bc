"""Functions that rearrange values. They leave mantissas unchanged, except where joining aligns them.

An exponent that an axis shares stays shared. Exponents per slice move with their slices, those of blocks with
their elements.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax import _checks
from dfpjax.numbers.arithmetic.exponents import aligned, dominance, settled, widened
from dfpjax.numbers.arithmetic.operands import Tensor, check_operand, check_rounding, common_kind
from dfpjax.numbers.arithmetic.straight_through import straight_through
from dfpjax.numbers.format.array import keeps_blocks
from dfpjax.numbers.format.scaling import MIN_FLOAT_EXPONENT

Shape = Sequence[int]


def reshape(x: Tensor, shape: int | Shape) -> Tensor:
    """`numpy.reshape` in row-major order.

    If reshaping merges an axis along which exponents vary with one that shares them, the exponents are
    repeated along the latter.
    """
    check_operand("reshape", "x", x)
    values = _arranged("reshape", x, lambda values: jnp.reshape(values, _shape("reshape", shape)))
    exponent = x.exponent
    if exponent.ndim:
        exponent = _reshaped_exponent(exponent, x.shape, values.shape)
    return type(x)(values, exponent)


def ravel(x: Tensor) -> Tensor:
    """x as a vector, in row-major order."""
    check_operand("ravel", "x", x)
    return reshape(x, (x.size,))


def transpose(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """`numpy.transpose`: the axes in the given order, or reversed if `axes` is None."""
    check_operand("transpose", "x", x)
    if axes is not None:
        axes = _checks.axes("transpose", "axes", axes, x.ndim)
        if len(axes) != x.ndim:
            raise ValueError(f"transpose: axes must name each of {x.ndim} axes, got {axes}")
    return _both(x, lambda array: jnp.transpose(array, axes))


def swapaxes(x: Tensor, axis1: int, axis2: int) -> Tensor:
    """`numpy.swapaxes`."""
    check_operand("swapaxes", "x", x)
    axis1, axis2 = (
        _checks.axis("swapaxes", name, axis, x.ndim) for name, axis in (("axis1", axis1), ("axis2", axis2))
    )
    return _both(x, lambda array: jnp.swapaxes(array, axis1, axis2))


def moveaxis(x: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """`numpy.moveaxis`."""
    check_operand("moveaxis", "x", x)
    source = _checks.axes("moveaxis", "source", source, x.ndim)
    destination = _checks.axes("moveaxis", "destination", destination, x.ndim)
    if len(source) != len(destination):
        raise ValueError(
            f"moveaxis: source and destination must name as many axes, got {source} and {destination}"
        )
    return _both(x, lambda array: jnp.moveaxis(array, source, destination))


def expand_dims(x: Tensor, axis: int | Sequence[int]) -> Tensor:
    """`numpy.expand_dims`."""
    check_operand("expand_dims", "x", x)
    new = _checks.integers("expand_dims", "axis", axis)
    axes = _checks.axes("expand_dims", "axis", new, x.ndim + len(new))
    return _both(x, lambda array: jnp.expand_dims(array, axes))


def squeeze(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """`numpy.squeeze`: removes the given axes of extent 1, or all of them if `axis` is None."""
    check_operand("squeeze", "x", x)
    if axis is None:
        axes = tuple(position for position, extent in enumerate(x.shape) if extent == 1)
    else:
        axes = _checks.axes("squeeze", "axis", axis, x.ndim)
    if any(x.shape[position] != 1 for position in axes):
        raise ValueError(f"squeeze: axis {axis} of shape {x.shape} has an extent other than 1")
    return _both(x, lambda array: jnp.squeeze(array, axes))


def flip(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """`numpy.flip`: reverses the given axes, or all of them if `axis` is None."""
    check_operand("flip", "x", x)
    axes = None if axis is None else _checks.axes("flip", "axis", axis, x.ndim)
    return _both(x, lambda array: jnp.flip(array, axes))


def broadcast_to(x: Tensor, shape: int | Shape) -> Tensor:
    """`numpy.broadcast_to`."""
    check_operand("broadcast_to", "x", x)
    shape = _shape("broadcast_to", shape)
    values = _arranged("broadcast_to", x, lambda values: jnp.broadcast_to(values, shape))
    return type(x)(values, x.exponent)


def split_exponent(x: Tensor, axis: int | Sequence[int] = 0) -> Tensor:
    """The same values, with an exponent for each slice along one or several axes.

    `jax.lax.scan` and `jax.lax.map` take slices of mantissas and exponents alike, so the exponents need the
    first axis: `jax.lax.map(f, split_exponent(x))`. Exponents of blocks have it already, unless x has no
    other axis. If the first axis alone is named, such exponents stay; otherwise each element gets its own.
    """
    check_operand("split_exponent", "x", x)
    axes = _checks.axes("split_exponent", "axis", axis, x.ndim)
    if axes == (0,) and keeps_blocks(x, 0):
        return x
    exponent = x.exponent
    exponent = exponent if exponent.ndim else jnp.reshape(exponent, (1,) * x.ndim)
    extents = [x.shape[one] if one in axes else extent for one, extent in enumerate(exponent.shape)]
    return type(x)(x.values, jnp.broadcast_to(exponent, extents))


def pad(x: Tensor, pad_width) -> Tensor:
    """`numpy.pad` with zeros. Along an axis where exponents vary, zeros get the smallest exponent.

    Arguments:
        x: DFPArray or DFP32Array.
        pad_width: one number or one pair (before, after) for all axes, or a pair for each axis.

    Raises:
        TypeError: if `x` is not a tensor in dynamic fixed point, or `pad_width` is not made of integers.
        ValueError: if `pad_width` has another form or a negative number.
    """
    check_operand("pad", "x", x)
    widths = _pad_widths(pad_width, x.ndim)
    values = padded(x.values, 0, widths)
    exponent = x.exponent
    if exponent.ndim:
        own = np.asarray(exponent.shape) > 1
        exponent = jnp.pad(exponent, widths * own[:, None], constant_values=_smallest_exponent(x))
    return type(x)(values, exponent)


def padded(values: jax.Array, fill: int, widths: Sequence[tuple[int, int]]) -> jax.Array:
    """Mantissas padded with `fill`. (JAX 0.10.2 cannot lower `lax.pad` for elements that have axes.)"""

    def block(axis, width):
        return jnp.full((*values.shape[:axis], int(width), *values.shape[axis + 1 :]), fill, values.dtype)

    for axis, (before, after) in enumerate(widths):
        if before or after:
            values = lax.concatenate([block(axis, before), values, block(axis, after)], axis)
    return values


def concatenate(
    arrays: Sequence[Tensor],
    axis: int = 0,
    *,
    rounding: str = "nearest",
    seed: int | jax.Array | None = None,
) -> Tensor:
    """Join tensors along an axis.

    The tensors are aligned as in `add`: E is the largest exponent, and the mantissas of the other tensors are
    shifted right. But if the exponents of any tensor vary along the axis, or are those of blocks, every
    tensor keeps its exponents and nothing is shifted.

    Arguments:
        arrays: DFPArrays or DFP32Arrays. If any is a DFP32Array, so is the result.
        axis: the axis along which to join.
        rounding, seed: as for `add`.

    Raises:
        TypeError: if an element of `arrays` is not a tensor in dynamic fixed point, or `seed` is not as for
            `add`.
        ValueError: if `arrays` is empty, ranks or the extents of other axes differ, or `rounding` or `seed`
            is not as for `add`.
    """
    arrays = _check_arrays("concatenate", arrays)
    axis = _checks.axis("concatenate", "axis", axis, arrays[0].ndim)
    if len({(*x.shape[:axis], *x.shape[axis + 1 :]) for x in arrays}) > 1:
        raise ValueError(
            f"concatenate: arrays must have the same extents but along axis {axis}, got shapes "
            f"{[x.shape for x in arrays]}"
        )
    seed = check_rounding("concatenate", rounding, seed)
    return _joined(arrays, axis, rounding, seed, _any_has_blocks(arrays))


def stack(
    arrays: Sequence[Tensor],
    axis: int = 0,
    *,
    rounding: str = "nearest",
    seed: int | jax.Array | None = None,
) -> Tensor:
    """Join tensors of the same shape along a new axis. Arguments and errors are those of `concatenate`."""
    arrays = _check_arrays("stack", arrays)
    axis = _checks.axis("stack", "axis", axis, arrays[0].ndim + 1)
    if len({x.shape for x in arrays}) > 1:
        raise ValueError(f"stack: arrays must have the same shape, got shapes {[x.shape for x in arrays]}")
    seed = check_rounding("stack", rounding, seed)
    expanded = tuple(expand_dims(x, axis) for x in arrays)
    return _joined(expanded, axis, rounding, seed, _any_has_blocks(arrays))


def _both(x: Tensor, change) -> Tensor:
    """Apply a change of axes to the mantissas and, unless it is a scalar, to the exponent."""
    exponent = x.exponent
    return type(x)(change(x.values), change(exponent) if exponent.ndim else exponent)


def _shape(function: str, shape) -> tuple[int, ...]:
    return _checks.integers(function, "shape", shape)


def _arranged(function: str, x: Tensor, arrange) -> jax.Array:
    """The mantissas in another shape, or an error that names the function and x's shape."""
    try:
        return arrange(x.values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{function}: shape does not fit x's, {x.shape}: {error}") from None


def _any_has_blocks(arrays: Sequence[Tensor]) -> bool:
    return any(x.blocks is not None for x in arrays)


def _joined(arrays: tuple[Tensor, ...], axis: int, rounding: str, seed, keep: bool) -> Tensor:
    """Valid arrays joined along an axis.

    Arguments:
        seed: uint32 or None.
        keep: whether each keeps its exponents, even if none varies along the axis.
    """
    join = functools.partial(_concatenate, axis=axis, rounding=rounding, keep=keep)
    return straight_through(join, lambda *values: jnp.concatenate(values, axis), arrays, seed)


def _pad_widths(pad_width, ndim: int) -> np.ndarray:
    """`pad_width` as int[ndim, 2]."""
    wanted = "an integer, a pair, or a pair for every axis"
    try:
        widths = np.asarray(pad_width)
    except (TypeError, ValueError):  # JAX raises these for tracers, NumPy for ragged lists
        raise _checks.wrong_type("pad", "pad_width", wanted, pad_width) from None
    if not np.issubdtype(widths.dtype, np.integer) and widths.size:
        raise _checks.wrong_type("pad", "pad_width", wanted, pad_width)
    try:
        widths = np.broadcast_to(widths.astype(int), (ndim, 2))
    except ValueError:
        raise _checks.wrong_value("pad", "pad_width", f"{wanted} of {ndim}", pad_width) from None
    if (widths < 0).any():
        raise ValueError(f"pad: pad_width must not be negative, got {pad_width}")
    return widths


def _smallest_exponent(x: Tensor) -> int:
    """The exponent of an all-zero tensor."""
    return MIN_FLOAT_EXPONENT - (8 * x.dtype.itemsize - 2)


def _check_arrays(function: str, arrays: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not isinstance(arrays, Iterable) or isinstance(arrays, Tensor | str | jax.Array | np.ndarray):
        raise _checks.wrong_type(function, "arrays", "a sequence of DFPArrays and DFP32Arrays", arrays)
    arrays = tuple(arrays)
    for position, x in enumerate(arrays):
        check_operand(function, f"arrays[{position}]", x)
    if not arrays or len({x.ndim for x in arrays}) > 1:
        raise ValueError(
            f"{function}: needs one or more arrays of the same rank, got shapes {[x.shape for x in arrays]}"
        )
    return arrays


@functools.partial(jax.jit, static_argnames=("axis", "rounding", "keep"))
def _concatenate(*operands, axis, rounding, keep):
    *arrays, seed = operands
    kind = common_kind(*arrays)
    arrays = [x if isinstance(x, kind) else widened(x) for x in arrays]
    if keep or any(x.exponent.shape[axis : axis + 1] not in ((), (1,)) for x in arrays):
        return kind(
            jnp.concatenate([x.mantissa for x in arrays], axis),
            jnp.concatenate(_exponents_along(axis, arrays), axis),
        )
    exponent = functools.reduce(jnp.maximum, map(dominance, arrays))
    seeds = [None if seed is None else seed + position for position in range(len(arrays))]
    mantissas = [aligned(x, exponent, rounding, seed) for x, seed in zip(arrays, seeds, strict=True)]
    return settled(kind, jnp.concatenate(mantissas, axis), exponent)


def _exponents_along(axis: int, arrays: Sequence[Tensor]) -> list[jax.Array]:
    """The exponents of arrays, one for each position along the axis and with equal extents otherwise."""
    exponents = [jnp.reshape(x.exponent, x.exponent.shape or (1,) * x.ndim) for x in arrays]
    others = jnp.broadcast_shapes(*((*e.shape[:axis], 1, *e.shape[axis + 1 :]) for e in exponents))
    return [
        jnp.broadcast_to(e, (*others[:axis], x.shape[axis], *others[axis + 1 :]))
        for e, x in zip(exponents, arrays, strict=True)
    ]


def _reshaped_exponent(exponent: jax.Array, old: Shape, new: Shape) -> jax.Array:
    if 0 in old:
        return jnp.zeros((1,) * len(new), jnp.int32)
    spread, reshaped = [1] * len(old), [1] * len(new)
    for before, after in _groups(old, new):
        if max(exponent.shape[before], default=1) > 1:
            spread[before], reshaped[after] = old[before], new[after]
    return jnp.broadcast_to(exponent, spread).reshape(reshaped)


def _groups(old: Shape, new: Shape) -> Iterator[tuple[slice, slice]]:
    """The shortest runs of axes that contain the same elements before and after a reshape."""
    i = j = 0
    while i < len(old) or j < len(new):
        start = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (have := int(np.prod(old[start[0] : i]))) != (want := int(np.prod(new[start[1] : j]))):
            i, j = (i + 1, j) if have < want else (i, j + 1)
        yield slice(start[0], i), slice(start[1], j)
