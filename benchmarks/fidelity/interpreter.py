"""Evaluates a function and exposes the operands of its convolutions and dot products, inside scans too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.core.primitives import conv_general_dilated_p, dot_general_p, jit_p, scan_p

LAYERS = (conv_general_dilated_p, dot_general_p)


@dataclass
class Exposed:
    """What one evaluation found.

    A layer's name is its path in the program, such as ``ResNet/Bottleneck_1/Conv_0``. The second layer with
    the same path has `` #2`` behind it, and so on.
    """

    tensors: dict[str, tuple[jax.Array, jax.Array, jax.Array]] = field(default_factory=dict)
    """Of each layer lhs, rhs and result. The first axis of what is inside a scan is the scan's."""

    equations: dict[str, JaxprEqn] = field(default_factory=dict)

    def unused(self, path: str) -> str:
        """The name of a new layer on that path."""
        count = 1 + sum(_path(name) == path for name in self.equations)
        return path if count == 1 else f"{path} #{count}"


def _path(name: str) -> str:
    return name.partition(" #")[0]


def expose(function: Callable, added: dict[str, jax.Array], *args):
    """The function's result, and what its layers compute with.

    Arguments:
        function: of arrays, to a tree of arrays.
        added: for names of layers, what to add to their results: a zero there has the result's gradient.
        args: the function's arguments.

    Returns:
        (the result, `Exposed`).
    """
    jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    exposed = Exposed()
    results = _evaluate(jaxpr, jax.tree.leaves(args), "", added, exposed)
    return jax.tree.unflatten(jax.tree.structure(shape), results), exposed


def _evaluate(closed: ClosedJaxpr, args: Sequence, path: str, added: dict, exposed: Exposed) -> list:
    jaxpr: Jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        below = "/".join(filter(None, (path, str(eqn.source_info.name_stack))))
        if eqn.primitive is jit_p:
            results = _evaluate(eqn.params["jaxpr"], inputs, below, added, exposed)
        elif eqn.primitive is scan_p:
            results = _scan(eqn, inputs, below, added, exposed)
        else:
            results = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            if eqn.primitive in LAYERS:
                name = exposed.unused(below)
                exposed.equations[name] = eqn
                exposed.tensors[name] = (*inputs, results)
                results += added.get(name, 0)
        values.update(zip(eqn.outvars, results if isinstance(results, Sequence) else [results], strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _same_rank(outside: Sequence, inside: Sequence) -> int:
    return sum(one.aval.ndim == other.aval.ndim for one, other in zip(outside, inside, strict=True))


def _scan(eqn: JaxprEqn, inputs: list, path: str, added: dict, exposed: Exposed) -> list:
    params = eqn.params
    body = params["jaxpr"].jaxpr
    # Releases of JAX say in different ways which operands are scanned. These have an axis more outside.
    carried = _same_rank(eqn.outvars, body.outvars)
    fixed = _same_rank(eqn.invars, body.invars)
    consts, carry, xs = inputs[: fixed - carried], inputs[fixed - carried : fixed], inputs[fixed:]
    inside = Exposed()

    def step(carry, xs):
        found = Exposed()
        values, added = xs
        results = _evaluate(params["jaxpr"], (*consts, *carry, *values), path, added, found)
        inside.equations.update(found.equations)
        return results[: len(carry)], (results[len(carry) :], found.tensors)

    added = {name: value for name, value in added.items() if f"{_path(name)}/".startswith(f"{path}/")}
    scan = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, tensors) = lax.scan(step, carry, (xs, added), **scan)
    exposed.equations.update(inside.equations)
    exposed.tensors.update(tensors)
    return [*carry, *ys]
