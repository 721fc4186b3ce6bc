"""`sensitivity`: how many bits each layer needs."""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.tree_util import SequenceKey

from dfpjax import _checks, _compat
from dfpjax.insight._sensitivity_report import LayerSensitivity, SensitivityReport
from dfpjax.policy import OpConfig, Policy
from dfpjax.policy._rules import Position
from dfpjax.transform._decide import decide
from dfpjax.transform._mixed_precision import Program, rewritten, survey_call
from dfpjax.transform._survey import Body
from dfpjax.transform._trace import Arguments, is_array


def sensitivity(
    loss_fn: Callable,
    *args: Any,
    policy: Policy | None = None,
    bits: Iterable[int] = (16, 12, 10, 8),
    layers: str | None = None,
    **kwargs: Any,
) -> SensitivityReport:
    """Rank the layers of a loss function by the error that dynamic fixed point causes in each.

    One layer at a time runs in dynamic fixed point, with each number of bits, and all else in float32. The
    change of the loss and of its gradient (with respect to the first argument) is the layer's error. Each
    pair of layer and bits compiles and runs a program of its own, which takes time for a deep network;
    `layers` restricts it to some.

    Arguments:
        loss_fn: a function that returns a scalar; `jax.grad` must be able to differentiate it.
        *args, **kwargs: its arguments: the parameters and data to measure at.
        policy: which layers run in dynamic fixed point at all, and how they round, as for `mixed_precision`.
            The default policy leaves out what is too small to gain, or asks for more precision.
        bits: bits of a mantissa, each from 2 to 16.
        layers: a regular expression, searched in a layer's name and in its parameter's path; None for all.

    Returns:
        A report: `.layers`, the most sensitive first; `.policy(budget)` proposes a policy; `.plot()` draws a
        heat map; `print(report)` shows a table.

    Raises:
        TypeError: if `loss_fn` is not callable, `policy` not a `Policy`, `layers` not a string, or there is
            no argument.
        ValueError: if `bits` or `layers` is invalid, no layer is left to measure, or the gradient in float32
            is zero or not finite.
    """
    _checks.function_of_arrays("sensitivity", "loss_fn", loss_fn)
    if not args:
        raise TypeError(
            "sensitivity: the gradient is taken with respect to loss_fn's first argument; pass it"
        )
    policy = Policy() if policy is None else policy
    _checks.instance("sensitivity", "policy", policy, Policy, "a dfpjax.Policy")
    bits = _checked_bits(bits)
    arguments = Arguments.of(args, kwargs)
    traced, body = survey_call(loss_fn, arguments)
    chosen = _layers(body, policy, _compiled(layers))
    if not chosen:
        among = f" among those that {layers!r} matches" if layers is not None else ""
        raise ValueError(
            f"sensitivity: the policy has no layer{among} run in dynamic fixed point; dfpjax.explain says why"
        )
    exact = _value_and_grad(Program(traced=traced, jaxpr=traced.jaxpr), arguments)
    if not np.isfinite(exact[1]).all() or not exact[1].any():
        raise ValueError(
            "sensitivity: the gradient in float32 is zero or not finite; there is no relative error"
        )
    rewrite = functools.partial(rewritten, loss_fn, traced, body)
    measured = [_measured(layer, bits, exact, rewrite, arguments) for layer in chosen]
    ranked = sorted(measured, key=lambda layer: -layer.gradient_errors[-1])
    return SensitivityReport(layers=tuple(ranked), base=policy)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    name: str
    pattern: str | Position
    config: OpConfig


def _layers(body: Body, policy: Policy, wanted: re.Pattern) -> list[_Layer]:
    """The layers among those wanted that the policy computes in dynamic fixed point."""
    bound = body.bind(policy)
    found: dict[str | Position, _Layer] = {}
    positions: dict[str, int] = {}
    for site in body.sites():
        operation = site.operation
        if site.obstacle is not None or operation.derived:
            continue
        index = positions.setdefault(operation.primitive, 0)
        positions[operation.primitive] += 1
        if decide(site, bound).treatment is None:
            continue
        known_as = [text for text in (operation.name, *operation.paths) if text]
        if not any(map(wanted.search, known_as or [""])):
            continue
        pattern = rf"^{re.escape(known_as[0])}$" if known_as else Position(operation.primitive, index)
        name = known_as[0] if known_as else f"{operation.primitive} {index}"
        config = bound.decide(operation).config
        assert config is not None  # or there would be no treatment
        found.setdefault(pattern, _Layer(name=name, pattern=pattern, config=config))
    return list(found.values())


def _measured(
    layer: _Layer, bits: tuple[int, ...], exact, rewrite: Callable[..., Program], arguments: Arguments
) -> LayerSensitivity:
    result = LayerSensitivity(
        layer=layer.name,
        pattern=layer.pattern,
        config=layer.config,
        bits=bits,
        gradient_errors=(),
        loss_errors=(),
    )
    errors = []
    for count in bits:
        alone = Policy(rules=[result.rule(count)], default=None)
        actual = _value_and_grad(rewrite(alone, "auto"), arguments)
        errors.append([_relative_error(a, b) for a, b in zip(actual, exact, strict=True)])
    loss_errors, gradient_errors = zip(*errors, strict=True)
    return replace(result, gradient_errors=gradient_errors, loss_errors=loss_errors)


def _value_and_grad(program: Program, arguments: Arguments) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient with respect to the first argument, each as one vector in float64."""
    named = [pair for pair in zip(arguments.paths, arguments.leaves, strict=True) if is_array(pair[1])]
    is_first = [path[:2] == (SequenceKey(0), SequenceKey(0)) for path, _ in named]

    @jax.jit
    def of_arrays(first, others):
        def loss(first):
            left, right = iter(first), iter(others)
            arrays = [next(left if chosen else right) for chosen in is_first]
            return program.results(_compat.eval_jaxpr(program.jaxpr.jaxpr, program.jaxpr.consts, *arrays))

        return jax.value_and_grad(loss)(first)

    first = [leaf for (_, leaf), chosen in zip(named, is_first, strict=True) if chosen]
    others = [leaf for (_, leaf), chosen in zip(named, is_first, strict=True) if not chosen]
    value, gradient = of_arrays(first, others)
    gradients = [np.asarray(leaf, np.float64).ravel() for leaf in gradient]
    return np.asarray(value, np.float64).ravel(), np.concatenate(gradients)


def _relative_error(actual: np.ndarray, exact: np.ndarray) -> float:
    difference = np.linalg.norm(actual - exact)
    return float(difference / np.linalg.norm(exact)) if difference else 0.0


def _checked_bits(bits: Iterable[int]) -> tuple[int, ...]:
    try:
        values = tuple(sorted(set(bits), reverse=True))
        for count in values:
            OpConfig(bits=count)
    except (TypeError, ValueError):
        values = ()
    if not values:
        raise ValueError(f"sensitivity: bits must be one or more integers from 2 to 16, got {bits!r}")
    return values


def _compiled(layers: str | None) -> re.Pattern:
    if layers is not None and not isinstance(layers, str):
        raise TypeError(f"sensitivity: layers must be a regular expression or None, got {layers!r}")
    try:
        return re.compile(layers or "")
    except re.error as error:
        raise ValueError(
            f"sensitivity: layers={layers!r} is not a valid regular expression: {error}"
        ) from None
