"""The jaxprs inside an equation: one small rule per higher-order primitive.

A rewritten conv or dot keeps its operand and result types, so every jaxpr is rewritten in place and its
equation keeps all other parameters. A rule only says where the jaxprs are and which operands they get. A
primitive that is not listed has the generic rule, which takes the parameters that are jaxprs or consist of
jaxprs.

A jaxpr among other data stays, since its owner may hold a second reference and compare. Equinox's primitives,
for one, keep the static leaves of their arguments in a parameter, and a closure among these is a jaxpr.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.tree_util import PyTreeDef

from dfpjax import _compat

OPAQUE = frozenset(
    {
        "call_hi_primitive", "call_hi_primitive_linearized", "core_map", "custom_partitioning", "ffi_call",
        "io_callback", "mpmd_map", "pallas_call", "pure_callback", "ragged_dot_general",
    }
)  # fmt: skip
"""Primitives that may hide dot products, or whose jaxprs must not be rewritten."""

Atom = Var | Literal


@dataclass(frozen=True, kw_only=True, eq=False)
class SubJaxpr:
    """A jaxpr among an equation's parameters."""

    parameter: str
    index: int
    """Its index among the jaxprs of that parameter, which may be a tuple."""

    jaxpr: Jaxpr | ClosedJaxpr
    operands: Sequence[Atom | None]
    """For each of the jaxpr's inputs the equation's operand, or None if it has none."""

    gives_results: bool = True
    """Whether its outputs are the equation's results."""

    count: int = 1
    """How often it runs; 1 if that is unknown."""

    environment: Callable[[], AbstractContextManager] = contextlib.nullcontext
    """The environment to trace it in."""

    closed_over_axes: tuple[str, ...] = ()
    """Named axes that exist only inside it."""


Rule = Callable[[JaxprEqn], list[SubJaxpr]]


def sub_jaxprs(eqn: JaxprEqn) -> list[SubJaxpr]:
    """The jaxprs that the equation calls, in program order; none for an opaque primitive."""
    if eqn.primitive.name in OPAQUE:
        return []
    return _RULES.get(eqn.primitive.name, _generic)(eqn)


def opened(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """A jaxpr without its constants."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def with_sub_jaxprs(params: dict, new: dict[tuple[str, int], Jaxpr | ClosedJaxpr]) -> dict:
    """Parameters with new jaxprs; `new` is keyed by (parameter, index)."""
    params = dict(params)
    for parameter in {parameter for parameter, _ in new}:
        leaves, treedef = jax.tree.flatten(params[parameter])
        leaves = [new.get((parameter, index), leaf) for index, leaf in enumerate(leaves)]
        params[parameter] = jax.tree.unflatten(treedef, leaves)
    return params


def hidden_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs among the equation's parameters that cannot be replaced."""
    entered = {id(opened(sub.jaxpr)) for sub in sub_jaxprs(eqn)}
    found = [opened(leaf) for value in eqn.params.values() for leaf in _leaves(value) if _is_jaxpr(leaf)]
    return [jaxpr for jaxpr in found if id(jaxpr) not in entered]


def _is_jaxpr(leaf: Any) -> bool:
    return isinstance(leaf, Jaxpr | ClosedJaxpr)


def _leaves(value: Any) -> list[Any]:
    """The leaves of a parameter. Only Python's containers are opened, as other objects belong to others."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else None
    return [value] if inside is None else [leaf for v in inside if v is not None for leaf in _leaves(v)]


def _generic(eqn: JaxprEqn) -> list[SubJaxpr]:
    found = []
    # In a parameter that also has the structure of a pytree, jaxprs are leaves of that pytree.
    is_tree = any(isinstance(value, PyTreeDef) for value in eqn.params.values())
    for parameter, value in eqn.params.items():
        leaves = _leaves(value)
        if _is_jaxpr(value) or (not is_tree and all(map(_is_jaxpr, leaves))):
            found += [(parameter, index, leaf) for index, leaf in enumerate(leaves)]
    # One jaxpr with an input for every operand is a call. With several jaxprs (custom_linear_solve,
    # select_and_scatter) or another number of inputs (reduce, scatter) the operands of each are unknown.
    is_call = len(found) == 1 and len(found[0][2].invars) == len(eqn.invars)
    return [
        SubJaxpr(
            parameter=parameter,
            index=index,
            jaxpr=jaxpr,
            operands=eqn.invars if is_call else [None] * len(jaxpr.invars),
            gives_results=is_call and len(jaxpr.outvars) == len(eqn.outvars),
        )
        for parameter, index, jaxpr in found
    ]


def _scan(eqn: JaxprEqn) -> list[SubJaxpr]:
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    return [SubJaxpr(parameter="jaxpr", index=0, jaxpr=body, operands=eqn.invars, count=length)]


def _while(eqn: JaxprEqn) -> list[SubJaxpr]:
    cond_count, body_count = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = eqn.invars[cond_count + body_count :]
    cond_operands = [*eqn.invars[:cond_count], *carry]
    body_operands = [*eqn.invars[cond_count : cond_count + body_count], *carry]
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    return [
        SubJaxpr(parameter="cond_jaxpr", index=0, jaxpr=cond, operands=cond_operands, gives_results=False),
        SubJaxpr(parameter="body_jaxpr", index=0, jaxpr=body, operands=body_operands),
    ]


def _cond(eqn: JaxprEqn) -> list[SubJaxpr]:
    return [
        SubJaxpr(parameter="branches", index=index, jaxpr=branch, operands=eqn.invars[1:])
        for index, branch in enumerate(eqn.params["branches"])
    ]


def _shard_map(eqn: JaxprEqn) -> list[SubJaxpr]:
    mesh, manual = eqn.params["mesh"], _compat.newly_manual_axes(eqn.params)
    check_vma = eqn.params["check_vma"]
    return [
        SubJaxpr(
            parameter="jaxpr",
            index=0,
            jaxpr=eqn.params["jaxpr"],
            operands=eqn.invars,
            count=math.prod(mesh.shape[axis] for axis in manual),
            environment=lambda: _compat.inside_shard_map(mesh, manual, check_vma),
            closed_over_axes=tuple(mesh.axis_names),
        )
    ]


_RULES: dict[str, Rule] = {"cond": _cond, "scan": _scan, "shard_map": _shard_map, "while": _while}
