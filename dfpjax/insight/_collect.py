"""A program that also computes the statistics of its operations in dynamic fixed point.

Like the transform, it rewrites jaxpr to jaxpr. The equations of an operation's statistics follow the
operation's own, and their results become additional outputs of every enclosing jaxpr. All other equations
stay the very same objects. Operations inside `shard_map`, or inside a primitive that passes operands in its
own way (`custom_linear_solve`), are not measured.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.source_info_util import user_context

from dfpjax import _compat
from dfpjax.insight import _measures
from dfpjax.insight._places import Place
from dfpjax.numbers import Blocks
from dfpjax.operations.algorithms import algorithm_of
from dfpjax.policy._config import Pass
from dfpjax.transform._contractions import factors
from dfpjax.transform._replace import renamed, without_constants
from dfpjax.transform._subjaxprs import SubJaxpr, opened, with_sub_jaxprs
from dfpjax.transform._survey import Body, Call, Site

Atom = Var | Literal

Target = tuple[str, ...]
"""A layer, a field of `LayerStatistics`, and a pass if that field is a `PerPass`."""

Measured = dict[Target, Any]
"""For each target a pytree whose leaves are atoms of a jaxpr."""

_ERRORS: dict[Pass, str] = {"fprop": "error", "dgrad": "dgrad_error", "wgrad": "wgrad_error"}

_LAYOUTS = frozenset({"broadcast_in_dim", "copy", "copy_p", "name", "reshape", "squeeze", "transpose"})
"""Primitives that leave a tensor's statistics as they are."""


def collect(body: Body, places: dict[Site, Place], *, shadow: bool) -> tuple[Jaxpr, Measured]:
    """Add the statistics to a program.

    Arguments:
        body: the program.
        places: the operations to measure.
        shadow: whether to measure errors too.

    Returns:
        (jaxpr, measured): the program with additional outputs, which are the leaves of `measured`.
    """
    inside = _Collector(places, shadow).rewrite(body)
    return inside.jaxpr, inside.measured


