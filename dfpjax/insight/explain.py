"""`explain`: what `mixed_precision` makes of a function, and why."""

from collections.abc import Callable
from typing import Any

from dfpjax.insight._report import OpRecord, Report
from dfpjax.policy import Policy
from dfpjax.policy._policy import BoundPolicy
from dfpjax.transform._contractions import QUANTIZED, macs, operand_shapes
from dfpjax.transform._decide import decide
from dfpjax.transform._errors import source_line
from dfpjax.transform._mixed_precision import survey_call
from dfpjax.transform._survey import Site


def explain(fun: Callable, *args: Any, policy: Policy | None = None, **kwargs: Any) -> Report:
    """List the convolutions and dot products of a call, and what `mixed_precision` makes of them.

    `fun(*args, **kwargs)` is traced, not run. The decisions come from the very code that
    `mixed_precision(fun, policy)` runs. What the rules of `jax.custom_vjp` and its like hold is not listed:
    JAX traces them on differentiation.

    Arguments:
        fun: as for `mixed_precision`.
        *args, **kwargs: its arguments. `jax.ShapeDtypeStruct` will do in place of an array.
        policy: as for `mixed_precision`.

    Returns:
        A report: `.ops`, one record for each operation; `.coverage`, the share of multiply-accumulate
        operations in dynamic fixed point; `.opaque` and `.unmatched`. `print(report)` shows a table.

    Raises:
        TypeError: if `policy` is not a `Policy`.
        ValueError: if a shape is symbolic (`jax.export`).
    """
    if policy is None:
        policy = Policy()
    if not isinstance(policy, Policy):
        raise TypeError(f"explain: policy must be a dfpjax.Policy, got {policy!r}")
    _, body = survey_call(fun, args, kwargs)
    bound = body.bind(policy)
    ops = tuple(_record(site, bound) for site in body.sites())
    used = {op.rule for op in ops}
    return Report(
        ops=ops,
        opaque=tuple(dict.fromkeys(body.opaque_primitives())),
        unmatched=tuple(rule for rule in policy.rules if rule not in used),
    )


def _record(site: Site, policy: BoundPolicy) -> OpRecord:
    eqn, operation = site.eqn, site.operation
    verdict = decide(site, policy)
    quantized = verdict.config is not None or eqn.primitive.name in QUANTIZED
    lhs_shape, rhs_shape = operand_shapes(eqn)
    if not isinstance(macs(eqn), int):
        raise ValueError(
            f"explain: shapes must be static, got {lhs_shape} x {rhs_shape} for {operation.name!r}"
        )
    return OpRecord(
        name=operation.name,
        path=next(iter(operation.paths), None),
        primitive=eqn.primitive.name,
        source=source_line(eqn),
        lhs_shape=lhs_shape,
        rhs_shape=rhs_shape,
        out_shape=eqn.outvars[0].aval.shape,
        count=site.count,
        macs=macs(eqn) * site.count,
        dtype="dfp16" if quantized else "float32",
        rule=verdict.rule,
        reason=verdict.reason,
    )
