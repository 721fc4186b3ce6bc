"""Which slices of an operand have exponents of their own, and how a sum over such slices is aligned.

All terms of a sum of products need the same exponent. In fprop they have it, because an operand's exponents
vary only along axes of the output. The transpose contracts axes that were the output's. There the operand
held from fprop (in dgrad a kernel with an exponent per output channel, in wgrad an input with an exponent per
example) has another exponent for each term. The other operand is still float32, so it is quantized as if
multiplied by 2^(held exponent). Then both exponents have the same sum in every term.

An operand aligned this way can be held in turn. Its exponents vary along free *and* contracted axes, as the
sum of one part for each kind (`align`'s result minus its shift). Transposing exchanges the two kinds of axes,
so the parts can be separated again in derivatives of any order.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from dfpjax.numbers import Quantizer
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.numbers.format.scaling import NONFINITE_THRESHOLD


def blocks_of(quantizer: Quantizer) -> Blocks | None:
    """The size of the blocks that a quantizer makes, or None if it makes none."""
    return quantizer.blocks if quantizer.granularity == "block" else None


def quantize_operand(
    x: jax.Array,
    contraction: Contraction,
    quantizer: Quantizer,
    shift: jax.Array | None = None,
    *,
    witness: jax.Array | None = None,
    native: bool = True,
):
    """Quantize a contraction's lhs (its rhs is the lhs of `contraction.swap()`). `quantize_array` documents
    the other arguments. With exponents of blocks a witness, which is of the whole tensor, is not used."""
    blocks = blocks_of(quantizer)
    return quantize_array(
        x,
        quantizer,
        mapped_axes=contraction.mapped_axes(contraction.lhs),
        slice_axes=contraction.slice_axes(contraction.lhs) if quantizer.granularity == "channel" else (),
        blocks=blocks,
        shift=shift,
        witness=witness if blocks is None else None,
        native=native,
    )


def align(
    contraction: Contraction, rhs_exponent: jax.Array, blocks: Blocks | None
) -> tuple[jax.Array, jax.Array | None]:
    """Split rhs's exponents into those of the output and a rest that lhs takes over.

    Arguments:
        contraction: its lhs must have passed `map_with_exponents`.
        rhs_exponent: int32 of rhs's rank, or of its blocks.
        blocks: the size of rhs's blocks, or None. The kernels align exponents of blocks, so none are left to
            lhs.

    Returns:
        (common, shift): `common` does not vary along contracted axes. `shift` has lhs's rank and contains the
        power of two by which to multiply each slice of lhs; None if all slices have the same exponent.
    """
    contracted = _contracted(contraction)
    if blocks or all(rhs_exponent.shape[axis] == 1 for axis in contracted):
        return rhs_exponent, None
    common = jnp.max(rhs_exponent, contracted, keepdims=True)
    # A slice that is not finite turns every sum that it is part of into NaN, through `common`.
    shift = jnp.where(common >= NONFINITE_THRESHOLD, 0, rhs_exponent - common)
    # The shift is the same along rhs's free axes, except where the line above set it to zero.
    free = tuple(axis for axis, label in enumerate(contraction.rhs) if label not in contraction.lhs)
    shift = jnp.min(shift, free)
    labels = [label for label in contraction.rhs if label in contraction.lhs]
    in_order = [label for label in contraction.lhs if label in labels]
    shift = lax.transpose(shift, [labels.index(label) for label in in_order])
    absent = [axis for axis, label in enumerate(contraction.lhs) if label not in labels]
    return common, jnp.expand_dims(shift, absent)


def map_with_exponents(lhs: jax.Array, contraction: Contraction, rhs_exponent: jax.Array):
    """Add to lhs the mapped axes that it lacks, if each example needs its own shift.

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
