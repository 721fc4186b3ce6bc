"""Local response normalization, for images in NHWC."""

import jax

from dfpjax.operations import local_response as operations


def local_response_norm(
    x: jax.Array, *, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Each value divided by a power of the sum of squares of its neighbours among the channels.

    `y[c] = x[c] / (k + alpha · Σ x[i]²) ** beta`, summed over the `size` channels around `c`, as many as
    there are of them. This and the defaults are those of Krizhevsky et al., "ImageNet Classification
    with Deep Convolutional Neural Networks" (2012), §3.3. Caffe's layer divides `alpha` by `size`, and
    its `k` is 1.

    On a CPU, float32 and the power 0.75 take one native pass, and its gradient another.

    **Arguments:**

    - `x`: `[..., channels]`
    - `size`: an odd number

    **Returns:** as `x`, in shape and dtype.

    **Raises:** `ValueError` for an even `size`.
    """
    if size % 2 == 0:
        raise ValueError(f"size is {size}; it must be odd, so that a channel is the middle of its neighbours")
    return operations.local_response_norm(x, size=size, k=k, alpha=alpha, beta=beta)
