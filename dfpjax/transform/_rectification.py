"""Recognizes rectification, max(x, bound), in a jaxpr, and the derivative of `jax.nn.relu`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import partial_eval

from dfpjax import _compat
from dfpjax.transform._subjaxprs import opened


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """An equation that computes max(x, bound), such as relu."""

    x: Var
    bound: float
    rule: Jaxpr | None = None
    """The rule of a `custom_jvp`, from x and its tangent to the value and its tangent."""


def lower_bound(eqn: JaxprEqn, jaxpr: Jaxpr, *, in_rule: bool = False) -> Bounded | None:
    """x and the bound, if an equation of the jaxpr is max(x, bound) for a number.

    A rule usually calls its own function for the value, so functions inside a rule need no check of their
    own rule.
    """
    if eqn.primitive.name == "max":
        for x, bound in (eqn.invars, eqn.invars[::-1]):
            if isinstance(x, Var) and isinstance(bound, Literal) and bound.aval.shape == ():
                return Bounded(x=x, bound=bound.val)
        return None
    inside = eqn.params.get("call_jaxpr") or eqn.params.get("jaxpr")
    if inside is None or eqn.primitive.name not in ("custom_jvp_call", "jit"):
        return None
    inside = opened(inside)
    if len(inside.eqns) != 1 or list(inside.outvars) != list(inside.eqns[0].outvars):
        return None
    found = lower_bound(inside.eqns[0], inside, in_rule=in_rule)
    if found is None or found.x not in inside.invars:
        return None
    x = eqn.invars[inside.invars.index(found.x)]
    if not isinstance(x, Var):
        return None
    if eqn.primitive.name == "jit" or in_rule:
        return Bounded(x=x, bound=found.bound)
    rule = _rule_of(eqn, jaxpr)
    # When JAX differentiates, the rule also gives the value, and that value may differ from the function's.
    if rule is not None and not _has_value(rule, found.bound):
        return None
    return Bounded(x=x, bound=found.bound, rule=rule)


def _rule_of(eqn: JaxprEqn, jaxpr: Jaxpr) -> Jaxpr | None:
    """The rule of a `custom_jvp` of one array, or None if tracing it fails: the program may not need it."""
    if len(eqn.invars) != 1:
        return None
    alone = jaxpr.replace(constvars=[], invars=eqn.invars, outvars=eqn.outvars, eqns=[eqn])
    call = functools.partial(_compat.eval_jaxpr, alone, ())
    try:
        return _traced_jvp(lambda x: call(x)[0], eqn)
    except Exception:  # such as a rule that raises because the program is for inference
        return None


def _has_value(rule: Jaxpr, bound: float) -> bool:
    """Whether the value that a rule gives is max(x, bound)."""
    for eqn in rule.eqns:
        if rule.outvars[0] in eqn.outvars:
            found = lower_bound(eqn, rule, in_rule=True)
            return (
                found is not None
                and found.x is rule.invars[0]
                and np.array_equal(found.bound, bound, equal_nan=True)
            )
    return False


def is_relu(eqn: JaxprEqn, found: Bounded) -> bool:
    """Whether it is max(x, 0) with the derivative of `jax.nn.relu`, which is 0 at 0."""
    if found.rule is None or found.bound != 0 or np.signbit(found.bound):  # max(x, −0) may be −0
        return False
    return _derivative(found.rule) == _derivative(_traced_jvp(jax.nn.relu, eqn))


def _traced_jvp(fun: Callable, eqn: JaxprEqn) -> Jaxpr:
    """The jaxpr from x, an equation's operand, and its tangent to `fun`'s value and its tangent."""
    with eqn.ctx.manager:
        avals = [eqn.invars[0].aval] * 2
        return _compat.trace(lambda x, t: jax.jvp(fun, (x,), (t,)), avals, "derivative")[0]


def _derivative(rule: Jaxpr) -> str:
    """The text of the equations that compute the tangent."""
    needed, _ = partial_eval.dce_jaxpr(rule, [False, True], instantiate=True)
    return str(needed)
