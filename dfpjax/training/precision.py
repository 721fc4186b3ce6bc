"""What a run's precision means: which transform `model.apply` goes through."""

from collections.abc import Callable

import dfpjax

PRECISIONS = ("float32", "dfp16", "dfp16_paper")


def with_precision(fun: Callable, precision: str) -> Callable:
    """`fun` computing in one of `PRECISIONS`.

    `float32` is `fun` itself; `dfp16` is `dfpjax.mixed_precision` with its default policy; `dfp16_paper`
    keeps the first convolution and the classifier in float32, as the paper's authors did.

    **Raises:** `ValueError` for any other precision.
    """
    match precision:
        case "float32":
            return fun
        case "dfp16":
            return dfpjax.mixed_precision(fun)
        case "dfp16_paper":
            return dfpjax.mixed_precision(fun, policy=dfpjax.policies.paper())
        case _:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
