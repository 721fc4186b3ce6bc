"""Policies for `jax.checkpoint` that recognize the operations of dfpjax.

JAX's policies identify operations by their primitive, so they do not recognize dfpjax's dot products:
`jax.checkpoint_policies.dots_saveable` would save nothing. The policies in this module recognize both. Use
them around a transformed function, as in
`jax.checkpoint(dfpjax.mixed_precision(f), policy=dfpjax.checkpoint_policies.dots_saveable)`. A
`jax.checkpoint` inside `f` keeps its own policy, which `mixed_precision` adapts.

Under differentiation, the int16 operands of an operation and their exponents have names: `LHS_NAME` for the
left operand (a convolution's input), `RHS_NAME` for the right one (its kernel). JAX's policies on names find
them, such as `save_only_these_names(LHS_NAME)` or `save_and_offload_only_these_names`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.extend.core.primitives import conv_general_dilated_p, dot_general_p

from dfpjax import _checks
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.format.quantize import quantize_p
from dfpjax.operations.primitives import LHS_NAME as LHS_NAME
from dfpjax.operations.primitives import RHS_NAME as RHS_NAME
from dfpjax.operations.primitives import contract_linear_p, contract_p

CheckpointPolicy = Callable[..., Any]


@dataclass(frozen=True)
class adapt:
    """A policy that treats a dfpjax operation as the convolution or dot product that it replaces.

    Arguments:
        policy: a policy of `jax.checkpoint_policies`, or your own. It gets the parameter `dimension_numbers`
            for a dot product and no parameters for a convolution.

    Raises:
        TypeError: if the policy is not callable.
    """

    policy: CheckpointPolicy

    def __post_init__(self):
        _checks.instance("adapt", "policy", self.policy, Callable, "a policy of jax.checkpoint, a function")

    def __call__(self, primitive: Primitive, *avals, **params):
        if primitive not in (contract_p, contract_linear_p):
            return self.policy(primitive, *avals, **params)
        contraction: Contraction = params["contraction"]
        lhs, rhs = (avals[0], avals[2]) if primitive is contract_p else (avals[0], avals[1])
        if contraction.windows:
            return self.policy(conv_general_dilated_p, lhs, rhs)
        return self.policy(dot_general_p, lhs, rhs, dimension_numbers=_dimension_numbers(contraction))


def _dimension_numbers(contraction: Contraction):
    shared = [label for label in contraction.lhs if label in contraction.rhs]
    batch = [label for label in shared if label in contraction.out]
    contracted = [label for label in shared if label not in contraction.out]

    def axes(of: tuple[int, ...], labels: list[int]) -> tuple[int, ...]:
        return tuple(of.index(label) for label in labels)

    lhs, rhs = contraction.lhs, contraction.rhs
    return (axes(lhs, contracted), axes(rhs, contracted)), (axes(lhs, batch), axes(rhs, batch))


def quantized_saveable(primitive: Primitive, *_, **__) -> bool:
    """Save the int16 operands of every operation, and recompute everything else.

    The backward pass needs these operands, and they take half the memory of the float32 tensors.
    """
    return primitive is quantize_p


everything_saveable = jax.checkpoint_policies.everything_saveable
nothing_saveable = jax.checkpoint_policies.nothing_saveable
dots_saveable = checkpoint_dots = adapt(jax.checkpoint_policies.dots_saveable)
dots_with_no_batch_dims_saveable = adapt(jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
checkpoint_dots_with_no_batch_dims = dots_with_no_batch_dims_saveable
save_anything_except_these_names = jax.checkpoint_policies.save_anything_except_these_names
save_any_names_but_these = jax.checkpoint_policies.save_any_names_but_these
save_only_these_names = jax.checkpoint_policies.save_only_these_names
save_and_offload_only_these_names = jax.checkpoint_policies.save_and_offload_only_these_names
save_from_both_policies = jax.checkpoint_policies.save_from_both_policies


def offload_dot_with_no_batch_dims(offload_src: str, offload_dst: str) -> CheckpointPolicy:
    """Like `dots_with_no_batch_dims_saveable`, but moves the results from memory space `offload_src` to
    `offload_dst`.

    Raises:
        TypeError: if an argument is not a string.
    """
    for name, value in (("offload_src", offload_src), ("offload_dst", offload_dst)):
        wanted = "the name of a memory space"
        _checks.instance("offload_dot_with_no_batch_dims", name, value, str, wanted)
    return adapt(jax.checkpoint_policies.offload_dot_with_no_batch_dims(offload_src, offload_dst))
