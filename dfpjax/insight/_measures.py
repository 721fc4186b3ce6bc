"""The measurements of an operation, as functions of its arrays. No gradient flows through them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive

from dfpjax.insight._shadow import contract_float32
from dfpjax.insight._statistics import OperandStatistics, operand_statistics, relative_error
from dfpjax.numbers import Blocks, Quantizer
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.format.dtype import from_integers, to_integers
from dfpjax.numbers.format.explicit import automatic, summed, with_partitions
from dfpjax.numbers.format.scaling import MIN_FLOAT_EXPONENT
from dfpjax.operations.exponents import align, blocks_of, quantize_operand
from dfpjax.operations.primitives import chain_lengths, saturated_chains
from dfpjax.operations.transformed import transformed_sqnr_db


def of_quantized(
    x: jax.Array, mantissa: jax.Array, exponent: jax.Array, *, bits: int, blocks: Blocks | None = None
) -> OperandStatistics:
    """The statistics of x, which was quantized to mantissa · 2^exponent."""
    return operand_statistics(lax.stop_gradient(x), to_integers(mantissa), exponent, bits=bits, blocks=blocks)


def of_cotangent(
    x: jax.Array,
    rhs_exponent: jax.Array,
    *,
    contraction: Contraction,
    cotangent: Quantizer,
    blocks: Blocks | None,
    **_: object,
) -> OperandStatistics:
    """The statistics of the operand that `dfp_contract_linear` quantizes when it runs, given its parameters.

    It is quantized here as well; XLA removes the duplicate.
    """
    x = lax.stop_gradient(x)
    _, shift = align(contraction, rhs_exponent, blocks)
    mantissa, exponent = quantize_operand(x, contraction, cotangent, shift)
    exponent = exponent if shift is None else exponent - shift
    return of_quantized(x, mantissa, exponent, bits=cotangent.bits, blocks=blocks_of(cotangent))


def of_result(out: jax.Array, lhs: jax.Array, rhs: jax.Array, *, contraction: Contraction) -> jax.Array:
    """The relative error of a result, given the operands before quantization."""
    out, lhs, rhs = map(lax.stop_gradient, (summed(out), lhs, rhs))

    def error(out, lhs, rhs):
        return relative_error(out, contract_float32(lhs, rhs, contraction))

    return automatic(error, with_partitions(jax.typeof(out).sharding, ()))(out, lhs, rhs)


def of_chains(*operands: jax.Array, primitive: Primitive, **params: object) -> jax.Array:
    """The lengths of the chains of an equation in dynamic fixed point or, with a `FixedChain`, the number of
    saturated chains, over all axes that vmap added.

    Arguments:
        operands, primitive, params: the equation's.
    """
    operands = [without_gradient(x) for x in operands]
    if params["accumulation"] == "certified":
        lengths = chain_lengths(primitive, *operands, **params)
        return jnp.mean(lengths, axis=range(lengths.ndim - 1))  # every example has as many products
    return sum_of_counts(saturated_chains(primitive, *operands, **params))


def of_transformed(
    *operands: jax.Array, primitive: Primitive, names: tuple[str, str], **params: object
) -> dict[str, jax.Array]:
    """The signal to quantization noise of the transformed operands of an equation that is computed by a
    Winograd algorithm.

    Arguments:
        operands, primitive, params: the equation's.
        names: of lhs and rhs.
    """
    operands = [without_gradient(x) for x in operands]
    return dict(zip(names, transformed_sqnr_db(primitive, *operands, **params), strict=True))


def sum_of_counts(counts: jax.Array) -> jax.Array:
    """The sum of non-negative int32 counts, saturated at 2³¹ − 1."""
    most = np.int32(2**31 - 1)
    return lax.reduce(counts, np.int32(0), lambda x, y: lax.min(x, most - y) + y, tuple(range(counts.ndim)))


def not_computed(like, *, count: bool) -> jax.Array:
    """The placeholder for a measurement that was not computed, of a jaxpr atom's type: NaN, a count of −1, or
    an exponent below all valid ones."""
    is_float = jnp.issubdtype(like.aval.dtype, jnp.floating)
    missing = jnp.nan if is_float else -1 if count else MIN_FLOAT_EXPONENT - 14
    return jnp.full(like.aval.shape, missing, like.aval.dtype)


def without_gradient(x: jax.Array) -> jax.Array:
    """`lax.stop_gradient`, for mantissas too."""
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return from_integers(to_integers(x))
    return lax.stop_gradient(x)
