"""`explain`: what `mixed_precision` does with a function, and why."""

from collections.abc import Callable, Iterator
from typing import Any

from jax.extend.core import JaxprEqn
from jax.extend.source_info_util import new_name_stack
from jax.sharding import AxisType

from dfpjax import _checks, _compat
from dfpjax.insight._report import Dtype, FusedRecord, OpRecord, Report
from dfpjax.numbers.format.quantizer import Granularity
from dfpjax.policy import Policy
from dfpjax.policy._config import PASSES, Pass
from dfpjax.policy._layers import layer_name
from dfpjax.policy._policy import BoundPolicy
from dfpjax.transform._algorithms import algorithms, refusal
from dfpjax.transform._contractions import QUANTIZED, granularities, macs, operand_shapes
from dfpjax.transform._decide import Verdict, decide, unmatched_rules
from dfpjax.transform._errors import source_line
from dfpjax.transform._mixed_precision import prepared_call
from dfpjax.transform._rewrite import fusions_of
from dfpjax.transform._survey import Body, Call, Site
from dfpjax.transform._trace import Arguments


def explain(fun: Callable, *args: Any, policy: Policy | None = None, **kwargs: Any) -> Report:
    """List the convolutions and dot products of a call, and what `mixed_precision` does with each.

    `fun(*args, **kwargs)` is traced, not run. The decisions come from the code that `mixed_precision(fun,
    policy)` runs. The reason of each is the rule that decided or, where that does not, why the operation has
    to stay, the precision that it asks for (float64, `precision=HIGHEST`), or its cost. Operations inside the
    rules of `jax.custom_vjp` and the like are not listed, as JAX traces these rules only when it
    differentiates. A rule of the policy that matches nothing is shown, and is no error here even if the
    policy is strict.

    Arguments:
        fun: as for `mixed_precision`.
        *args, **kwargs: its arguments. A `jax.ShapeDtypeStruct` may replace an array. Its extents may be
            symbolic (`jax.export.symbolic_shape`). Decisions, MACs and algorithms are then those for extents
            in which each variable is 128, or the number nearest to it that its constraints allow.
        policy: as for `mixed_precision`.

    Returns:
        A report: `.ops`, one record for each operation; `.coverage`, the share of multiply-accumulate
        operations in dynamic fixed point; `.opaque`, `.unmatched` and `.fused`. `print(report)` shows a
        table.

    Raises:
        TypeError: if `fun` is not callable or `policy` is not a `Policy`.
    """
    _checks.function_of_arrays("explain", "fun", fun)
    policy = Policy() if policy is None else policy
    _checks.instance("explain", "policy", policy, Policy, "a dfpjax.Policy")
    _, body = prepared_call(fun, Arguments.of(args, kwargs), policy)
    bound = body.bind(policy)
    return Report(
        ops=tuple(_record(site, bound) for site in body.sites()),
        opaque=tuple(dict.fromkeys(body.opaque_primitives())),
        unmatched=unmatched_rules(body.sites(), bound),
        fused=tuple(_fused(body, bound, new_name_stack())),
    )


def _fused(body: Body, policy: BoundPolicy, stack: Any) -> Iterator[FusedRecord]:
    fusions = fusions_of(body, policy)

    def record(kind: str, eqn: JaxprEqn) -> FusedRecord:
        name = layer_name(stack + eqn.source_info.name_stack)
        aval: Any = eqn.invars[0].aval
        return FusedRecord(kind=kind, name=name, shape=aval.shape)

    for index, eqn in enumerate(body.jaxpr.eqns):
        if (found := fusions.passes.get(index)) is not None:
            yield record(found.kind, eqn)
        match body.found.get(index):
            case Site() as site:
                treatment = decide(site, policy).treatment
                if fusions.witness(site.eqn, treatment) is not None:
                    yield record("exponent from statistics", eqn)
                if (source := fusions.operand_from(site.eqn, treatment)) is not None:
                    yield record(f"operand from {source}", eqn)
                if fusions.gives_cotangent(site.eqn, treatment):
                    yield record("cotangent from gradient", eqn)
            case Call() as call:
                for _, inner in call.inside:
                    yield from _fused(inner, policy, call.scope.stack)


def _record(site: Site, policy: BoundPolicy) -> OpRecord:
    eqn, operation = site.eqn, site.operation
    verdict = decide(site, policy)
    lhs_shape, rhs_shape = operand_shapes(eqn)
    result: Any = eqn.outvars[0].aval
    return OpRecord(
        name=operation.name,
        # Parameters are in containers.
        path=max(operation.paths, key=lambda path: "/" in path, default=None),
        primitive=eqn.primitive.name,
        source=source_line(eqn),
        lhs_shape=lhs_shape,
        rhs_shape=rhs_shape,
        out_shape=result.shape,
        count=site.count,
        macs=macs(eqn) * site.count,
        dtype=_own_dtype(site, verdict),
        **_dtypes_of_passes(site, verdict),
        rule=verdict.rule,
        reason=verdict.reason,
        granularity=_granularity(site, verdict),
        algorithms=_algorithms(site, verdict),
        manual_axes=_manual_axes(eqn),
    )


def _manual_axes(eqn: JaxprEqn) -> tuple[str, ...]:
    """The axes over which a shard_map around the equation is manual."""
    aval = eqn.outvars[0].aval
    assert isinstance(aval, _compat.ShapedArray)
    mesh = aval.sharding.mesh
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(axis for axis, kind in types if kind == AxisType.Manual)


def _algorithms(site: Site, verdict: Verdict) -> dict[Pass, str]:
    """The algorithm of each pass, and why."""
    texts: dict[Pass, str] = {name: str(choice) for name, choice in algorithms(site.eqn, verdict).items()}
    if (reason := refusal(site.eqn, verdict)) is None:
        return texts
    assert verdict.treatment is not None
    return dict.fromkeys(texts, f"{verdict.treatment.algorithm} is not possible, an error: {reason}")


def _own_dtype(site: Site, verdict: Verdict) -> Dtype:
    """What the operation itself is computed in."""
    if site.eqn.primitive.name in QUANTIZED:
        return "dfp16"
    if verdict.treatment is None:
        return "float32"
    return "dfp16" if "fprop" in verdict.treatment.passes else "float32"


def _granularity(site: Site, verdict: Verdict) -> tuple[Granularity, Granularity] | None:
    """Which numbers share an exponent in its operands; None if it is computed in float32."""
    if _own_dtype(site, verdict) == "float32":
        return None
    if verdict.treatment is not None:
        quantizers = verdict.treatment.quantizers
        return quantizers.lhs.granularity, quantizers.rhs.granularity
    return granularities(site.eqn)


def _dtypes_of_passes(site: Site, verdict: Verdict) -> dict[Pass, Dtype | None]:
    """What each pass of the operation is or would be computed in; None for a pass that it does not have."""
    if site.obstacle is not None:
        # The linear primitive is one of the gradients, or a derivative of theirs; which one is unknown.
        own = None if site.eqn.primitive.name == "dfp_contract_linear" else _own_dtype(site, verdict)
        return dict.fromkeys(PASSES, own)
    if verdict.kind != "fprop":
        own = _own_dtype(site, verdict)
        return {name: own if name == verdict.kind else None for name in PASSES}
    quantized = verdict.treatment.passes if verdict.treatment is not None else ()
    return {name: "dfp16" if name in quantized else "float32" for name in PASSES}
