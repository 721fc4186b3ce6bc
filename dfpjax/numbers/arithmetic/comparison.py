"""Exact comparison of values, element by element, without alignment or rounding.

Each number is split into its sign, the position of its leading bit, and its bits from there on. A tensor in
dynamic fixed point compares with another one, an array or a number. As in NumPy, a NaN is neither equal to,
less than nor greater than anything.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.numbers.arithmetic.exponents import integers
from dfpjax.numbers.arithmetic.operands import Tensor, check_shapes
from dfpjax.numbers.format.scaling import NONFINITE_THRESHOLD

_INFINITE = np.int32(2**30)
"""The position that stands for infinity, above the leading bit of every finite number."""


class _Parts(NamedTuple):
    """sign · bits · 2^position. The highest bit of `bits` is set, except for zero."""

    sign: jax.Array
    """int32: −1, 0 or 1."""
    position: jax.Array
    bits: jax.Array
    is_nan: jax.Array


def compared(function: str, a: Tensor, b) -> jax.Array:
    """The comparison of a and b by `equal`, `less`, `less_equal`, … of `jax.numpy`.

    Arguments:
        function: the comparison's name in `jax.numpy`.
        a: DFPArray or DFP32Array.
        b: DFPArray or DFP32Array, or a real array or number.

    Returns:
        bool of the broadcast shape.

    Raises:
        TypeError: if `b` is complex or not an array of numbers.
        ValueError: if the shapes do not broadcast.
    """
    if not isinstance(b, Tensor):
        b = jnp.asarray(b)
        if not (jnp.issubdtype(b.dtype, jnp.floating) or jnp.issubdtype(b.dtype, jnp.integer)):
            if b.dtype != bool:
                raise TypeError(f"{function}: b must be an array of real numbers, got dtype {b.dtype}")
            b = b.astype(jnp.int32)
    check_shapes(function, a=a, b=b)
    less, same, ordered = _order(a, b)
    results: dict[str, Callable[[], jax.Array]] = {
        "equal": lambda: same & ordered,
        "not_equal": lambda: ~(same & ordered),
        "less": lambda: less & ordered,
        "less_equal": lambda: (less | same) & ordered,
        "greater": lambda: ~(less | same) & ordered,
        "greater_equal": lambda: ~less & ordered,
    }
    return results[function]()


@jax.jit
def _order(a: Tensor, b) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(a < b, a = b, neither is NaN), element by element. The first two mean nothing where a or b is NaN."""
    word = np.uint64 if b.dtype.itemsize > 4 else np.uint32
    a, b = _parts(a, word), _parts(b, word)
    same = (a.sign == b.sign) & (a.position == b.position) & (a.bits == b.bits)
    smaller = (a.position < b.position) | ((a.position == b.position) & (a.bits < b.bits))
    less = (a.sign < b.sign) | ((a.sign == b.sign) & ~same & (smaller == (a.sign > 0)))
    return less, same, ~(a.is_nan | b.is_nan)


def _parts(x, word: type) -> _Parts:
    if isinstance(x, Tensor):
        exponent = x.exponent
        is_nan = jnp.broadcast_to(exponent >= NONFINITE_THRESHOLD, x.shape)
        return _normalized(integers(x), exponent, is_nan, word)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return _normalized(x, np.int32(0), jnp.zeros(x.shape, bool), word)
    if x.dtype.itemsize < 4:
        x = x.astype(jnp.float32)
    # From the bits, because XLA flushes subnormal numbers to zero.
    fraction_bits, kind = (52, jnp.int64) if x.dtype == np.float64 else (23, jnp.int32)
    encoded = lax.bitcast_convert_type(x, kind)
    biased = (encoded >> fraction_bits) & (2 ** (8 * x.dtype.itemsize - 1 - fraction_bits) - 1)
    fraction = encoded & (2**fraction_bits - 1)
    significand = jnp.where(biased == 0, fraction, fraction | (1 << fraction_bits))
    bias = 2 ** (8 * x.dtype.itemsize - 2 - fraction_bits) - 1
    exponent = (jnp.maximum(biased, 1) - bias - fraction_bits).astype(jnp.int32)
    is_special = biased == 2 * bias + 1
    parts = _normalized(
        jnp.where(encoded < 0, -significand, significand), exponent, is_special & (fraction != 0), word
    )
    return parts._replace(position=jnp.where(is_special, _INFINITE, parts.position))


def _normalized(number: jax.Array, exponent, is_nan: jax.Array, word: type) -> _Parts:
    """The parts of number · 2^exponent, where `number` is an integer array."""
    is_signed = jnp.issubdtype(number.dtype, jnp.signedinteger)
    sign = jnp.sign(number).astype(jnp.int32) if is_signed else (number > 0).astype(jnp.int32)
    # For the smallest integer too: its bits, read as unsigned, are its magnitude.
    bits = number.astype(word)
    bits = jnp.where(sign < 0, ~bits + word(1), bits)
    leading = lax.clz(bits)
    position = jnp.where(sign == 0, np.int32(0), exponent - leading.astype(jnp.int32))
    return _Parts(sign, position, jnp.where(sign == 0, word(0), bits << leading), is_nan)