@dataclass(frozen=True, kw_only=True, eq=False)
class _Quantized:
    """The `dfp_quantize` equation that some mantissas come from."""

    x: Atom
    mantissa: Var
    exponent: Var
    bits: int
    blocks: Blocks | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Elsewhere:
    """Mantissas that are quantized outside of a jaxpr."""

    index: int
    """The index of the jaxpr's input that they are."""

    lengths: tuple[int, ...] = ()
    """The lengths of the scans in between."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Inside:
    """A rewritten jaxpr."""

    jaxpr: Jaxpr
    measured: Measured
    """Its additional outputs, in the order of `jax.tree.leaves`."""

    elsewhere: dict[Target, _Elsewhere]
    """What the enclosing program has to measure."""


class _Collector:
    """Rewrites the jaxprs of one program. It measures each target once."""

    def __init__(self, places: dict[Site, Place], shadow: bool):
        self.places = places
        self.shadow = shadow
        self.done: set[Target] = set()

    def rewrite(self, body: Body) -> _Inside:
        writer = _Writer(self, body.jaxpr)
        for index, eqn in enumerate(body.jaxpr.eqns):
            match body.found.get(index):
                case Site() as site if site in self.places:
                    writer.operation(eqn, self.places[site])
                case Call() as call if self._has_places(call):
                    writer.call(eqn, call)
                case _:
                    writer.plain(eqn)
        return writer.finish()

    def _has_places(self, call: Call) -> bool:
        return any(site in self.places for _, body in call.inside for site in body.sites())


class _Writer:
    """Writes the new equations of one jaxpr."""

    def __init__(self, collector: _Collector, jaxpr: Jaxpr):
        self._collector = collector
        self._jaxpr = jaxpr
        self._eqns: list[JaxprEqn] = []
        self._measured: Measured = {}
        self._elsewhere: dict[Target, _Elsewhere] = {}
        self._inputs: dict[Var, int] = {var: index for index, var in enumerate(jaxpr.invars)}
        self._quantized: dict[Var, _Quantized] = {}
        self._floats: dict[Var, Atom] = {}
        """The floats that were quantized to given mantissas, in the mantissas' layout."""
        self._statistics: dict[_Quantized, Any] = {}

    def finish(self) -> _Inside:
        outvars = [*self._jaxpr.outvars, *jax.tree.leaves(self._measured)]
        jaxpr = self._jaxpr.replace(eqns=self._eqns, outvars=outvars) if self._measured else self._jaxpr
        return _Inside(jaxpr=jaxpr, measured=self._measured, elsewhere=self._elsewhere)

    def plain(self, eqn: JaxprEqn) -> None:
        """Write an equation unchanged."""
        self._eqns.append(eqn)
        if eqn.primitive.name == "dfp_quantize":
            mantissa, exponent = eqn.outvars
            if not isinstance(mantissa, DropVar) and not isinstance(exponent, DropVar):
                self._quantized[mantissa] = _Quantized(
                    x=eqn.invars[0],
                    mantissa=mantissa,
                    exponent=exponent,
                    bits=eqn.params["quantizer"].bits,
                    blocks=eqn.params["blocks"],
                )
                self._floats[mantissa] = eqn.invars[0]
        elif eqn.primitive.name in _LAYOUTS:
            kept = (self._floats,) if eqn.primitive.name == "name" else ()
            for known in (self._quantized, self._inputs, *kept):
                if (before := _known(known, eqn.invars[0])) is not None:
                    known[eqn.outvars[0]] = before

    # --- operations -------------------------------------------------------------------------------

    def operation(self, eqn: JaxprEqn, place: Place) -> None:
        """Write a contraction in dynamic fixed point, and its statistics."""
        if place.kind is not None and place.is_used:
            self._transformed(place, eqn)
            eqn = self._chains(place, eqn)
        self._eqns.append(eqn)
        for index, (factor, name) in enumerate(zip(factors(eqn), place.operands, strict=True)):
            target = (place.layer, name)
            if name is None or target in self._collector.done:
                continue
            if _is_linear(eqn) and index == 0:
                measure = functools.partial(_measures.of_cotangent, **eqn.params)
                self._measure(target, self._inline(measure, [factor, eqn.invars[-1]], eqn))
            else:
                self._operand(target, factor, eqn)
        if self._collector.shadow and place.kind is not None:
            self._error((place.layer, _ERRORS[place.kind]), eqn)

    def _operand(self, target: Target, mantissa: Atom, eqn: JaxprEqn, lengths: tuple[int, ...] = ()) -> None:
        """Measure the quantization of these mantissas, or leave that to the enclosing jaxpr."""
        if quantized := _known(self._quantized, mantissa):
            if quantized not in self._statistics:
                self._statistics[quantized] = self._inline(
                    functools.partial(_measures.of_quantized, bits=quantized.bits, blocks=quantized.blocks),
                    [quantized.x, quantized.mantissa, quantized.exponent],
                    eqn,
                )
            value = self._statistics[quantized]
            if lengths:
                leaves, treedef = jax.tree.flatten(value)
                value = treedef.unflatten(
                    self._inline(lambda *leaves: [lax.broadcast(x, lengths) for x in leaves], leaves, eqn)
                )
            self._measure(target, value)
        elif (index := _known(self._inputs, mantissa)) is not None:
            self._elsewhere[target] = _Elsewhere(index=index, lengths=lengths)

    def _chains(self, place: Place, eqn: JaxprEqn) -> JaxprEqn:
        """Measure the chains of an operation. Returns its equation, changed so that one kernel call serves
        both."""
        certified = eqn.params["accumulation"] == "certified"
        target = (place.layer, "chains" if certified else "saturated", place.kind)
        if target in self._collector.done:
            return eqn
        measure = functools.partial(_measures.of_chains, primitive=eqn.primitive, **eqn.params)
        self._measure(target, self._inline(measure, eqn.invars, eqn))
        return eqn.replace(params=eqn.params | {"counted": True}) if certified else eqn

    def _transformed(self, place: Place, eqn: JaxprEqn) -> None:
        """Measure the transformed operands of a Winograd algorithm."""
        target = (place.layer, "transformed_sqnr_db", place.kind)
        types = [atom.aval for atom in eqn.invars]
        if target in self._collector.done or algorithm_of(eqn.primitive, *types, **eqn.params) == "direct":
            return
        of = {"primitive": eqn.primitive, "names": place.operands}
        measure = functools.partial(_measures.of_transformed, **of, **eqn.params)
        self._measure(target, self._inline(measure, eqn.invars, eqn))

    def _error(self, target: Target, eqn: JaxprEqn) -> None:
        """Measure the difference from a contraction of the operands before quantization."""
        lhs, rhs = factors(eqn)
        floats = [lhs if _is_linear(eqn) else _known(self._floats, lhs), _known(self._floats, rhs)]
        if target not in self._collector.done and None not in floats:
            measure = functools.partial(_measures.of_result, contraction=eqn.params["contraction"])
            self._measure(target, self._inline(measure, [eqn.outvars[0], *floats], eqn))

    def _measure(self, target: Target, value: Any) -> None:
        self._measured[target] = value
        self._collector.done.add(target)
        self._elsewhere.pop(target, None)

    def _inline(self, fun: Callable, atoms: Sequence[Atom], eqn: JaxprEqn) -> Any:
        """Write the equations of `fun(*atoms)`, and return what it returns."""
        out_tree = None

        def flat(*arrays):
            nonlocal out_tree
            leaves, out_tree = jax.tree.flatten(fun(*arrays))
            return leaves

        with user_context(eqn.source_info.traceback), eqn.ctx.manager:
            jaxpr = without_constants(flat, [atom.aval for atom in atoms], "statistics")
        rename: dict[Var, Atom] = dict(zip(jaxpr.invars, atoms, strict=True))
        self._eqns += renamed(jaxpr, eqn, rename)
        return out_tree.unflatten(_known(rename, v) or v for v in jaxpr.outvars)

    # --- equations that hold jaxprs ---------------------------------------------------------------

    def call(self, eqn: JaxprEqn, call: Call) -> None:
        """Write an equation that contains operations to measure."""
        match eqn.primitive.name:
            case "jit" | "remat2" | "scan":
                self._with_outputs(eqn, *call.inside[0])
            case "cond":
                self._cond(eqn, call)
            case "while":
                self._while(eqn, *call.inside[1])
            case _:
                self._again(eqn, call)

    def _with_outputs(self, eqn: JaxprEqn, sub: SubJaxpr, body: Body) -> None:
        """A call, which returns additional outputs as they are, or a scan, which stacks them."""
        inside = self._collector.rewrite(body)
        scanned = eqn.primitive.name == "scan"
        lengths = (eqn.params["length"],) if scanned else ()
        measured = jax.tree.map(lambda atom: _variable(atom, lengths), inside.measured)
        added = len(jax.tree.leaves(measured))
        params = {}
        if eqn.primitive.name == "jit":
            params["out_shardings"] = (*eqn.params["out_shardings"], *(_compat.UNSPECIFIED,) * added)
            params["out_layouts"] = (*eqn.params["out_layouts"], *(None,) * added)
        if scanned:
            params = _compat.scan_with_results(eqn.params, added)
        self._replaced(eqn, {(sub.parameter, sub.index): _like(sub.jaxpr, inside.jaxpr)}, measured, params)
        known = _compat.scan_constants(eqn.params) if scanned else len(eqn.invars)
        self._take_over(eqn, sub.operands[:known], inside, lengths)

    def _cond(self, eqn: JaxprEqn, call: Call) -> None:
        """Each branch returns its own measurements, and placeholders for those of the other branches."""
        before, after = set(self._collector.done), set()
        branches = []
        for _, body in call.inside:
            self._collector.done = set(before)
            branches.append(self._collector.rewrite(body))
            after |= self._collector.done
        self._collector.done = before | after
        outputs: Measured = {target: value for b in branches for target, value in b.measured.items()}
        types = {target: _types(value) for target, value in outputs.items()}
        new = {}
        for (sub, body), inside in zip(call.inside, branches, strict=True):
            writer = _Writer(self._collector, inside.jaxpr)
            writer._eqns += inside.jaxpr.eqns
            # The same layer may be inside a scan in this branch and outside of one in another.
            alike = {t: value for t, value in inside.measured.items() if _types(value) == types[t]}
            absent = {target: value for target, value in outputs.items() if target not in alike}
            outvars = [*body.jaxpr.outvars, *jax.tree.leaves(alike | writer._missing(absent, eqn))]
            jaxpr = inside.jaxpr.replace(eqns=writer._eqns, outvars=outvars)
            new[sub.parameter, sub.index] = _like(sub.jaxpr, jaxpr)
        self._replaced(eqn, new, jax.tree.map(_variable, outputs))
        for (sub, _), inside in zip(call.inside, branches, strict=True):
            self._take_over(eqn, sub.operands, inside)

    def _while(self, eqn: JaxprEqn, sub: SubJaxpr, body: Body) -> None:
        """The measurements are part of the loop's state; each iteration replaces the previous ones."""
        inside = self._collector.rewrite(body)
        start = jax.tree.leaves(self._missing(inside.measured, eqn))
        cond = eqn.params["cond_jaxpr"]
        new = {
            ("cond_jaxpr", 0): _like(cond, _with_inputs(opened(cond), start)),
            ("body_jaxpr", 0): _like(sub.jaxpr, _with_inputs(inside.jaxpr, start)),
        }
        eqn = eqn.replace(invars=[*eqn.invars, *start])
        self._replaced(eqn, new, jax.tree.map(_variable, inside.measured))
        self._take_over(eqn, sub.operands[: eqn.params["body_nconsts"]], inside)

    def _again(self, eqn: JaxprEqn, call: Call) -> None:
        """A call with custom rules for derivatives or batching stays. Its body is written a second time for
        the statistics; XLA removes the duplicate computation."""
        self.plain(eqn)
        for sub, body in call.inside:
            if not sub.gives_results or None in sub.operands or eqn.primitive.name == "shard_map":
                continue
            inside = self._collector.rewrite(body)
            if inside.measured:
                leaves = self._inline(_further_outputs(sub, inside), sub.operands, eqn)
                self._measured |= jax.tree.structure(inside.measured).unflatten(leaves)
            self._take_over(eqn, sub.operands, inside)

    def _replaced(self, eqn: JaxprEqn, jaxprs: dict, measured: Measured, params: dict | None = None) -> None:
        """Write an equation with new jaxprs, which have additional outputs."""
        self._measured |= measured
        self._eqns.append(
            eqn.replace(
                params=with_sub_jaxprs(eqn.params, jaxprs) | (params or {}),
                outvars=[*eqn.outvars, *jax.tree.leaves(measured)],
            )
        )

    def _take_over(
        self, eqn: JaxprEqn, operands: Sequence[Atom], inside: _Inside, lengths: tuple[int, ...] = ()
    ) -> None:
        """Measure what an inner jaxpr could not measure."""
        for target, there in inside.elsewhere.items():
            if target not in self._collector.done and there.index < len(operands):
                self._operand(target, operands[there.index], eqn, lengths + there.lengths)

    def _missing(self, measured: Measured, eqn: JaxprEqn) -> Measured:
        """Placeholders for statistics that were not computed."""

        def missing():
            return {
                target: jax.tree.map(
                    functools.partial(_measures.not_computed, count="saturated" in target[1:]), value
                )
                for target, value in measured.items()
            }

        return self._inline(missing, [], eqn)


