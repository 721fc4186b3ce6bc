"""`with_statistics`: a transformed function that also returns statistics of its operations."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.tree_util import PyTreeDef

from dfpjax import _checks
from dfpjax.insight._collect import Measured, collect
from dfpjax.insight._places import places
from dfpjax.insight._statistics import LayerStatistics, PerPass, Statistics
from dfpjax.policy import Policy
from dfpjax.transform._mixed_precision import Program, rewritten_call, running, survey_jaxpr
from dfpjax.transform._trace import Arguments


def with_statistics(fun: Callable, policy: Policy | None = None, *, shadow: bool = False) -> Callable:
    """Transform a function as `mixed_precision` does, and return statistics with its result.

    The statistics say, layer by layer, how well dynamic fixed point suits the tensors of this call:
    exponents, quantization noise, the shares of values rounded to zero or clamped, how products are summed
    (the lengths of certified chains, or the number of saturated chains of a `FixedChain`), and the noise that
    a Winograd algorithm adds when it quantizes transformed operands, measured on a sample. They cost a few
    more passes over the operands, so a training program can afford a step with them now and then. Under
    `jit` the kernels count chains as they compute. The count repeats the operation without `jit`, inside
    functions with a custom derivative, and in programs that are partitioned between devices, where each
    device repeats it.

    `fun` may contain its backward pass: `with_statistics(jax.value_and_grad(loss))` also measures the
    cotangents of the layers' outputs. `jax.value_and_grad(with_statistics(loss), has_aux=True)` gives the
    same gradients, and statistics of the forward pass alone; no gradient flows through statistics. Operations
    that an inner `mixed_precision` already put in dynamic fixed point are measured as they are;
    `Policy(default=None)` then leaves the rest of the program alone.

    In a `scan`, a layer's statistics have a leading axis of the scan's length. A `while` gives those of its
    last iteration. Floats are NaN in a branch of a `cond` that was not taken and in a `while` that did not
    run. Operations inside a `shard_map`, in the condition of a `while`, or in a rule that JAX has not traced
    yet are not measured and are absent.

    Arguments:
        fun: as for `mixed_precision`.
        policy: as for `mixed_precision`.
        shadow: whether to compute every operation in float32 as well, on its operands before quantization,
            and report the relative error of its result. Slow.

    Returns:
        A function with `fun`'s arguments that returns `(output, statistics)`: the output of
        `mixed_precision(fun, policy)`, and `Statistics`, a dict of `LayerStatistics` that prints as a table.
        A key is the layer's name, else the path of its parameter, else its source line; `#1`, `#2` … tell
        layers of the same name apart.

    Raises:
        TypeError: if `fun` is not callable, `policy` is not a `Policy` or `shadow` not a bool.
    """
    _checks.function_of_arrays("with_statistics", "fun", fun)
    policy = Policy() if policy is None else policy
    _checks.instance("with_statistics", "policy", policy, Policy, "a dfpjax.Policy")
    _checks.boolean("with_statistics", "shadow", shadow)
    return running(fun, lambda arguments: _program(fun, arguments, policy, shadow))


@dataclass(frozen=True, kw_only=True)
class _MeasuredProgram(Program):
    """A program whose last outputs are statistics."""

    statistics: PyTreeDef

    def results(self, arrays: Sequence[Any]) -> Any:
        count = len(arrays) - self.statistics.num_leaves
        return self.traced.results(arrays[:count]), self.statistics.unflatten(arrays[count:])


def _program(fun: Callable, arguments: Arguments, policy: Policy, shadow: bool) -> _MeasuredProgram:
    program = rewritten_call(fun, arguments, policy, "auto")
    body = survey_jaxpr(program.jaxpr.jaxpr, fun, arguments)
    jaxpr, measured = collect(body, places(body), shadow=shadow)
    statistics = _by_layer(measured)
    order = jax.tree.leaves(statistics)
    outvars = [*body.jaxpr.outvars, *order]
    return _MeasuredProgram(
        traced=program.traced,
        jaxpr=program.jaxpr.replace(jaxpr=jaxpr.replace(outvars=outvars)),
        statistics=jax.tree.structure(statistics),
    )


def _by_layer(measured: Measured) -> Statistics:
    fields: dict[str, dict[str, Any]] = defaultdict(dict)
    for (layer, field, *of_pass), value in measured.items():
        if of_pass:
            before = fields[layer].get(field, PerPass())
            value = before._replace(**{of_pass[0]: value})
        fields[layer][field] = value
    return Statistics({layer: LayerStatistics(**values) for layer, values in fields.items()})
