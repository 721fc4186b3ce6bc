"""What a precision means for a run: the dtype of the model, and the transform of `model.apply`."""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import DTypeLike

import dfpjax
from dfpjax import OpConfig, Policy

POLICIES = {
    # The library's default, by which small operations stay in float32.
    "dfp16": Policy(),
    # Rounds up or down at random. The random bits are a function of the value and its position in the
    # tensor, so values that change, as weights and activations do, get new bits in every step.
    "dfp16_stochastic": Policy(default=OpConfig(rounding="stochastic")),
    # Convolutions product by product, without Winograd's algorithm.
    "dfp16_direct": Policy(default=OpConfig(algorithm="direct")),
    # The first convolution and the classifier stay in float32, as the paper's authors had them; nothing else.
    "dfp16_paper": dfpjax.policies.paper(),
    # No operation stays in float32, however small: shows the effect of the format on training.
    "dfp16_forced": Policy(default=OpConfig(force=True)),
    "dfp16_forced_stochastic": Policy(default=OpConfig(force=True, rounding="stochastic")),
}
"""What each precision in dynamic fixed point hands to `dfpjax.mixed_precision`."""

PRECISIONS = ("float32", "bfloat16", *POLICIES)


def model_dtype(precision: str) -> DTypeLike:
    """The `dtype` in which a model computes; parameters are always float32."""
    return jnp.bfloat16 if precision == "bfloat16" else jnp.float32


def with_precision(fun: Callable, precision: str) -> Callable:
    """`fun` computing in one of `PRECISIONS`.

    `float32` and `bfloat16` return `fun` itself, since the model has the `dtype`. The others apply
    `dfpjax.mixed_precision` with their policy.

    **Raises:** `ValueError` for any other precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if precision not in POLICIES:
        return fun
    return dfpjax.mixed_precision(fun, policy=POLICIES[precision])
