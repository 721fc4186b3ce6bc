"""Expressions that keep their name in a lowered program, so that what follows can take them in.

A composite is an operation of StableHLO that has a name, operands and a function that computes it, which XLA
inlines like any other call. The lowering of a quantization looks at what computes its operand: from a
composite's operands, one native pass computes the numbers and quantizes them (`dfpjax.operations.producers`).
If nothing else uses the composite, XLA removes it, and the numbers are never in memory as float32.

XLA cannot find the extents of a composite's results. So where they are symbolic, the expression is a call of
a function of that name instead.
"""

import functools
from collections.abc import Callable

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dfpjax import _compat
from dfpjax._symbolic import is_symbolic
from dfpjax.numbers.format.explicit import lower_fun
from dfpjax.operations.passes import series_in_hlo


def expression(name: str, fun: Callable) -> Primitive:
    """A primitive that computes `fun`, so that its transpose can differ from `fun`'s, and that lowers to a
    composite of its name. The caller registers the transpose and the abstract evaluation."""
    primitive = Primitive(name)
    primitive.def_impl(functools.partial(_compat.apply_primitive, primitive))
    named = lower_fun(functools.partial(_named, name, fun), multiple_results=False)
    mlir.register_lowering(primitive, lower_fun(fun, multiple_results=False))
    mlir.register_lowering(primitive, named, platform="cpu")
    batching.primitive_batchers[primitive] = functools.partial(_batch, fun)
    ad.primitive_jvps[primitive] = functools.partial(_expression_jvp, primitive, fun)
    _compat.jet_rules[primitive] = functools.partial(series_in_hlo, fun)
    return primitive


def composite(name: str, fun: Callable) -> Callable:
    """A function of arrays as a composite."""

    def called(*operands):
        return fun(*operands)

    called.__name__ = composite_name(name)

    def named(*operands):
        symbolic = is_symbolic(*(x.shape for x in operands))
        return (jax.jit(called) if symbolic else lax.composite(fun, composite_name(name)))(*operands)

    return named


def composite_name(name: str) -> str:
    """The name of the composite that a primitive of that name lowers to."""
    return f"dfpjax.{name}"


def _named(name, fun, *operands, **params):
    return composite(name, functools.partial(fun, **params))(*operands)


def _batch(fun, operands, dims, **params):
    return jax.vmap(functools.partial(fun, **params), in_axes=tuple(dims))(*operands), 0


def _expression_jvp(primitive, fun, primals, tangents, **params):
    # Second derivatives are rare and take ordinary operations.
    tangents = [ad.instantiate_zeros(t) for t in tangents]
    out = primitive.bind(*primals, **params)
    return out, jax.jvp(functools.partial(fun, **params), tuple(primals), tuple(tangents))[1]


def of_its_first_operand(primitive: Primitive) -> None:
    """Give a primitive's result the shape and the type of its first operand."""

    @primitive.def_abstract_eval
    def _abstract_eval(x, *_, **params):
        return _compat.result_aval(x, x.shape, x.dtype, x.sharding)


def self_adjoint(primitive: Primitive) -> None:
    """Register the transpose of a primitive that multiplies its first operand by numbers that the others
    give."""

    def transpose(ct, v, *others):
        if isinstance(ct, ad.Zero):
            return [ad.Zero(v.aval), *[None] * len(others)]
        return [primitive.bind(*_compat.vary_together(ct, *others)), *[None] * len(others)]

    ad.primitive_transposes[primitive] = transpose
