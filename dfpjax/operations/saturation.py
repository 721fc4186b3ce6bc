"""`saturated_chains`: the number of saturated chains of an operation and of its gradients."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from dfpjax.numbers import Quantizers
from dfpjax.numbers.contraction.accumulation import Accumulation
from dfpjax.numbers.format.explicit import cotangent_sharding
from dfpjax.operations import primitives
from dfpjax.operations.conv import conv_general_dilated, conv_problem
from dfpjax.operations.dot import _require_float32, dot_general, dot_problem, quantized
from dfpjax.operations.primitives import Backend

_PROBLEMS = {conv_general_dilated: conv_problem, dot_general: dot_problem}


class SaturatedChains(NamedTuple):
    """Saturated chains of one operation and its gradients: int32 scalars, at most 2³¹ − 1."""

    fprop: jax.Array
    dgrad: jax.Array | None
    """Of the gradient with respect to lhs; None without a cotangent."""
    wgrad: jax.Array | None
    """Of the gradient with respect to rhs; None without a cotangent."""


def saturated_chains(
    operation: Callable,
    lhs: jax.Array,
    rhs: jax.Array,
    cotangent: jax.Array | None = None,
    *,
    quantizers: Quantizers = Quantizers(),  # noqa: B008 (frozen)
    accumulation: Accumulation = "certified",
    backend: Backend = "auto",
    **parameters,
) -> SaturatedChains:
    """The number of chains that `operation(lhs, rhs, …)` and its gradients for a cotangent saturate.

    If the same `jit` also computes the operation itself, one kernel call serves both. Under `vmap` each
    example has its own counts.

    Arguments:
        operation: `conv_general_dilated` or `dot_general` of this module.
        lhs, rhs: its operands.
        cotangent: float32 of the result's shape; None leaves the gradients out.
        quantizers, accumulation, backend, parameters: those of the operation. Certified chains never
            saturate.

    Raises:
        ValueError: if the operation is not one of the two.
        Otherwise as the operation does.
    """
    if not isinstance(operation, Callable) or operation not in _PROBLEMS:
        raise ValueError(
            "saturated_chains: operation must be conv_general_dilated or dot_general of dfpjax.operations, "
            f"got {operation!r}"
        )
    if operation is conv_general_dilated:
        parameters["quantizers"] = quantizers
    problem = _PROBLEMS[operation](lhs, rhs, **parameters)
    operands, params = quantized(problem, quantizers, accumulation, backend)
    fprop = primitives.saturated_chains(primitives.contract_p, *operands, **params)
    if cotangent is None:
        return SaturatedChains(fprop, None, None)
    _require_float32("saturated_chains", cotangent=cotangent)
    if cotangent.shape != problem.out.shape:
        raise ValueError(
            f"saturated_chains: cotangent must have the result's shape {problem.out.shape}, "
            f"got {cotangent.shape}"
        )
    cotangent = problem.cotangent(cotangent)
    of_lhs, of_rhs = primitives.linear_parts(**params)

    def gradient(linear, held, params):
        transposed = {
            **params,
            "contraction": params["contraction"].transpose(linear.shape),
            "out_sharding": cotangent_sharding(jax.typeof(linear), problem.sharding),
        }
        return primitives.saturated_chains(primitives.contract_linear_p, cotangent, *held, **transposed)

    dgrad = gradient(problem.lhs, operands[2:], of_lhs)
    return SaturatedChains(fprop, dgrad, gradient(problem.rhs, operands[:2], of_rhs))
