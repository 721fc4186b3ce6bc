"""Local response normalization, for images in NHWC."""

import jax

from dfpjax.operations import local_response as operations


def local_response_norm(
    x: jax.Array, *, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divides each value by a power of the sum of squares over neighbouring channels.

    `y[c] = x[c] / (k + alpha · Σ x[i]²) ** beta`, where the sum is over the `size` channels around `c`, or
    fewer at the edges. Formula and defaults are from Krizhevsky et al., "ImageNet Classification with Deep
    Convolutional Neural Networks" (2012), §3.3. In Caffe's layer `alpha` is divided by `size`, and `k` is 1.

    On a CPU, float32 with `beta` = 0.75 takes one native pass, and the gradient another.

    **Arguments:**

    - `x`: `[..., channels]`
    - `size`: an odd number

    **Returns:** an array of x's shape and dtype.

    **Raises:** `ValueError` if `size` is even.
    """
    if size % 2 == 0:
        raise ValueError(f"size is {size}; it must be odd, so that a channel is the middle of its neighbours")
    return operations.local_response_norm(x, size=size, k=k, alpha=alpha, beta=beta)
