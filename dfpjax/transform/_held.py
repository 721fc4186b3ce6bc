"""Frozen operands of products: whether a product can read them as they are, and the equations in which it
does.

An operation that is rewritten quantizes both operands. Of a frozen one in the operand's own format this gives
the mantissas and exponents that are there already, so the frozen arrays take its place.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Var

from dfpjax import _compat
from dfpjax.numbers.format.dtype import from_integers
from dfpjax.numbers.format.frozen import Rows
from dfpjax.numbers.format.panels import Panels
from dfpjax.numbers.format.quantizer import Quantizer
from dfpjax.operations.exponents import blocks_of
from dfpjax.operations.panels import contract_panels


def mismatch(
    eqn: JaxprEqn, operand: int, form: Rows | Panels, quantizer: Quantizer, accumulation: Any
) -> str | None:
    """Why an equation cannot read its frozen operand as it is, or None.

    Arguments:
        eqn: a convolution or dot product.
        operand: 0 for lhs, 1 for rhs.
        form: the frozen array's.
        quantizer: how the equation would quantize the operand.
        accumulation: how it would accumulate.
    """
    blocks = blocks_of(quantizer)
    if quantizer.granularity == "channel":
        return "its exponents are not those of channels"
    if (form.bits, form.blocks) != (quantizer.bits, blocks):
        return f"it has {_described(form.bits, form.blocks)}, not {_described(quantizer.bits, blocks)}"
    if eqn.primitive.name == "conv_general_dilated" and _is_rearranged(eqn, operand):
        return "the convolution rearranges it first"
    if isinstance(form, Rows):
        return None
    if eqn.primitive.name != "dot_general" or operand != 1:
        return "it is in panels, which are for right operands of dot products"
    (_, contracting), (_, batch) = eqn.params["dimension_numbers"]
    if tuple(contracting) != (form.contracted,) or batch:
        return f"it is in panels, whose axis {form.contracted} is contracted"
    return None if accumulation == "certified" else "it is in panels, which take certified accumulation"


def _is_rearranged(eqn: JaxprEqn, operand: int) -> bool:
    """Whether a convolution quantizes an operand in another order than it has, or may do so: it takes kernels
    whose windowed axes are outermost, followed by input and output channels, as they are."""
    params = eqn.params
    rank = eqn.invars[1].aval.ndim
    groups = params["feature_group_count"] * params["batch_group_count"]
    in_order = (rank - 1, rank - 2, *range(rank - 2))
    return operand == 0 or groups != 1 or tuple(params["dimension_numbers"].rhs_spec) != in_order


def _described(bits: int, blocks) -> str:
    return f"{bits} bits in {blocks}" if blocks is not None else f"{bits} bits and one exponent"


def with_held(jaxpr: Jaxpr, held: dict[int, JaxprEqn]) -> tuple[list[JaxprEqn], dict[Var, Var]]:
    """The equations of an operation's jaxpr that read frozen operands as they are, and its names for these.

    Arguments:
        jaxpr: traced from lhs and rhs, its first inputs, in float32.
        held: the `dfp_thaw` equation of each operand that is frozen and in the format wanted.
    """
    eqns, rename = list(jaxpr.eqns), {}
    for operand, thaw in held.items():
        found = next((i for i, eqn in enumerate(eqns) if _quantizes(eqn, jaxpr.invars[operand])), None)
        if found is None:
            continue  # the operand is rearranged first, so its blocks are others
        if isinstance(thaw.params["form"], Rows):
            eqns, own = _with_rows(eqns, found, thaw)
        else:
            eqns, own = _with_panels(eqns, found, thaw)
        rename |= own
    return eqns, rename


def _quantizes(eqn: JaxprEqn, operand: Var) -> bool:
    return eqn.primitive.name == "dfp_quantize" and eqn.invars[0] is operand and not eqn.params["mapped_axes"]


def _with_rows(eqns: list[JaxprEqn], at: int, thaw: JaxprEqn) -> tuple[list[JaxprEqn], dict[Var, Var]]:
    shape = eqns[at].outvars[1].aval.shape

    def as_quantized(mantissa, exponent):
        return from_integers(mantissa), lax.reshape(exponent, shape)

    own, _ = _compat.trace(as_quantized, [v.aval for v in thaw.invars], "frozen")
    results = dict(zip(own.outvars, eqns[at].outvars, strict=True))
    # A result that is an input, since its shape is right, takes the input's name.
    given = {old: new for new, old in results.items() if new in own.invars}
    own_eqns = [eqn.replace(outvars=[results.get(v, v) for v in eqn.outvars]) for eqn in own.eqns]
    rest = [_with_inputs(eqn, given) for eqn in eqns[at + 1 :]]
    return [*eqns[:at], *own_eqns, *rest], dict(zip(own.invars, thaw.invars, strict=True))


def _with_panels(eqns: list[JaxprEqn], at: int, thaw: JaxprEqn) -> tuple[list[JaxprEqn], dict[Var, Var]]:
    mantissa, _ = eqns[at].outvars
    (place,) = (i for i, eqn in enumerate(eqns) if mantissa in eqn.invars)
    contraction = eqns[place]
    lhs, lhs_exponent, *_ = contraction.invars

    def contracted(*operands):
        return contract_panels(*operands, form=thaw.params["form"], **contraction.params)

    avals = [v.aval for v in (lhs, lhs_exponent, *thaw.invars)]
    own, _ = _compat.trace(contracted, avals, "frozen")
    (new,) = own.eqns
    new = new.replace(invars=[lhs, lhs_exponent, *own.invars[2:]], outvars=contraction.outvars)
    eqns = [*eqns[:at], *eqns[at + 1 : place], new, *eqns[place + 1 :]]
    return eqns, dict(zip(own.invars[2:], thaw.invars, strict=True))


def _with_inputs(eqn: JaxprEqn, names: dict[Var, Var]) -> JaxprEqn:
    if not any(isinstance(v, Var) and v in names for v in eqn.invars):
        return eqn
    return eqn.replace(invars=[names.get(v, v) if isinstance(v, Var) else v for v in eqn.invars])


def dtype_is_float32(operands: Sequence[Any]) -> bool:
    """Whether all operands are float32."""
    return all(v.aval.dtype == jnp.float32 for v in operands)
