"""Functions that select values by comparing them: their mantissas, where these have the same exponent."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dfpjax import _checks
from dfpjax.numbers.arithmetic.comparison import compared
from dfpjax.numbers.arithmetic.exponents import aligned, dominance, settled, widened
from dfpjax.numbers.arithmetic.operands import (
    Tensor,
    check_operand,
    check_operands,
    check_rounding,
    common_kind,
)
from dfpjax.numbers.arithmetic.straight_through import straight_through
from dfpjax.numbers.arithmetic.structure import padded
from dfpjax.numbers.format.dtype import from_integers
from dfpjax.numbers.format.scaling import NONFINITE_THRESHOLD


def relu(x: Tensor) -> Tensor:
    """max(x, 0), exactly, with x's type, shape and exponent. The derivative at 0 is 0."""
    check_operand("relu", "x", x)
    zero = from_integers(jnp.zeros_like(x.mantissa))
    return x.with_mantissa(lax.select(x.mantissa > 0, x.values, zero))


def maximum(
    a: Tensor, b: Tensor, *, rounding: str = "nearest", seed: int | jax.Array | None = None
) -> Tensor:
    """The larger of a and b, element by element, aligned as in `add`. Arguments, type and shape of the result
    and errors are those of `add`."""
    check_operands("maximum", a=a, b=b)
    seed = check_rounding("maximum", rounding, seed)
    return straight_through(functools.partial(_maximum, rounding=rounding), jnp.maximum, (a, b), seed)


def max_pool(
    x: Tensor,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Tensor:
    """Exact maximum over windows, with the arguments of `flax.linen.max_pool`.

    The derivative goes to the first of the largest elements of each window. Padding contributes nothing. A
    window with a NaN gives NaN.

    Arguments:
        x: DFPArray or DFP32Array of shape (…, *spatial, features).
        window_shape: extent of the window along each spatial axis.
        strides: step between windows along each spatial axis; None for 1.
        padding: "VALID", "SAME" or a pair (before, after) for each spatial axis, with numbers less than the
            window's extent.

    Returns:
        Tensor of x's type, with the exponent of x. Where x's exponents vary along a spatial axis, each
        element has the exponent of the one that was selected.

    Raises:
        TypeError: if `x` is not a tensor in dynamic fixed point, or the other arguments are not made of
            integers.
        ValueError: if the other arguments do not fit x's shape or each other.
    """
    check_operand("max_pool", "x", x)
    window = _checks.integers("max_pool", "window_shape", window_shape)
    strides = (1,) * len(window) if strides is None else _checks.integers("max_pool", "strides", strides)
    first = x.ndim - 1 - len(window)
    if first < 0 or len(strides) != len(window) or min(window + strides, default=1) < 1:
        raise ValueError(
            f"max_pool: window_shape {window} and strides {strides} must be positive and have one extent for "
            f"each spatial axis, of which shape {x.shape} has at most {max(x.ndim - 1, 0)}"
        )
    spatial = x.shape[first:-1]
    if isinstance(padding, str):
        _checks.choice("max_pool", "padding", padding.upper(), ("VALID", "SAME"))
        padding = lax.padtype_to_pads(spatial, window, strides, padding)
    padding = _pairs(padding)
    if len(padding) != len(window) or any(
        not 0 <= width < w for pair, w in zip(padding, window, strict=True) for width in pair
    ):
        raise ValueError(
            "max_pool: padding must be a pair for each spatial axis, from 0 to less than the window's extent "
            f"(window_shape {window}), got {padding}"
        )
    exponent = x.exponent
    varies = any(extent > 1 for extent in exponent.shape[first:-1])
    out = x.of(x.values, jnp.broadcast_to(exponent, x.shape) if varies else exponent)
    # Pool the last axis first, so that the first of equal elements, in row-major order, wins.
    for position in reversed(range(len(window))):
        sizes = window[position], strides[position], padding[position]
        out = _pool_axis(out, first + position, *sizes, varies)
    return out


def _pairs(padding) -> tuple[tuple[int, int], ...]:
    wanted = '"VALID", "SAME" or a pair of integers for each spatial axis'
    try:
        pairs = tuple(_checks.integers("max_pool", "padding", pair, wanted) for pair in padding)
    except TypeError:
        pairs = None
    if pairs is None or any(len(pair) != 2 for pair in pairs):
        raise _checks.wrong_type("max_pool", "padding", wanted, padding)
    return pairs


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _pool_axis(
    x: Tensor, axis: int, window: int, stride: int, padding: tuple[int, int], varies: bool
) -> Tensor:
    """Maximum over windows along one axis. If exponents vary, x has one for each element."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = padding
    values = padded(x.values, jnp.iinfo(x.dtype.integer).min, widths)  # less than every mantissa
    last = values.shape[axis] - window
    if last < 0:
        raise ValueError(
            f"max_pool: the window's extent {window} exceeds axis {axis}, padded to {values.shape[axis]}"
        )
    exponent = x.exponent
    if varies:
        exponent = jnp.pad(
            exponent, widths, constant_values=NONFINITE_THRESHOLD - 1
        )  # the largest finite one

    def at(offset):
        """One element of each window."""
        start, end = offset, offset + last + 1
        own = lax.slice_in_dim(exponent, start, end, stride, axis) if varies else exponent
        return x.of(lax.slice_in_dim(values, start, end, stride, axis), own)

    largest = at(0)
    for offset in range(1, window):
        other = at(offset)
        if varies:
            is_larger = _is_larger(other, largest)
            own = lax.select(is_larger, other.exponent, largest.exponent)
        else:
            is_larger, own = other.mantissa > largest.mantissa, exponent
        largest = x.of(lax.select(is_larger, other.values, largest.values), own)
    return largest


def _is_larger(a: Tensor, b: Tensor) -> jax.Array:
    """a > b, where a NaN is larger than every other value."""
    a_is_nan, b_is_nan = a.exponent >= NONFINITE_THRESHOLD, b.exponent >= NONFINITE_THRESHOLD
    return compared("greater", a, b) | (a_is_nan & ~b_is_nan)


@functools.partial(jax.jit, static_argnames="rounding")
def _maximum(a, b, seed, *, rounding):
    kind = common_kind(a, b)
    a, b = (x if isinstance(x, kind) else widened(x) for x in (a, b))
    exponent = jnp.maximum(dominance(a), dominance(b))
    larger = jnp.maximum(*(aligned(x, exponent, rounding, seed) for x in (a, b)))
    return settled(kind, larger, exponent)
