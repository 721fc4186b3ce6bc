"""What a run's precision means: the model's own dtype, and which transform `model.apply` goes through."""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import DTypeLike

import dfpjax

PRECISIONS = ("float32", "bfloat16", "dfp16", "dfp16_paper")


def model_dtype(precision: str) -> DTypeLike:
    """What a model computes in, its `dtype`; parameters are float32 always."""
    return jnp.bfloat16 if precision == "bfloat16" else jnp.float32


def with_precision(fun: Callable, precision: str) -> Callable:
    """`fun` computing in one of `PRECISIONS`.

    `float32` and `bfloat16` are `fun` itself, as the model has its `dtype`; `dfp16` is
    `dfpjax.mixed_precision` with its default policy; `dfp16_paper` keeps the first convolution and the
    classifier in float32, as the paper's authors did.

    **Raises:** `ValueError` for any other precision.
    """
    match precision:
        case "float32" | "bfloat16":
            return fun
        case "dfp16":
            return dfpjax.mixed_precision(fun)
        case "dfp16_paper":
            return dfpjax.mixed_precision(fun, policy=dfpjax.policies.paper())
        case _:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
