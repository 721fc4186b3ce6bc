"""What a run's precision means: the model's own dtype, and which transform `model.apply` goes through."""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import DTypeLike

import dfpjax
from dfpjax import OpConfig, Policy

POLICIES = {
    # The library's default, by which small operations stay in float32.
    "dfp16": Policy(),
    # Rounds up or down at random. The random bits are a function of the number that is rounded and of its
    # place in the tensor: others in every step for a number that changes, as weights and activations do.
    "dfp16_stochastic": Policy(default=OpConfig(rounding="stochastic")),
    # The first convolution and the classifier stay in float32, as the paper's authors had them; nothing else.
    "dfp16_paper": dfpjax.policies.paper(),
    # Nothing stays in float32, however small: to see what the format does to a training.
    "dfp16_forced": Policy(default=OpConfig(force=True)),
    "dfp16_forced_stochastic": Policy(default=OpConfig(force=True, rounding="stochastic")),
}
"""What each precision in dynamic fixed point hands to `dfpjax.mixed_precision`."""

PRECISIONS = ("float32", "bfloat16", *POLICIES)


def model_dtype(precision: str) -> DTypeLike:
    """What a model computes in, its `dtype`; parameters are float32 always."""
    return jnp.bfloat16 if precision == "bfloat16" else jnp.float32


def with_precision(fun: Callable, precision: str) -> Callable:
    """`fun` computing in one of `PRECISIONS`.

    `float32` and `bfloat16` are `fun` itself, as the model has its `dtype`; the others go through
    `dfpjax.mixed_precision` with their policy.

    **Raises:** `ValueError` for any other precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if precision not in POLICIES:
        return fun
    return dfpjax.mixed_precision(fun, policy=POLICIES[precision])
