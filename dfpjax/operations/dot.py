"""`dot_general` in dynamic fixed point."""

import jax
import jax.numpy as jnp

from dfpjax.numbers import Quantizers
from dfpjax.numbers.contraction import Contraction
from dfpjax.numbers.quantize import quantize_array
from dfpjax.operations import primitives
from dfpjax.operations.primitives import Backend


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    dimension_numbers,
    quantizers: Quantizers = Quantizers(),  # noqa: B008 (frozen)
    backend: Backend = "auto",
) -> jax.Array:
    """`jax.lax.dot_general` with both operands quantized, exact integer chains and float32 sums between them.

    Arguments:
        lhs, rhs: float32 arrays.
        dimension_numbers: ((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)), as in JAX.
        quantizers: bits and rounding of the operands and of the cotangents.
        backend: "auto" for native kernels where the platform has them, "reference" for plain JAX.

    Returns:
        float32 of the shape that `jax.lax.dot_general` gives: batch axes, then lhs's free ones, then rhs's.

    Raises:
        TypeError: if an operand is not float32, or the shapes do not fit.
    """
    _require_float32("dot_general", lhs=lhs, rhs=rhs)
    out = jax.eval_shape(
        lambda x, y: jax.lax.dot_general(x, y, dimension_numbers), lhs, rhs
    )  # checks the shapes
    contraction = dot_contraction(lhs.ndim, rhs.ndim, dimension_numbers, out.shape)
    return contract(lhs, rhs, contraction, quantizers, backend)


def dot_contraction(lhs_ndim: int, rhs_ndim: int, dimension_numbers, out_shape) -> Contraction:
    """The contraction that a dot_general is."""
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = dimension_numbers
    lhs = list(range(lhs_ndim))
    rhs = list(range(lhs_ndim, lhs_ndim + rhs_ndim))
    pairs = (*zip(lhs_contracting, rhs_contracting, strict=True), *zip(lhs_batch, rhs_batch, strict=True))
    for lhs_axis, rhs_axis in pairs:
        rhs[rhs_axis] = lhs[lhs_axis]
    bound_lhs, bound_rhs = {*lhs_contracting, *lhs_batch}, {*rhs_contracting, *rhs_batch}
    out = [lhs[axis] for axis in lhs_batch]
    out += [label for axis, label in enumerate(lhs) if axis not in bound_lhs]
    out += [label for axis, label in enumerate(rhs) if axis not in bound_rhs]
    return Contraction(lhs=tuple(lhs), rhs=tuple(rhs), out=tuple(out), out_shape=tuple(out_shape))


def contract(
    lhs: jax.Array, rhs: jax.Array, contraction: Contraction, quantizers: Quantizers, backend: Backend
) -> jax.Array:
    """Quantize both operands and contract them."""
    return primitives.contract(
        *quantize_array(lhs, quantizers.lhs),
        *quantize_array(rhs, quantizers.rhs),
        contraction=contraction,
        cotangent=quantizers.cotangent,
        backend=backend,
    )


def _require_float32(function: str, **operands) -> None:
    for name, x in operands.items():
        if x.dtype != jnp.float32:
            raise TypeError(f"{function}: {name} must be float32, got {x.dtype}; convert it first")
