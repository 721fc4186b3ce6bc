"""Products that move out of a `scan`: those of its inputs and what does not change in it.

A recurrent layer multiplies its input of each step by the same matrix, and adds what the state of the step
before gives. The former products need no state: one dot product of all steps, ahead of the loop, has the same
results, and so have its gradients, behind the loop of the backward pass. It quantizes and packs the matrix
once, and has as many rows as the sequence has steps.

A product moves if it runs in dynamic fixed point, one operand comes from the loop's inputs and the other from
its constants, both by equations that only rearrange or compute element by element, and its result meets the
carry in the same way, other than being added up. The last condition leaves alone loops over microbatches,
whose products need no carry either: they are there to save memory.
"""

import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.source_info_util import user_context

from dfpjax import _compat
from dfpjax.numbers.format.explicit import explicit_axes
from dfpjax.transform._contractions import CONTRACTIONS
from dfpjax.transform._replace import renamed, without_constants
from dfpjax.transform._subjaxprs import opened, sub_jaxprs, with_sub_jaxprs

_ELEMENTWISE = frozenset({"add", "add_any", "div", "max", "min", "mul", "neg", "select_n", "sub"})
_REARRANGING = frozenset(
    {
        "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p", "expand_dims", "pad",
        "reshape", "rev", "slice", "split", "squeeze", "transpose",
    }
)  # fmt: skip
_CHEAP = _ELEMENTWISE | _REARRANGING


class _Kind(enum.IntEnum):
    """What a value in a loop's body depends on. The kind of a result is the highest of its operands'."""

    CONSTANT = 0
    INPUT = 1
    """The inputs of this iteration."""
    PRODUCT = 2
    """Products that may move."""
    STUCK = 3
    """An equation that stays, but no state."""
    STATE = 4


def hoisted(jaxpr: Jaxpr, moves: Callable[[JaxprEqn], bool]) -> Jaxpr:
    """A program whose products have moved out of the loops in it as far as possible; the same object if none
    has.

    Arguments:
        jaxpr: the program.
        moves: whether a convolution or dot product may move.
    """
    return _Hoisting(moves).program(jaxpr)


class _Hoisting:
    """Moves the products of one program. The same jaxpr gives the same result each time."""

    def __init__(self, moves: Callable[[JaxprEqn], bool]):
        self._moves = moves
        self._done: WeakKeyDictionary[Jaxpr, Jaxpr] = WeakKeyDictionary()
        self._closed: WeakKeyDictionary[ClosedJaxpr, ClosedJaxpr] = WeakKeyDictionary()

    def program(self, jaxpr: Jaxpr) -> Jaxpr:
        if jaxpr not in self._done:
            eqns = [new for eqn in jaxpr.eqns for new in self._equations(eqn)]
            same = list(map(id, eqns)) == list(map(id, jaxpr.eqns))
            self._done[jaxpr] = jaxpr if same else jaxpr.replace(eqns=eqns)
        return self._done[jaxpr]

    def _equations(self, eqn: JaxprEqn) -> list[JaxprEqn]:
        new = {}
        for sub in sub_jaxprs(eqn):
            with sub.environment():
                inside = self.program(opened(sub.jaxpr))
            if inside is not opened(sub.jaxpr):
                new[sub.parameter, sub.index] = self._like(sub.jaxpr, inside)
        if new:
            eqn = eqn.replace(params=with_sub_jaxprs(eqn.params, new))
        return self._out_of(eqn) if eqn.primitive.name == "scan" else [eqn]

    def _like(self, old: Jaxpr | ClosedJaxpr, new: Jaxpr) -> Jaxpr | ClosedJaxpr:
        if not isinstance(old, ClosedJaxpr):
            return new
        return self._closed.setdefault(old, old.replace(jaxpr=new))

    def _out_of(self, scan: JaxprEqn) -> list[JaxprEqn]:
        """The equations of a loop and of what moves out of it."""
        body = opened(scan.params["jaxpr"])
        constants, carry = _compat.scan_constants(scan.params), _compat.scan_carry(scan.params)
        moving = self._moving(body, constants, carry)
        if not moving or _has_explicit_axes(scan):
            return [scan]
        loop = functools.partial(_loop, scan.params, moving, constants, carry)
        with user_context(scan.source_info.traceback), scan.ctx.manager:
            jaxpr = with_own_results(loop, [v.aval for v in scan.invars])
        outvars = dict(zip(jaxpr.outvars, scan.outvars, strict=True))
        return renamed(jaxpr, scan, {**dict(zip(jaxpr.invars, scan.invars, strict=True)), **outvars})

    def _moving(self, body: Jaxpr, constants: int, carry: int) -> list[JaxprEqn]:
        """The products of a loop's body that can move, in their order."""
        kinds = dict.fromkeys((*body.constvars, *body.invars[:constants]), _Kind.CONSTANT)
        kinds |= dict.fromkeys(body.invars[constants : constants + carry], _Kind.STATE)
        kinds |= dict.fromkeys(body.invars[constants + carry :], _Kind.INPUT)
        totals = dict(zip(body.invars[constants:], body.outvars[:carry], strict=False))
        of: dict[Var, set[int]] = {}  # the products in a value, by the index of the equation
        found: set[int] = set()
        for index, eqn in enumerate(body.eqns):
            operands = [v for v in eqn.invars if isinstance(v, Var)]
            kind = max((kinds[v] for v in operands), default=_Kind.CONSTANT)
            products = set().union(*(of.get(v, set()) for v in operands))
            if eqn.primitive.name in CONTRACTIONS and self._moves(eqn):
                if sorted(map(kinds.get, operands)) == [_Kind.CONSTANT, _Kind.INPUT]:
                    kind, products = _Kind.PRODUCT, {index}
                else:
                    kind, products = max(kind, _Kind.STUCK), set()
            elif eqn.primitive.name not in _CHEAP:
                kind, products = max(kind, _Kind.STUCK), set()
            elif kind is _Kind.STATE:
                adds_up = any(totals.get(v) is eqn.outvars[0] for v in operands)
                found |= products if eqn.primitive.name in _ELEMENTWISE and not adds_up else set()
                products = set()
            for v in eqn.outvars:
                kinds[v], of[v] = kind, products
        return [body.eqns[index] for index in sorted(found)]


