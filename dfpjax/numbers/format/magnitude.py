"""The largest magnitude of a tensor, which decides its exponent."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from dfpjax import _compat, _symbolic
from dfpjax.numbers.format.explicit import lower_fun

LEAST_NATIVE = 1 << 15
"""Size from which a native pass is faster than HLO, despite the cost of the call."""


def largest_magnitude_bits(x: jax.Array, axes: tuple[int, ...], *, native: bool = False) -> jax.Array:
    """Bits of max|x| over `axes`. If x has a NaN or an infinity there, the bits represent one of them.

    Arguments:
        x: float32.
        axes: all or some axes of x.
        native: whether the maximum of a large tensor over all axes may use native code, where the platform
            has it. The resulting exponent is the same.

    Returns:
        int32 of x's rank, with extent 1 on `axes`.
    """
    if native and len(axes) == x.ndim and _symbolic.nominal(x.size) >= LEAST_NATIVE:
        return largest_magnitude_p.bind(x).reshape((1,) * x.ndim)
    return _in_hlo(x, axes)


def _in_hlo(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`largest_magnitude_bits` in HLO.

    An integer maximum of the bits would suffice, but XLA for CPU has fast reductions only for float32 (8 ms
    instead of 60 ms for 100 MB, jaxlib 0.10). These skip NaNs and flush subnormal numbers. So a sum of x − x,
    which is 0 for finite x, detects NaNs and infinities, and the integer maximum runs only if a largest
    magnitude is near the subnormal range.
    """
    largest = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    bits = lax.cond(
        jnp.any(largest < np.float32(2.0**-100)),
        lambda x, largest: jnp.max(_magnitudes(x), axes, keepdims=True, initial=0),
        lambda x, largest: lax.bitcast_convert_type(largest, jnp.int32),
        x,
        largest,
    )
    all_finite = jnp.sum(x - x, axes, keepdims=True) == 0  # XLA would write x · 0 to memory as zeros
    return jnp.where(all_finite, bits, np.int32(0x7FC00000))


def _magnitudes(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32) & np.int32(0x7FFFFFFF)


# Bound only while `quantize_p` is lowered, so it needs no other rules. The kernels register its native
# lowering.
largest_magnitude_p = Primitive("dfp_largest_magnitude")


@largest_magnitude_p.def_abstract_eval
def _abstract_eval(x):
    return _compat.result_aval(x, (), np.dtype("int32"))


def largest_magnitude_in_hlo(x: jax.Array) -> jax.Array:
    """The computation of `largest_magnitude_p` in HLO; returns int32[]."""
    return _in_hlo(x, tuple(range(x.ndim))).reshape(())


mlir.register_lowering(largest_magnitude_p, lower_fun(largest_magnitude_in_hlo, multiple_results=False))
