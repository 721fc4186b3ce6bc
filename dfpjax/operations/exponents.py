"""Which slices of an operand have an exponent of their own, and how a sum over such slices is aligned.

A product summed over an index needs the same exponent for every term. An operand's exponents vary along the
axes that the output has too, so fprop is fine; but the transpose contracts axes that were the output's, and
there the operand held from fprop (a kernel with an exponent per output channel in dgrad, an input with one
per example in wgrad) brings an exponent for each term. The other operand is still float32: it is quantized
as if multiplied by 2^(held exponent), so that the sum of both exponents is the same for every term.

An operand aligned so can be held in turn. Its exponents vary along free axes *and* along contracted ones, but
as a sum of one part for each (`align`'s result minus its shift), and transposing exchanges the two kinds of
axes. So the parts can always be told apart again, in derivatives of any order.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from dfpjax.numbers import Quantizer
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.numbers.format.scaling import NONFINITE_THRESHOLD


def quantize_operand(
    x: jax.Array,
    contraction: Contraction,
    quantizer: Quantizer,
    shift: jax.Array | None = None,
    *,
    witness: jax.Array | None = None,
    native: bool = True,
):
    """Quantize a contraction's lhs (its rhs is the lhs of `contraction.swap()`); `quantize_array` explains
    the rest."""
    return quantize_array(
        x,
        quantizer,
        mapped_axes=contraction.mapped_axes(contraction.lhs),
        slice_axes=contraction.slice_axes(contraction.lhs) if quantizer.granularity == "channel" else (),
        shift=shift,
        witness=witness,
        native=native,
    )


def align(contraction: Contraction, rhs_exponent: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Split rhs's exponents into those of the output and the rest, which is for lhs to take over.

    Arguments:
        contraction: its lhs must have passed `map_with_exponents`.
        rhs_exponent: int32 of rhs's rank.

    Returns:
        (common, shift): `common` does not vary along contracted axes; `shift`, of lhs's rank, says by which
        power of two lhs's slices are to be multiplied. None if all have the same exponent anyway.
    """
    contracted = _contracted(contraction)
    if all(rhs_exponent.shape[axis] == 1 for axis in contracted):
        return rhs_exponent, None
    common = jnp.max(rhs_exponent, contracted, keepdims=True)
    # A slice that is not finite makes all that is summed with it NaN, by `common`.
    shift = jnp.where(common >= NONFINITE_THRESHOLD, 0, rhs_exponent - common)
    # The shift is the same along rhs's free axes, except that it was just set to zero beside a NaN.
    free = tuple(axis for axis, label in enumerate(contraction.rhs) if label not in contraction.lhs)
    shift = jnp.min(shift, free)
    labels = [label for label in contraction.rhs if label in contraction.lhs]
    in_order = [label for label in contraction.lhs if label in labels]
    shift = lax.transpose(shift, [labels.index(label) for label in in_order])
    absent = [axis for axis, label in enumerate(contraction.lhs) if label not in labels]
    return common, jnp.expand_dims(shift, absent)


def map_with_exponents(lhs: jax.Array, contraction: Contraction, rhs_exponent: jax.Array):
    """Give lhs the mapped axes that it lacks, where each example needs a shift of its own.

    Returns:
        (lhs, contraction).
    """
    if all(rhs_exponent.shape[axis] == 1 for axis in _contracted(contraction)):
        return lhs, contraction
    sizes = dict(zip(contraction.rhs, rhs_exponent.shape, strict=True))
    missing = tuple(
        label for label in contraction.mapped if label not in contraction.lhs and sizes.get(label, 1) > 1
    )
    lhs = lax.broadcast(lhs, [sizes[label] for label in missing])
    return lhs, replace(contraction, lhs=missing + contraction.lhs)


def _contracted(contraction: Contraction) -> tuple[int, ...]:
    return tuple(axis for axis, label in enumerate(contraction.rhs) if label not in contraction.out)
