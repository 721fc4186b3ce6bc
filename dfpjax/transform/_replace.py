"""The equations that replace a convolution or dot product and compute it in dynamic fixed point."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import convert_element_type_p
from jax.extend.source_info_util import user_context

from dfpjax import _compat, operations
from dfpjax.numbers.format.explicit import explicit_axes
from dfpjax.operations.primitives import Backend
from dfpjax.policy._config import PASSES, Pass
from dfpjax.policy._layers import FLOAT32
from dfpjax.transform._algorithms import wanted_algorithm
from dfpjax.transform._contractions import conv_parameters
from dfpjax.transform._decide import Treatment, Verdict
from dfpjax.transform._errors import layer_error
from dfpjax.transform._fuse import Fusions
from dfpjax.transform._held import with_held
from dfpjax.transform._survey import Site


@dataclass(frozen=True, kw_only=True)
class PlacedWitness:
    """How to compute an operand's largest magnitude, and from which variables."""

    compute: Callable
    inputs: Sequence[Var]


class Fusing:
    """The passes of a jaxpr's fusions, as equations."""

    def __init__(self, fusions: Fusions):
        self._fusions = fusions
        self._written: set[int] = set()
        self._extremes: dict[Var, list[Var]] = {}
        self._gives_extremes = {
            found.extremes_of: index
            for index, found in fusions.passes.items()
            if found.extremes_of is not None
        }

    def equations(self, index: int) -> list[JaxprEqn]:
        """The equations of the pass at that index; none if they have been written before."""
        if index in self._written:
            return []
        self._written.add(index)
        found = self._fusions.passes[index]
        with user_context(found.eqn.source_info.traceback), found.eqn.ctx.manager:
            jaxpr = without_constants(found.fun, [v.aval for v in found.inputs], found.kind)
        results = zip(jaxpr.outvars, found.outputs, strict=True)
        rename = {inner: outer for inner, outer in results if outer is not None}
        if found.extremes_of is not None:
            self._extremes[found.extremes_of] = jaxpr.outvars[-2:]
        return renamed(jaxpr, found.eqn, {**dict(zip(jaxpr.invars, found.inputs, strict=True)), **rename})

    def witness(self, site: Site, treatment: Treatment) -> tuple[list[JaxprEqn], PlacedWitness | None]:
        """The witness of an operation's left operand, if it has one, and the equations to write before the
        operation, since the pass that computes the extremes may come later in the program."""
        found = self._fusions.witness(site.eqn, treatment)
        if found is None:
            return [], None
        before = self.equations(self._gives_extremes[found.of])
        inputs = [*self._extremes[found.of], *found.inputs]
        return before, PlacedWitness(compute=found.compute, inputs=inputs)


def inlined(
    site: Site, verdict: Verdict, backend: Backend, witness: PlacedWitness | None = None
) -> list[JaxprEqn]:
    """The equations that compute a site's result in dynamic fixed point, with the site's variables."""
    treatment = verdict.treatment
    assert treatment is not None
    eqn = site.eqn
    source = eqn.source_info
    name = site.operation.name or eqn.primitive.name
    held = {i: thaw for i, thaw in enumerate(site.thawed) if i in verdict.held}
    inputs = [*eqn.invars, *(witness.inputs if witness is not None else ())]
    try:
        with user_context(source.traceback), eqn.ctx.manager:
            operation = _operation(eqn, treatment, backend, witness)
            jaxpr = without_constants(operation, [v.aval for v in inputs], name)
    except Exception as error:
        raise layer_error(site, verdict, error) from error
    eqns, names = with_held(jaxpr, held)
    (result,) = jaxpr.outvars
    names |= {**dict(zip(jaxpr.invars, inputs, strict=True)), result: eqn.outvars[0]}
    return renamed(jaxpr.replace(eqns=eqns), eqn, names)


def without_constants(fun: Callable, avals: Sequence[Any], name: str) -> Jaxpr:
    """Trace a function to a jaxpr without constants. Not every jaxpr may hold them, but the jaxpr of a jitted
    call inside it may."""
    jaxpr, consts = _compat.trace(fun, avals, name)
    return _compat.trace(jax.jit(fun), avals, name)[0] if consts else jaxpr


def renamed(jaxpr: Jaxpr, eqn: JaxprEqn, rename: dict[Var, Var | Literal]) -> list[JaxprEqn]:
    """The equations of a jaxpr with other variables, and with the source information of `eqn`."""
    source = eqn.source_info
    return [
        inner.replace(
            invars=[v if isinstance(v, Literal) else rename.get(v, v) for v in inner.invars],
            outvars=[rename.get(v, v) for v in inner.outvars],
            source_info=inner.source_info.replace(
                traceback=source.traceback, name_stack=source.name_stack + inner.source_info.name_stack
            ),
        )
        for inner in jaxpr.eqns
    ]


def _operation(
    eqn: JaxprEqn, treatment: Treatment, backend: Backend, witness: PlacedWitness | None
) -> Callable:
    """The function of lhs, rhs and the witness's inputs that computes an equation in dynamic fixed point.

    The caller traces it in the equation's context.
    """
    params, out = eqn.params, eqn.outvars[0].aval
    if eqn.primitive.name == "dot_general":
        operation, own = operations.dot_general, {"dimension_numbers": params["dimension_numbers"]}
    else:
        operation = operations.conv_general_dilated
        own = {**conv_parameters(eqn), "algorithm": wanted_algorithm(eqn, treatment)}
    operation = functools.partial(
        operation,
        **own,
        quantizers=treatment.quantizers,
        accumulation=treatment.accumulation,
        backend=backend,
        # The mesh is that of the types: a program need not be traced under `jax.set_mesh`.
        out_sharding=out.sharding if explicit_axes(out.sharding.mesh) else None,
    )

    def quantized(lhs, rhs, *more):
        result = operation(
            lax.convert_element_type(lhs, jnp.float32),
            lax.convert_element_type(rhs, jnp.float32),
            witness=None if witness is None else witness.compute(*more),
        )
        if (result.dtype, result.aval.weak_type) == (out.dtype, out.weak_type):
            return result
        return convert_element_type_p.bind(
            result, new_dtype=out.dtype, weak_type=out.weak_type, sharding=None
        )

    return _by_pass(quantized, functools.partial(_kept, eqn), treatment.passes)


def _kept(eqn: JaxprEqn, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """An equation's own operation, marked so that an outer transform leaves it alone."""
    with jax.named_scope(FLOAT32):
        return eqn.primitive.bind(lhs, rhs, **eqn.params)


def _by_pass(quantized: Callable, kept: Callable, passes: frozenset[Pass]) -> Callable:
    """An operation that computes the given passes in dynamic fixed point and the others as they were.

    Both functions are linear in each of their two operands, so either can give any pass.
    """
    if passes == frozenset(PASSES):
        return quantized
    fprop, dgrad, wgrad = (quantized if name in passes else kept for name in ("fprop", "dgrad", "wgrad"))
    computed = jax.custom_jvp(fprop)

    @functools.partial(computed.defjvp, symbolic_zeros=True)
    def _jvp(primals, tangents):
        lhs, rhs = primals
        out = computed(lhs, rhs)
        terms = []
        if not isinstance(tangents[0], SymbolicZero):
            terms.append(jax.jvp(lambda lhs: dgrad(lhs, rhs), (lhs,), tangents[:1])[1])
        if not isinstance(tangents[1], SymbolicZero):
            terms.append(jax.jvp(lambda rhs: wgrad(lhs, rhs), (rhs,), tangents[1:])[1])
        return out, functools.reduce(lax.add, terms)

    return computed
