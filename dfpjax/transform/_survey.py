"""Survey of a program: finds its convolutions and dot products, for the rewrite and for `explain` alike."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from dfpjax.policy._layers import (
    PATH_KEEPING,
    in_backward_pass,
    is_kept_float32,
    is_recomputation,
    layer_name,
)
from dfpjax.policy._policy import BoundPolicy
from dfpjax.policy._rules import Operation
from dfpjax.transform._contractions import CONTRACTIONS, QUANTIZED, factors, obstacle
from dfpjax.transform._requests import in_float64
from dfpjax.transform._subjaxprs import OPAQUE, SubJaxpr, hidden_jaxprs, opened, sub_jaxprs

Origins = Sequence[Hashable]
"""What each value is: an argument's path, an object that identifies the value, or None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The place of a jaxpr in the program."""

    stack: Any
    """Name stack of the equation that contains it, as name stacks start anew in each jaxpr."""

    count: int = 1
    """How often it runs, as far as known."""

    derived: bool = False
    """Whether it is a rule (such as that of a `jax.custom_vjp`) and not the program itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """A convolution or dot product."""

    eqn: JaxprEqn
    operation: Operation
    obstacle: str | None
    """Why it cannot be computed in dynamic fixed point, or None."""
    count: int
    thawed: tuple[JaxprEqn | None, ...] = (None, None)
    """For each operand the equation that makes it of a frozen array, if one does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """An equation that contains jaxprs."""

    scope: Scope
    """Their place."""
    inputs: Origins
    """What the equation's operands are."""
    inside: tuple[tuple[SubJaxpr, "Body"], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """A jaxpr and the findings in it."""

    jaxpr: Jaxpr
    found: dict[int, Site | Call]
    """By the index of the equation."""
    opaque: dict[int, str]
    """Names of the primitives that cannot be entered, by the index of the equation."""
    outputs: Origins
    """What its outputs are."""

    def sites(self) -> Iterator[Site]:
        """All sites, in program order."""
        for entry in self.found.values():
            if isinstance(entry, Site):
                yield entry
            else:
                for _, body in entry.inside:
                    yield from body.sites()

    def opaque_primitives(self) -> Iterator[str]:
        """Names of all primitives that cannot be entered, in program order."""
        yield from self.opaque.values()
        for entry in self.found.values():
            if isinstance(entry, Call):
                for _, body in entry.inside:
                    yield from body.opaque_primitives()

    def bind(self, policy) -> BoundPolicy:
        """Resolve a policy for this program."""
        return policy.bind(site.operation for site in self.sites() if site.obstacle is None)


def survey(jaxpr: Jaxpr, inputs: Origins, scope: Scope) -> Body:
    """Walk a jaxpr and the jaxprs inside it.

    Arguments:
        jaxpr: the program.
        inputs: what each input is, as far as known.
        scope: the jaxpr's place.
    """
    origins: dict[Var, Hashable] = {
        var: origin for var, origin in zip(jaxpr.invars, inputs, strict=True) if origin is not None
    }

    def origin_of(atom: Var | Literal | None) -> Hashable:
        """What a value is: an argument's path, or an object of its own."""
        return origins.setdefault(atom, object()) if isinstance(atom, Var) else None

    found: dict[int, Site | Call] = {}
    opaque: dict[int, str] = {}
    thawed: dict[Var, JaxprEqn] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        primitive = eqn.primitive.name
        stack = scope.stack + eqn.source_info.name_stack
        if primitive in CONTRACTIONS or primitive in QUANTIZED:
            found[index] = _site(eqn, stack, origin_of, scope, thawed)
        elif primitive in OPAQUE or _hides_contractions(eqn):
            opaque[index] = primitive
        elif inside := sub_jaxprs(eqn):
            call = _call(eqn, inside, stack, origin_of, scope)
            found[index] = call
            origins.update(_results(eqn, call))
        elif primitive in PATH_KEEPING:
            origins[eqn.outvars[0]] = origin_of(eqn.invars[0])
            if primitive == "dfp_thaw":
                thawed[eqn.outvars[0]] = eqn
    return Body(jaxpr=jaxpr, found=found, opaque=opaque, outputs=[origin_of(v) for v in jaxpr.outvars])


def _hides_contractions(eqn: JaxprEqn) -> bool:
    def contracts(jaxpr: Jaxpr) -> bool:
        return any(
            inner.primitive.name in CONTRACTIONS
            or any(contracts(opened(sub.jaxpr)) for sub in sub_jaxprs(inner))
            or _hides_contractions(inner)
            for inner in jaxpr.eqns
        )

    return any(map(contracts, hidden_jaxprs(eqn)))


def _site(eqn: JaxprEqn, stack: Any, origin_of: Callable, scope: Scope, thawed: dict[Var, JaxprEqn]) -> Site:
    operation = Operation(
        primitive=eqn.primitive.name,
        name=layer_name(stack),
        operands=tuple(origin_of(v) for v in factors(eqn)),
        derived=scope.derived or in_backward_pass(stack),
        recomputed=is_recomputation(stack),
        float64=in_float64(eqn),
    )
    kept = "in float32 by an OpConfig already" if is_kept_float32(stack) else None
    return Site(
        eqn=eqn,
        operation=operation,
        obstacle=kept or obstacle(eqn),
        count=scope.count,
        thawed=tuple(thawed.get(v) if isinstance(v, Var) else None for v in factors(eqn)),
    )


def _call(eqn: JaxprEqn, inside: list[SubJaxpr], stack: Any, origin_of: Callable, scope: Scope) -> Call:
    bodies = []
    for sub in inside:
        inner = Scope(stack=stack, count=scope.count * sub.count, derived=scope.derived)
        bodies.append((sub, survey(opened(sub.jaxpr), [origin_of(v) for v in sub.operands], inner)))
    own = Scope(stack=stack, count=scope.count, derived=scope.derived)
    return Call(scope=own, inputs=[origin_of(v) for v in eqn.invars], inside=tuple(bodies))


def _results(eqn: JaxprEqn, call: Call) -> Iterator[tuple[Var, Hashable]]:
    """What each result of a call is, where all of its jaxprs agree."""
    outputs = [body.outputs for sub, body in call.inside if sub.gives_results]
    for var, *candidates in zip(eqn.outvars, *outputs, strict=True) if outputs else ():
        if candidates[0] is not None and len(set(candidates)) == 1:
            yield var, candidates[0]
