"""Convolution and dot product equations: their size, and whether dynamic fixed point can compute them."""

import math
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var

from dfpjax._symbolic import nominal, nominal_shape
from dfpjax.numbers import Blocks
from dfpjax.numbers.format.quantizer import Granularity
from dfpjax.policy._cost import Kind, Work

CONTRACTIONS = frozenset({"conv_general_dilated", "dot_general"})
"""The primitives that are rewritten."""

QUANTIZED = frozenset({"dfp_contract", "dfp_contract_linear"})
"""The primitives that compute in dynamic fixed point."""

_OF_A_CONVOLUTION = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "feature_group_count",
    "batch_group_count",
)

_SUPPORTED = ("float32", "bfloat16", "float16", "float64")


def obstacle(eqn: JaxprEqn) -> str | None:
    """Why the equation has to stay as it is, or None."""
    if eqn.primitive.name in QUANTIZED:
        return "in dynamic fixed point already"
    avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    for aval in avals:
        if aval.dtype not in map(jnp.dtype, _SUPPORTED):
            return f"{aval.dtype} is not one of {', '.join(_SUPPORTED)}"
    if any(aval.size == 0 for aval in avals):
        return "an operand or the result is empty"
    if _contraction_size(eqn) == 1:
        return "nothing is summed (contraction of size 1)"
    return None


def factors(eqn: JaxprEqn) -> list[Var | Literal]:
    """The operands lhs and rhs, without exponents."""
    if _quantized(eqn):
        return [v for v in eqn.invars if v.aval.dtype != jnp.int32]
    return eqn.invars


def operand_shapes(eqn: JaxprEqn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of lhs and rhs."""
    lhs, rhs = factors(eqn)
    return lhs.aval.shape, rhs.aval.shape


def conv_parameters(eqn: JaxprEqn) -> dict[str, Any]:
    """The parameters of a convolution's equation that `dfpjax.operations.conv_general_dilated` takes."""
    return {name: eqn.params[name] for name in _OF_A_CONVOLUTION}


def granularities(eqn: JaxprEqn) -> tuple[Granularity, Granularity]:
    """Which numbers share an exponent in lhs and in rhs of an equation in dynamic fixed point."""
    contraction, blocks = eqn.params["contraction"], eqn.params["blocks"]

    def of_held(exponent: Var | Literal, labels: tuple[int, ...], blocks: Blocks | None) -> Granularity:
        if blocks is not None:
            return "block"
        sizes = zip(labels, exponent.aval.shape, strict=True)
        varies = any(nominal(size) > 1 for label, size in sizes if label not in contraction.mapped)
        return "channel" if varies else "tensor"

    if eqn.primitive.name == "dfp_contract_linear":
        rhs = of_held(eqn.invars[2], contraction.rhs, blocks)
        return eqn.params["cotangent"].granularity, rhs
    lhs = of_held(eqn.invars[1], contraction.lhs, blocks[0])
    return lhs, of_held(eqn.invars[3], contraction.rhs, blocks[1])


def macs(eqn: JaxprEqn) -> int:
    """Multiply-accumulate operations, with those on padding, without those on the zeros of a dilated
    input. Symbolic extents are those that they count as (`dfpjax._symbolic`)."""
    if _quantized(eqn):
        return _quantized_macs(eqn)
    out_size = math.prod(nominal_shape(eqn.outvars[0].aval.shape))
    holes = math.prod(eqn.params.get("lhs_dilation") or ())
    return out_size * _contraction_size(eqn) // holes


def work(eqn: JaxprEqn) -> Work:
    """The work of one run of an equation that may be rewritten."""
    lhs, rhs = (math.prod(nominal_shape(shape)) for shape in operand_shapes(eqn))
    phases = math.prod(eqn.params.get("lhs_dilation") or ())
    out = math.prod(nominal_shape(eqn.outvars[0].aval.shape))
    return Work(kind=_kind(eqn), macs=macs(eqn), elements=lhs + rhs + out, phases=phases)


def _kind(eqn: JaxprEqn) -> Kind:
    if eqn.primitive.name == "dot_general":
        _, (batch, _) = eqn.params["dimension_numbers"]
        products = math.prod(nominal(eqn.invars[0].aval.shape[axis]) for axis in batch)
        return "batched dot product" if products > 1 else "dot product"
    groups = eqn.params["feature_group_count"] * eqn.params["batch_group_count"]
    return "grouped convolution" if groups > 1 else "convolution"


def _quantized(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name in QUANTIZED


def _contraction_size(eqn: JaxprEqn) -> int:
    """The number of products in one element of the result."""
    lhs, rhs = map(nominal_shape, operand_shapes(eqn))
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return math.prod(lhs[axis] for axis in contracted)
    _, *summed = eqn.params["dimension_numbers"].rhs_spec  # output feature, input feature, spatial axes
    return math.prod(rhs[axis] for axis in summed)


def _quantized_macs(eqn: JaxprEqn) -> int:
    contraction = eqn.params["contraction"]
    lhs, rhs = map(nominal_shape, operand_shapes(eqn))
    sizes = dict(zip(contraction.out, nominal_shape(contraction.out_shape), strict=True))
    sizes |= zip(contraction.lhs, lhs, strict=True)
    sizes |= zip(contraction.rhs, rhs, strict=True)
    windowed = {label for window in contraction.windows for label in (window.lhs, window.rhs, window.out)}
    count = math.prod(size for label, size in sizes.items() if label not in windowed)
    for w in contraction.windows:
        # The window's equation gives each index from the other two where its coefficient divides. The three
        # counts differ by the products that fall into padding; the smallest has none.
        count *= min(
            sizes[w.rhs] * sizes[w.out] // abs(w.lhs_coef),
            sizes[w.lhs] * sizes[w.out] // abs(w.rhs_coef),
            sizes[w.lhs] * sizes[w.rhs] // abs(w.out_coef),
        )
    return count
