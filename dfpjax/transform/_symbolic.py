"""Operations with symbolic extents (`jax.export`): which of their passes run in dynamic fixed point.

Native calls take any extents. But which axes of a tensor count the columns of its blocks has to be known,
since the shape of its exponents depends on that.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from dfpjax._symbolic import is_symbolic
from dfpjax.numbers import Quantizer, Quantizers
from dfpjax.operations.conv import conv_problem
from dfpjax.operations.dot import Problem, dot_problem
from dfpjax.operations.exponents import blocks_of
from dfpjax.policy._config import Pass
from dfpjax.transform._contractions import conv_parameters

_FPROP: frozenset[Pass] = frozenset({"fprop"})


def has_symbolic_extents(eqn: JaxprEqn) -> bool:
    """Whether an operand or the result of an equation has a symbolic extent."""
    return is_symbolic(*(v.aval.shape for v in (*eqn.invars, *eqn.outvars)))


def possible_passes(
    eqn: JaxprEqn, passes: frozenset[Pass], quantizers: Quantizers, *, frozen: bool
) -> tuple[frozenset[Pass], str]:
    """Those of an operation's passes that can run in dynamic fixed point, and why the others cannot.

    Arguments:
        frozen: whether it reads frozen weights. Then it has all passes or none.
    """
    if not has_symbolic_extents(eqn):
        return passes, ""
    lhs, rhs, cotangent = _shapes(eqn, quantizers)
    for shape, quantizer in ((lhs, quantizers.lhs), (rhs, quantizers.rhs)):
        if reason := _objection(shape, quantizer):
            return frozenset(), reason
    if not frozen and passes - _FPROP and (reason := _objection(cotangent, quantizers.cotangent)):
        return passes & _FPROP, reason
    return passes, ""


def _shapes(eqn: JaxprEqn, quantizers: Quantizers) -> tuple[tuple, tuple, tuple]:
    """The shapes of the tensors that an operation and its gradients quantize: lhs, rhs and the cotangent."""
    if eqn.primitive.name == "dot_general":
        make = functools.partial(dot_problem, dimension_numbers=eqn.params["dimension_numbers"])
    else:
        make = functools.partial(conv_problem, quantizers=quantizers, **conv_parameters(eqn))
    found: list[Problem] = []
    operands = (jax.ShapeDtypeStruct(v.aval.shape, jnp.float32) for v in eqn.invars)
    jax.eval_shape(lambda *operands: found.append(make(*operands)), *operands)
    (problem,) = found
    return problem.lhs.shape, problem.rhs.shape, problem.contraction.out_shape


def _objection(shape: tuple, quantizer: Quantizer) -> str | None:
    """Why a tensor of this shape cannot be quantized, or None."""
    blocks = blocks_of(quantizer)
    if blocks is None or not is_symbolic(shape):
        return None
    try:
        last = blocks.axes(shape)[2][-1]
        if last < 2 or shape[last] > 1:  # a last axis of extent 1 would not count
            return None
    except jax.errors.InconclusiveDimensionOperation:
        pass
    return (
        f"the blocks of [{','.join(map(str, shape))}] depend on its symbolic extents: with a constraint such "
        f"as '{_last_symbolic(shape)} >= {blocks.columns}', they do not"
    )


def _last_symbolic(shape: tuple):
    return [size for size in shape if is_symbolic((size,))][-1]