def _known(of: dict, atom: Atom) -> Any:
    return of.get(atom) if isinstance(atom, Var) else None


def _types(value: Any) -> tuple:
    leaves, treedef = jax.tree.flatten(value)
    return treedef, [(atom.aval.shape, atom.aval.dtype) for atom in leaves]


def _is_linear(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "dfp_contract_linear"


def _variable(atom: Atom, lengths: tuple[int, ...] = ()) -> Var:
    aval = atom.aval
    return Var(_compat.result_aval(aval, (*lengths, *aval.shape), aval.dtype))


def _with_inputs(jaxpr: Jaxpr, like: Sequence[Atom]) -> Jaxpr:
    return jaxpr.replace(invars=[*jaxpr.invars, *map(_variable, like)])


def _like(old: Jaxpr | ClosedJaxpr, new: Jaxpr) -> Jaxpr | ClosedJaxpr:
    return old.replace(jaxpr=new) if isinstance(old, ClosedJaxpr) else new


def _further_outputs(sub: SubJaxpr, inside: _Inside) -> Callable:
    """The function that computes the measurements of an inner jaxpr."""
    consts = sub.jaxpr.consts if isinstance(sub.jaxpr, ClosedJaxpr) else ()
    count = len(opened(sub.jaxpr).outvars)

    def outputs(*operands):
        return _compat.eval_jaxpr(inside.jaxpr, consts, *map(_measures.without_gradient, operands))[count:]

    return outputs
