"""Rules for `jax.experimental.jet`, which propagates Taylor series through a program.

A contraction is bilinear, so its series is the product of its operands' series. Mantissas have float32
series, as their tangents are float32. Each term is a contraction of a quantized and a float32 factor, or of
two float32 factors, one of which is quantized like a cotangent. Passes over memory have their rules where
they are defined.
"""

import functools

import jax.numpy as jnp
from jax import lax

from dfpjax import _compat
from dfpjax.numbers import Quantizer
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.format.quantize import quantize_p
from dfpjax.operations.exponents import blocks_of, quantize_operand
from dfpjax.operations.primitives import (
    chain_lengths_p,
    contract,
    contract_linear,
    contract_linear_p,
    contract_p,
    linear_parts,
    saturated_chains_p,
)


def _terms(series):
    """The terms of a series, with None for zeros. `jet` passes a zero term of mantissas as mantissas."""
    return [term if term.dtype == jnp.float32 else None for term in series]


def _sum(terms, like):
    terms = [term for term in terms if term is not None]
    return functools.reduce(lax.add, terms) if terms else jnp.zeros_like(like)


def _quantize_rule(primals, series, **params):
    mantissa, exponent = quantize_p.bind(*primals, **params)
    return (mantissa, exponent), (series[0], _compat.zero_series)


def _product(lhs, rhs, *, contraction: Contraction, cotangent: Quantizer, bits, blocks, **params):
    """The contraction of two float32 terms."""
    if lhs is None or rhs is None:
        return None
    native = params["backend"] == "auto"
    held, exponent = quantize_operand(rhs, contraction.swap(), cotangent, native=native)
    params |= {"bits": (cotangent.bits, cotangent.bits), "blocks": blocks_of(cotangent)}
    return contract_linear(lhs, held, exponent, contraction=contraction, cotangent=cotangent, **params)


def _with_held(term, held, exponent, params):
    return None if term is None else contract_linear(term, held, exponent, **params)


def _contract_rule(primals, series, **params):
    lhs, lhs_exponent, rhs, rhs_exponent = primals
    of_lhs, of_rhs = linear_parts(**params)
    lefts, rights = _terms(series[0]), _terms(series[2])
    out = contract(*primals, **params)
    found = []
    for order, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        terms = [
            _with_held(left, rhs, rhs_exponent, of_lhs),
            _with_held(right, lhs, lhs_exponent, of_rhs),
            *map(functools.partial(_product, **params), lefts[:order], rights[:order][::-1]),
        ]
        found.append(_sum(terms, out))
    return out, found


def _contract_linear_rule(primals, series, **params):
    lhs, rhs, rhs_exponent = primals
    lefts, rights = _terms(series[0]), _terms(series[1])
    out = contract_linear(*primals, **params)
    found = []
    for order, left in enumerate(lefts):
        terms = [
            _with_held(left, rhs, rhs_exponent, params),
            *map(functools.partial(_product, **params), [lhs, *lefts[:order]], rights[: order + 1][::-1]),
        ]
        found.append(_sum(terms, out))
    return out, found


def _constant_rule(primitive, primals, series, **params):
    return primitive.bind(*primals, **params), _compat.zero_series


def _name_rule(primals, series, **params):
    return _compat.name_p.bind(*primals, **params), series[0]


# Differentiated contractions name their operands, and JAX has no rule for that.
_compat.jet_rules.setdefault(_compat.name_p, _name_rule)
_compat.jet_rules[quantize_p] = _quantize_rule
_compat.jet_rules[contract_p] = _contract_rule
_compat.jet_rules[contract_linear_p] = _contract_linear_rule
for _measure in (chain_lengths_p, saturated_chains_p):
    _compat.jet_rules[_measure] = functools.partial(_constant_rule, _measure)