def _loop(params: dict, moving: Sequence[JaxprEqn], constants: int, carry: int, *operands) -> list[jax.Array]:
    """A scan with its products ahead of it, given its operands."""
    closed = params["jaxpr"]
    body, results = opened(closed), [eqn.outvars[0] for eqn in moving]
    fixed, state, inputs = operands[:constants], operands[constants:][:carry], operands[constants + carry :]
    arguments = [*body.invars[:constants], *body.invars[constants + carry :]]
    ahead = _needed(body.replace(invars=arguments, outvars=results))
    moved = set(map(id, moving))
    stay = [eqn for eqn in body.eqns if id(eqn) not in moved]
    rest = _needed(body.replace(invars=[*body.invars, *results], eqns=stay))

    def products(*inputs):
        return _compat.eval_jaxpr(ahead, closed.consts, *fixed, *inputs)

    def step(state, inputs):
        results = _compat.eval_jaxpr(rest, closed.consts, *fixed, *state, *inputs)
        return results[:carry], results[carry:]

    inputs = [*inputs, *jax.vmap(products)(*inputs)]
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    state, stacked = lax.scan(step, list(state), inputs, **options)
    return [*state, *stacked]


def with_own_results(fun: Callable, avals: Sequence[Any]) -> Jaxpr:
    """Trace a function so that each result is a variable of its own, whose name can be changed. A loop that
    hands a value on unchanged gives the value itself."""
    jaxpr = without_constants(fun, avals, "scan")
    taken: set[Any] = set(jaxpr.invars)
    handed_on = []
    for v in jaxpr.outvars:
        handed_on.append(isinstance(v, Literal) or v in taken)
        taken |= set() if isinstance(v, Literal) else {v}
    if not any(handed_on):
        return jaxpr

    def copied(*operands):
        results = fun(*operands)
        return [jnp.copy(x) if again else x for x, again in zip(results, handed_on, strict=True)]

    return without_constants(copied, avals, "scan")


def _needed(jaxpr: Jaxpr) -> Jaxpr:
    """A jaxpr without the equations on which neither its results nor effects depend."""
    needed = {v for v in jaxpr.outvars if isinstance(v, Var)}
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            eqns.append(eqn)
            needed.update(v for v in eqn.invars if isinstance(v, Var))
    return jaxpr.replace(eqns=eqns[::-1])


def _has_explicit_axes(eqn: JaxprEqn) -> bool:
    return any(
        explicit_axes(v.aval.sharding.mesh)
        for v in eqn.invars
        if not isinstance(v, Literal) and hasattr(v.aval, "sharding")
    )
