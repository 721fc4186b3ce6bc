"""Frozen arrays enter the jaxprs inside a program as they are.

In a traced program an equation `dfp_thaw` makes a float32 array of each frozen one. Where such an array is
handed to a jitted call, a branch, a loop or a `jax.checkpoint`, the arrays of the frozen one are handed over
instead, and the equation is repeated inside. So a product finds its frozen operand beside it, wherever it
stands. A transposed operand of a dot product becomes the frozen array itself, with other dimension numbers.

Carries of loops, and operands of custom derivative rules, `shard_map` and what cannot be entered, stay
float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.source_info_util import user_context

from dfpjax import _compat
from dfpjax.numbers.format.frozen import thaw_p
from dfpjax.transform._hoist import with_own_results
from dfpjax.transform._replace import renamed, without_constants
from dfpjax.transform._subjaxprs import opened, with_sub_jaxprs

THAW = "dfp_thaw"

Thawed = dict[Var, JaxprEqn]


def sunk(jaxpr: Jaxpr) -> Jaxpr:
    """A program whose frozen arrays enter the jaxprs in it; the same object if it has none at its top."""
    return _Sinking().program(jaxpr)


class _Sinking:
    """One program's. The same jaxpr with the same frozen inputs gives the same result each time."""

    def __init__(self):
        self._done: dict[Any, tuple[Any, Any]] = {}

    def program(self, jaxpr: Jaxpr) -> Jaxpr:
        thawed: Thawed = {}
        transposed: dict[Var, JaxprEqn] = {}
        eqns: list[JaxprEqn] = []
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == THAW:
                thawed[eqn.outvars[0]] = eqn
            elif eqn.primitive.name == "transpose" and eqn.invars[0] in thawed:
                transposed[eqn.outvars[0]] = eqn
            elif eqn.primitive.name == "dot_general":
                eqn = _untransposed(eqn, transposed)
            elif eqn.primitive.name == "gather" and _takes_rows(eqn, thawed):
                eqns += _rows_of_frozen(eqn, thawed[eqn.invars[0]])
                continue
            elif any(isinstance(v, Var) and v in thawed for v in eqn.invars):
                eqns += self._entered(eqn, thawed)
                continue
            eqns.append(eqn)
        same = list(map(id, eqns)) == list(map(id, jaxpr.eqns))
        return jaxpr if same else jaxpr.replace(eqns=eqns)

    def _entered(self, eqn: JaxprEqn, thawed: Thawed) -> list[JaxprEqn]:
        rule = _RULES.get(eqn.primitive.name)
        return [eqn] if rule is None else rule(self, eqn, thawed)

    def _inside(self, jaxpr: Jaxpr | ClosedJaxpr, at: dict[int, JaxprEqn]) -> Jaxpr | ClosedJaxpr:
        """A jaxpr whose inputs at these places are given as frozen arrays."""
        key = (id(jaxpr), tuple((i, eqn.params["form"], _types(eqn)) for i, eqn in at.items()))
        if key not in self._done:
            open_ = opened(jaxpr)
            invars, eqns = [], []
            for i, v in enumerate(open_.invars):
                if i not in at:
                    invars.append(v)
                    continue
                with user_context(at[i].source_info.traceback), at[i].ctx.manager:
                    own = without_constants(_thaw(at[i]), _avals(at[i]), THAW)
                invars += own.invars
                eqns += renamed(own, at[i], {own.outvars[0]: v})
            new = self.program(open_.replace(invars=invars, eqns=[*eqns, *open_.eqns], debug_info=_NAMELESS))
            new = jaxpr.replace(jaxpr=new) if isinstance(jaxpr, ClosedJaxpr) else new
            self._done[key] = jaxpr, new  # the old one is kept, so that its id stays its own
        return self._done[key][1]

    def _call(self, eqn: JaxprEqn, thawed: Thawed) -> list[JaxprEqn]:
        """A primitive that calls one jaxpr with all its operands."""
        at = _places(eqn.invars, thawed)
        shardings = eqn.params.get("in_shardings", ())
        at = {i: own for i, own in at.items() if not shardings or shardings[i] is _compat.UNSPECIFIED}
        params = dict(eqn.params)
        for name in _PER_OPERAND & params.keys():
            params[name] = tuple(
                value
                for i, value in enumerate(params[name])
                for _ in range(len(at[i].invars) if i in at else 1)
            )
        params["jaxpr"] = self._inside(params["jaxpr"], at)
        return [eqn.replace(invars=_expanded(eqn.invars, at), params=params)]

    def _cond(self, eqn: JaxprEqn, thawed: Thawed) -> list[JaxprEqn]:
        index, *operands = eqn.invars
        at = _places(operands, thawed)
        branches = [self._inside(branch, at) for branch in eqn.params["branches"]]
        new = {("branches", i): branch for i, branch in enumerate(branches)}
        return [
            eqn.replace(invars=[index, *_expanded(operands, at)], params=with_sub_jaxprs(eqn.params, new))
        ]

    def _while(self, eqn: JaxprEqn, thawed: Thawed) -> list[JaxprEqn]:
        params = dict(eqn.params)
        counts = params["cond_nconsts"], params["body_nconsts"]
        of_cond, of_body = eqn.invars[: counts[0]], eqn.invars[counts[0] :][: counts[1]]
        rest = eqn.invars[sum(counts) :]
        invars = []
        for name, operands in (("cond", of_cond), ("body", of_body)):
            at = _places(operands, thawed)
            params[f"{name}_jaxpr"] = self._inside(params[f"{name}_jaxpr"], at)
            operands = _expanded(operands, at)
            params[f"{name}_nconsts"] = len(operands)
            invars += operands
        return [eqn.replace(invars=[*invars, *rest], params=params)]

    def _scan(self, eqn: JaxprEqn, thawed: Thawed) -> list[JaxprEqn]:
        params = eqn.params
        constants, carry = _compat.scan_constants(params), _compat.scan_carry(params)
        at = _places(eqn.invars, thawed)
        at = {
            i: own
            for i, own in at.items()
            if i < constants or (i >= constants + carry and _has_slices(own, params["length"]))
        }
        if not at:
            return [eqn]
        closed = params["jaxpr"]
        body = opened(closed)

        def loop(*operands):
            given = iter(operands)
            groups = [
                _Frozen(at[i], [next(given) for _ in at[i].invars]) if i in at else next(given)
                for i in range(len(eqn.invars))
            ]
            fixed, state, inputs = groups[:constants], groups[constants:][:carry], groups[constants + carry :]

            def step(state, inputs):
                arguments = [*fixed, *state, *inputs]
                arguments = [x.thaw() if isinstance(x, _Frozen) else x for x in arguments]
                results = _compat.eval_jaxpr(body, closed.consts, *arguments)
                return results[:carry], results[carry:]

            options = {name: params[name] for name in ("length", "reverse", "unroll")}
            state, stacked = lax.scan(step, list(state), inputs, **options)
            return [*state, *stacked]

        invars = _expanded(eqn.invars, at)
        with user_context(eqn.source_info.traceback), eqn.ctx.manager:
            jaxpr = self._bodies(with_own_results(loop, [v.aval for v in invars]))
        rename = dict(zip(jaxpr.invars, invars, strict=True))
        return renamed(jaxpr, eqn, {**rename, **dict(zip(jaxpr.outvars, eqn.outvars, strict=True))})

    def _bodies(self, jaxpr: Jaxpr) -> Jaxpr:
        """The same for the bodies of loops that have been traced anew."""
        eqns = []
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "scan":
                body = eqn.params["jaxpr"]
                inside = body.replace(jaxpr=self.program(opened(body)))
                eqn = eqn.replace(params=with_sub_jaxprs(eqn.params, {("jaxpr", 0): inside}))
            eqns.append(eqn)
        return jaxpr.replace(eqns=eqns)


