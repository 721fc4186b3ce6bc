"""The largest magnitude of a tensor, which decides its exponent."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from dfpjax import _compat

LEAST_NATIVE = 1 << 15
"""Numbers from which on a pass in native code is worth its call."""


def largest_magnitude_bits(x: jax.Array, axes: tuple[int, ...], *, native: bool = False) -> jax.Array:
    """Bits of max|x| over `axes`, those of a NaN or an infinity if there is one.

    Arguments:
        x: float32.
        axes: as many as there are, or some.
        native: whether a platform's native code may do it, where it has some for the whole of a large tensor.
            The exponent is the same.

    Returns:
        int32 of x's rank, with extent 1 on the axes.
    """
    if native and len(axes) == x.ndim and x.size >= LEAST_NATIVE:
        return largest_magnitude_p.bind(x).reshape((1,) * x.ndim)
    return _in_hlo(x, axes)


def _in_hlo(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """A maximum of the bits would be all there is to it, but XLA for CPU has fast reductions for float32
    alone (8 against 60 ms for 100 MB, jaxlib 0.10), and they skip NaNs and flush subnormal numbers. So NaNs
    are looked for by a sum, to which a finite number contributes nothing, and the bits are taken only where
    float32 would be too coarse.
    """
    largest = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    bits = lax.cond(
        jnp.any(largest < np.float32(2.0**-100)),
        lambda x, largest: jnp.max(_magnitudes(x), axes, keepdims=True, initial=0),
        lambda x, largest: lax.bitcast_convert_type(largest, jnp.int32),
        x,
        largest,
    )
    all_finite = jnp.sum(x - x, axes, keepdims=True) == 0  # for x · 0 XLA would write a tensor of zeros
    return jnp.where(all_finite, bits, np.int32(0x7FC00000))


def _magnitudes(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32) & np.int32(0x7FFFFFFF)


# Bound only while `quantize_p` is lowered, so it needs no rules but these. The layer that has native code
# registers its lowering for the platform.
largest_magnitude_p = Primitive("dfp_largest_magnitude")


@largest_magnitude_p.def_abstract_eval
def _abstract_eval(x):
    return _compat.result_aval(x, (), np.dtype("int32"))


def largest_magnitude_in_hlo(x: jax.Array) -> jax.Array:
    """What `largest_magnitude_p` computes: int32[]."""
    return _in_hlo(x, tuple(range(x.ndim))).reshape(())


mlir.register_lowering(largest_magnitude_p, mlir.lower_fun(largest_magnitude_in_hlo, multiple_results=False))
