"""`with_statistics`: dynamic fixed point at work, watched."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.tree_util import PyTreeDef

from dfpjax.insight._collect import Measured, collect
from dfpjax.insight._places import places
from dfpjax.insight._statistics import LayerStatistics, PerPass
from dfpjax.policy import Policy
from dfpjax.transform._mixed_precision import Program, rewritten_call, running, survey_jaxpr


def with_statistics(fun: Callable, policy: Policy | None = None, *, shadow: bool = False) -> Callable:
    """Transform a function as `mixed_precision` does, and have it return statistics beside its result.

    The statistics say layer by layer how well dynamic fixed point suits the tensors of this very call:
    exponents, quantization noise, what is rounded to zero or clamped, and how products are summed: the
    lengths of certified chains, or how many of a `FixedChain` were saturated. Their cost is that of a few
    more passes over the operands; a training program may well run a step with them every now and then. Under
    `jit` the kernels count chains as they compute. Without it, inside of functions with a custom derivative,
    and in programs that are partitioned between devices, there on each device, the operation is computed once
    more for the count.

    `fun` may hold its backward pass, as `with_statistics(jax.value_and_grad(loss))` does: then the gradients
    that come back to the layers are measured too. `jax.value_and_grad(with_statistics(loss), has_aux=True)`
    gives the same gradients with the statistics of the forward pass alone, through which no gradient flows.
    What is in dynamic fixed point already, because `mixed_precision` is somewhere inside of `fun`, is
    measured as it is; `Policy(default=None)` leaves the rest of such a program alone.

    Layers inside of a `scan` have statistics with a leading axis of its length; in a branch of a `cond` that
    was not taken, and in a `while` that did not run, floats are NaN; a `while` gives those of its last
    iteration. Not measured, and absent from the statistics, is what stands inside of a `shard_map`, in the
    condition of a `while`, or in a rule that JAX has yet to trace.

    Arguments:
        fun: as for `mixed_precision`.
        policy: as for `mixed_precision`.
        shadow: whether every operation is also computed in float32, on its operands as they were before
            quantization, and the relative error of its result reported. Slow.

    Returns:
        A function that is called as `fun` is and returns `(output, statistics)`: what
        `mixed_precision(fun, policy)` returns, and a dict of `LayerStatistics`. Its keys are the layer's
        name, else the path of its parameter, else its source line, followed by `#1`, `#2` where several
        layers would have the same.

    Raises:
        TypeError: if `fun` is not callable, `policy` is not a `Policy` or `shadow` not a bool.
    """
    if not callable(fun):
        raise TypeError(f"with_statistics: fun must be callable, got {fun!r}")
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(f"with_statistics: policy must be a dfpjax.Policy, got {policy!r}")
    if not isinstance(shadow, bool):
        raise TypeError(f"with_statistics: shadow must be True or False, got {shadow!r}")
    policy = Policy() if policy is None else policy
    return running(fun, lambda args, kwargs: _program(fun, args, kwargs, policy, shadow))


@dataclass(frozen=True, kw_only=True)
class _MeasuredProgram(Program):
    """A program whose last outputs are statistics."""

    statistics: PyTreeDef

    def results(self, arrays: Sequence[Any]) -> Any:
        count = len(arrays) - self.statistics.num_leaves
        return self.traced.results(arrays[:count]), self.statistics.unflatten(arrays[count:])


def _program(fun: Callable, args: tuple, kwargs: dict, policy: Policy, shadow: bool) -> _MeasuredProgram:
    program = rewritten_call(fun, args, kwargs, policy, "auto")
    body = survey_jaxpr(program.jaxpr.jaxpr, fun, args, kwargs)
    jaxpr, measured = collect(body, places(body), shadow=shadow)
    statistics = _by_layer(measured)
    order = jax.tree.leaves(statistics)
    outvars = [*body.jaxpr.outvars, *order]
    return _MeasuredProgram(
        traced=program.traced,
        jaxpr=program.jaxpr.replace(jaxpr=jaxpr.replace(outvars=outvars)),
        statistics=jax.tree.structure(statistics),
    )


def _by_layer(measured: Measured) -> dict[str, LayerStatistics]:
    fields: dict[str, dict[str, Any]] = defaultdict(dict)
    for (layer, field, *of_pass), value in measured.items():
        if of_pass:
            before = fields[layer].get(field, PerPass())
            value = before._replace(**{of_pass[0]: value})
        fields[layer][field] = value
    return {layer: LayerStatistics(**values) for layer, values in fields.items()}