@jax.tree_util.register_pytree_node_class
class _Frozen:
    """The arrays of a frozen operand of a loop, which the loop may slice."""

    def __init__(self, eqn: JaxprEqn, arrays: Sequence[Any]):
        self._eqn, self._arrays = eqn, arrays

    def thaw(self) -> jax.Array:
        return thaw_p.bind(*self._arrays, **self._eqn.params)

    def tree_flatten(self):
        return tuple(self._arrays), self._eqn

    @classmethod
    def tree_unflatten(cls, eqn, arrays):
        return cls(eqn, arrays)


_RULES = {
    "jit": _Sinking._call,
    "pjit": _Sinking._call,
    "closed_call": _Sinking._call,
    "core_call": _Sinking._call,
    "remat2": _Sinking._call,
    "checkpoint": _Sinking._call,
    "cond": _Sinking._cond,
    "while": _Sinking._while,
    "scan": _Sinking._scan,
}
_PER_OPERAND = {"in_shardings", "in_layouts", "donated_invars"}
_NAMELESS = _compat.nameless_debug_info("frozen")


def _thaw(eqn: JaxprEqn):
    return lambda *arrays: thaw_p.bind(*arrays, **eqn.params)


def _avals(eqn: JaxprEqn) -> list[Any]:
    return [v.aval for v in eqn.invars]


