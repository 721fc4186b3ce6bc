"""Transposition of operations with a linear operand.

A dot product in a program that is linear in one of its operands is rewritten like any other: in the rule of a
`jax.custom_jvp`, or in a function given to `jax.linear_transpose`. JAX transposes such a program without
differentiating it first. Quantization counts as the identity there, as it does in differentiation
(straight-through), so these transposes are what the derivatives' own are.
"""

import jax.numpy as jnp
from jax.core import ShapedArray
from jax.interpreters import ad

from dfpjax.numbers.contraction import Contraction
from dfpjax.numbers.quantize import quantize_p
from dfpjax.operations.primitives import contract_linear_p, contract_p


def _quantize_transpose(cts, x, *seed, **_):
    mantissa, _ = cts
    return [mantissa, *(None for _ in seed)]


def _contract_transpose(ct, lhs, lhs_exponent, rhs, rhs_exponent, *, contraction: Contraction, **params):
    if isinstance(ct, ad.Zero):
        return [None] * 4

    def transposed(linear, held, held_exponent, contraction: Contraction):
        operand = ad.UndefinedPrimal(ShapedArray(linear.aval.shape, jnp.dtype("float32")))
        transpose = ad.primitive_transposes[contract_linear_p]
        return transpose(ct, operand, held, held_exponent, contraction=contraction, **params)[0]

    if ad.is_undefined_primal(lhs):
        return [transposed(lhs, rhs, rhs_exponent, contraction), None, None, None]
    return [None, None, transposed(rhs, lhs, lhs_exponent, contraction.swap()), None]


ad.primitive_transposes[quantize_p] = _quantize_transpose
ad.primitive_transposes[contract_p] = _contract_transpose
