"""Functions that select values by comparing mantissas, which have the same order as the values."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dfpjax import _checks
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
from dfpjax.numbers.format.dtype import from_integers, to_integers


def relu(x: Tensor) -> Tensor:
    """max(x, 0), exactly, with x's type, shape and exponent. The derivative at 0 is 0."""
    check_operand("relu", "x", x)
    zero = from_integers(jnp.zeros_like(x.mantissa))
    return type(x)(lax.select(x.mantissa > 0, x.values, zero), x.exponent)


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

    The derivative goes to the first of the largest elements of each window. Padding contributes nothing.

    Arguments:
        x: DFPArray or DFP32Array of shape (…, *spatial, features). Its exponents must not vary along the
            spatial axes.
        window_shape: extent of the window along each spatial axis.
        strides: step between windows along each spatial axis; None for 1.
        padding: "VALID", "SAME" or a pair (before, after) for each spatial axis, with numbers less than the
            window's extent.

    Returns:
        Tensor of x's type, with the exponent of x.

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
    exponent = x.exponent
    if any(extent > 1 for extent in exponent.shape[first:-1]):
        raise ValueError(
            f"max_pool: the exponents of x (shape {x.exponent.shape}) vary along the spatial axes; quantize "
            "it with one exponent along them"
        )
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
    values = x.values
    # Pool the last axis first, so that the first of equal elements, in row-major order, wins.
    for position in reversed(range(len(window))):
        values = _pool_axis(values, first + position, window[position], strides[position], padding[position])
    return type(x)(values, exponent)


def _pairs(padding) -> tuple[tuple[int, int], ...]:
    wanted = '"VALID", "SAME" or a pair of integers for each spatial axis'
    try:
        pairs = tuple(_checks.integers("max_pool", "padding", pair, wanted) for pair in padding)
    except TypeError:
        pairs = None
    if pairs is None or any(len(pair) != 2 for pair in pairs):
        raise _checks.wrong_type("max_pool", "padding", wanted, padding)
    return pairs


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _pool_axis(values: jax.Array, axis: int, window: int, stride: int, padding: tuple[int, int]) -> jax.Array:
    widths = [(0, 0)] * values.ndim
    widths[axis] = padding
    values = padded(values, jnp.iinfo(values.dtype.integer).min, widths)  # less than every mantissa
    last = values.shape[axis] - window
    if last < 0:
        raise ValueError(
            f"max_pool: the window's extent {window} exceeds axis {axis}, padded to {values.shape[axis]}"
        )
    largest = lax.slice_in_dim(values, 0, last + 1, stride, axis)
    for offset in range(1, window):
        other = lax.slice_in_dim(values, offset, offset + last + 1, stride, axis)
        largest = lax.select(to_integers(other) > to_integers(largest), other, largest)
    return largest


@functools.partial(jax.jit, static_argnames="rounding")
def _maximum(a, b, seed, *, rounding):
    kind = common_kind(a, b)
    a, b = (x if isinstance(x, kind) else widened(x) for x in (a, b))
    exponent = jnp.maximum(dominance(a), dominance(b))
    larger = jnp.maximum(*(aligned(x, exponent, rounding, seed) for x in (a, b)))
    return settled(kind, larger, exponent)