def _types(eqn: JaxprEqn) -> tuple[Any, ...]:
    return tuple((aval.shape, aval.dtype) for aval in _avals(eqn))


def _places(operands: Sequence[Var | Literal], thawed: Thawed) -> dict[int, JaxprEqn]:
    """The frozen ones among operands, by their places."""
    return {i: thawed[v] for i, v in enumerate(operands) if isinstance(v, Var) and v in thawed}


def _expanded(operands: Sequence[Var | Literal], at: dict[int, JaxprEqn]) -> list[Var | Literal]:
    """Operands with the arrays of frozen ones in their places."""
    return [x for i, v in enumerate(operands) for x in (at[i].invars if i in at else (v,))]


def _has_slices(eqn: JaxprEqn, length: int) -> bool:
    """Whether all arrays of a frozen one can be sliced along the first axis, as a loop does."""
    rank = len(eqn.outvars[0].aval.shape)
    return rank > 1 and all(aval.ndim > 0 and aval.shape[0] == length for aval in _avals(eqn))


def _takes_rows(eqn: JaxprEqn, thawed: Thawed) -> bool:
    """Whether a gather takes whole rows of a frozen matrix, as the look-up in a table of embeddings does."""
    table, index = eqn.invars
    if table not in thawed or len(table.aval.shape) != 2 or table.aval.shape != _form_shape(thawed[table]):
        return False
    numbers, (rows, columns) = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    standard = ((index.aval.ndim - 1,), (0,), (0,), ())
    found = (
        numbers.offset_dims,
        numbers.collapsed_slice_dims,
        numbers.start_index_map,
        numbers.operand_batching_dims,
    )
    return found == standard and (rows, columns) == (1, table.aval.shape[1])


def _form_shape(thaw: JaxprEqn) -> tuple[int, ...]:
    return thaw.params["form"].shape_of([v.aval for v in thaw.invars])


def _rows_of_frozen(eqn: JaxprEqn, thaw: JaxprEqn) -> list[JaxprEqn]:
    """The equations that take rows out of the arrays of a frozen matrix."""
    table, index = eqn.invars
    last = table.aval.shape[0] - 1
    fills = eqn.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP

    def rows(index, *arrays):
        index = index[..., 0]
        inside = jnp.clip(index, 0, last).astype(jnp.int32)
        found = thaw.params["form"].rows_at(inside, *arrays)
        return jnp.where((index == inside)[..., None], found, jnp.nan) if fills else found

    inputs = [index, *thaw.invars]
    with user_context(eqn.source_info.traceback), eqn.ctx.manager:
        jaxpr = without_constants(rows, [v.aval for v in inputs], "rows of a frozen matrix")
    names = dict(zip(jaxpr.invars, inputs, strict=True))
    return renamed(jaxpr, eqn, {**names, jaxpr.outvars[0]: eqn.outvars[0]})


def _untransposed(eqn: JaxprEqn, transposed: dict[Var, JaxprEqn]) -> JaxprEqn:
    """A dot product whose transposed frozen operands are taken as they lie in memory, where the order of the
    result's axes allows it."""
    contracting, batch = (list(map(list, pair)) for pair in eqn.params["dimension_numbers"])
    invars = list(eqn.invars)
    for i, v in enumerate(eqn.invars):
        if not isinstance(v, Var) or v not in transposed:
            continue
        order = transposed[v].params["permutation"]
        free = [order[a] for a in range(len(order)) if a not in (*contracting[i], *batch[i])]
        if free != sorted(free):
            continue
        invars[i] = transposed[v].invars[0]
        contracting[i], batch[i] = [order[a] for a in contracting[i]], [order[a] for a in batch[i]]
    if invars == list(eqn.invars):
        return eqn
    numbers = tuple(tuple(map(tuple, pair)) for pair in (contracting, batch))
    return eqn.replace(invars=invars, params={**eqn.params, "dimension_numbers": numbers})
