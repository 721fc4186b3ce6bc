"""What a convolution or dot product equation asks for that dynamic fixed point does not give."""

import math

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

_BITS = 16
"""Bits of a mantissa in dynamic fixed point, at most."""

_EXACT = frozenset(
    {
        lax.DotAlgorithmPreset.BF16_BF16_F32_X6,
        lax.DotAlgorithmPreset.BF16_BF16_F32_X9,
        lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
        lax.DotAlgorithmPreset.F32_F32_F32,
        lax.DotAlgorithmPreset.F64_F64_F64,
    }
)
"""The presets that give an operand more significant bits. The X is the number of multiplications that
operands in parts take: three parts of 8 bits for X6 and X9, two of 11 bits for TF32's X3. BF16's X3, with two
parts of 8 bits, has no more than dynamic fixed point."""


def request(eqn: JaxprEqn) -> str | None:
    """The precision that the equation asks for by its types or its `precision`, if dynamic fixed point has
    less; else None."""
    if in_float64(eqn):
        return "float64"
    # `jax.default_matmul_precision` has set it, where the program itself has not.
    precision = eqn.params.get("precision")
    if isinstance(precision, lax.DotAlgorithm):
        bits = _significant_bits(precision)
        return f"a DotAlgorithm of {bits} significant bits" if bits > _BITS else None
    if isinstance(precision, lax.DotAlgorithmPreset):
        return f"precision={precision}" if precision in _EXACT else None
    of_operands = precision if isinstance(precision, tuple) else (precision,)
    return "precision=HIGHEST" if lax.Precision.HIGHEST in of_operands else None


def in_float64(eqn: JaxprEqn) -> bool:
    """Whether an operand or the result is float64."""
    return any(v.aval.dtype == jnp.float64 for v in (*eqn.invars, *eqn.outvars))


def _significant_bits(algorithm: lax.DotAlgorithm) -> int:
    """Those of the more precise operand, in all its parts together."""
    types = [jnp.dtype(t) for t in (algorithm.lhs_precision_type, algorithm.rhs_precision_type)]
    of_part = max((jnp.finfo(t).nmant + 1 for t in types if jnp.issubdtype(t, jnp.floating)), default=0)
    # Operands in n parts take at most n² multiplications, and more than (n − 1)².
    parts = math.isqrt(max(algorithm.num_primitive_operations, 1) - 1) + 1
    return of_part * max(parts, algorithm.lhs_component_count, algorithm.rhs_component_count)
