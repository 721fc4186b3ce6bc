"""Survey of a program: every convolution and dot product in it, found once for the rewrite and for
`explain`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from dfpjax.policy._layers import PATH_KEEPING, in_backward_pass, layer_name
from dfpjax.policy._policy import BoundPolicy
from dfpjax.policy._rules import Operation
from dfpjax.transform._contractions import CONTRACTIONS, QUANTIZED, obstacle
from dfpjax.transform._subjaxprs import OPAQUE, SubJaxpr, sub_jaxprs

Paths = Sequence[str | None]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Where a jaxpr stands in the program."""

    stack: object
    """Name stack of the equation that holds it: name stacks start anew in each jaxpr."""

    count: int = 1
    """How often it runs, as far as that is known."""

    derived: bool = False
    """It is a rule (of `jax.custom_vjp` and its like) and not the program itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """A convolution or dot product."""

    eqn: JaxprEqn
    operation: Operation
    obstacle: str | None
    """Why it cannot be computed in dynamic fixed point, or None."""
    count: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """An equation that holds jaxprs."""

    scope: Scope
    """Where they stand."""
    paths: Paths
    """Of the equation's operands."""
    inside: tuple[tuple[SubJaxpr, "Body"], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """A jaxpr, and what was found in it."""

    jaxpr: Jaxpr
    found: dict[int, Site | Call]
    """By the index of the equation."""
    opaque: dict[int, str]
    """Names of the primitives that could not be entered, by the index of the equation."""
    out_paths: Paths

    def sites(self) -> Iterator[Site]:
        """All sites, in program order."""
        for entry in self.found.values():
            if isinstance(entry, Site):
                yield entry
            else:
                for _, body in entry.inside:
                    yield from body.sites()

    def opaque_primitives(self) -> Iterator[str]:
        """Names of all primitives that could not be entered, in program order."""
        yield from self.opaque.values()
        for entry in self.found.values():
            if isinstance(entry, Call):
                for _, body in entry.inside:
                    yield from body.opaque_primitives()

    def bind(self, policy) -> BoundPolicy:
        """Resolve a policy for this program."""
        return policy.bind(site.operation for site in self.sites() if site.obstacle is None)


def survey(jaxpr: Jaxpr, in_paths: Paths, scope: Scope) -> Body:
    """Walk a jaxpr and the ones inside of it.

    Arguments:
        jaxpr: the program.
        in_paths: for each input, the path of the argument that it is, or None.
        scope: where the jaxpr stands.
    """
    paths: dict[Var, str] = {v: p for v, p in zip(jaxpr.invars, in_paths, strict=True) if p is not None}

    def path_of(atom) -> str | None:
        return None if atom is None or isinstance(atom, Literal) else paths.get(atom)

    found: dict[int, Site | Call] = {}
    opaque: dict[int, str] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        primitive = eqn.primitive.name
        stack = scope.stack + eqn.source_info.name_stack
        if primitive in CONTRACTIONS or primitive in QUANTIZED:
            operand_paths = [path_of(v) for v in eqn.invars]
            found[index] = _site(eqn, stack, operand_paths, scope)
        elif primitive in OPAQUE:
            opaque[index] = primitive
        elif inside := sub_jaxprs(eqn):
            call = _call(eqn, inside, stack, path_of, scope)
            found[index] = call
            _add_result_paths(paths, eqn, call)
        elif primitive in PATH_KEEPING and path_of(eqn.invars[0]):
            paths[eqn.outvars[0]] = path_of(eqn.invars[0])
    return Body(jaxpr=jaxpr, found=found, opaque=opaque, out_paths=[path_of(v) for v in jaxpr.outvars])


def _site(eqn: JaxprEqn, stack, operand_paths: Paths, scope: Scope) -> Site:
    operation = Operation(
        primitive=eqn.primitive.name,
        name=layer_name(stack),
        paths=tuple(path for path in reversed(operand_paths) if path),  # a kernel stands at the right, mostly
        derived=scope.derived or in_backward_pass(stack),
    )
    return Site(eqn=eqn, operation=operation, obstacle=obstacle(eqn), count=scope.count)


def _call(eqn: JaxprEqn, inside: list[SubJaxpr], stack, path_of, scope: Scope) -> Call:
    bodies = []
    for sub in inside:
        inner = Scope(stack=stack, count=scope.count * sub.count, derived=scope.derived)
        bodies.append((sub, survey(sub.jaxpr, [path_of(v) for v in sub.operands], inner)))
    own = Scope(stack=stack, count=scope.count, derived=scope.derived)
    return Call(scope=own, paths=[path_of(v) for v in eqn.invars], inside=tuple(bodies))


def _add_result_paths(paths: dict[Var, str], eqn: JaxprEqn, call: Call) -> None:
    outs = [body.out_paths for sub, body in call.inside if sub.gives_results]
    if not outs:
        return
    for var, *candidates in zip(eqn.outvars, *outs, strict=True):
        if candidates[0] and len(set(candidates)) == 1:
            paths[var] = candidates[0]
