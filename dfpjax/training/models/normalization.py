"""Local response normalization, for images in NHWC."""

import jax
import jax.numpy as jnp


def local_response_norm(
    x: jax.Array, *, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Each value divided by a power of the sum of squares of its neighbours among the channels.

    `y[c] = x[c] / (k + alpha · Σ x[i]²) ** beta`, summed over the `size` channels around `c`, as many as
    there are of them. This and the defaults are those of Krizhevsky et al., "ImageNet Classification
    with Deep Convolutional Neural Networks" (2012), §3.3. Caffe's layer divides `alpha` by `size`, and
    its `k` is 1.

    **Arguments:**

    - `x`: `[..., channels]`
    - `size`: an odd number

    **Returns:** as `x`, in shape and dtype.

    **Raises:** `ValueError` for an even `size`.
    """
    if size % 2 == 0:
        raise ValueError(f"size is {size}; it must be odd, so that a channel is the middle of its neighbours")
    channels, reach = x.shape[-1], size // 2
    # Slices of one padded array and not a window reduction: XLA fuses them into one pass, the gradient too.
    squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(reach, reach)])
    total = sum(squares[..., start : start + channels] for start in range(size))
    return x * (k + alpha * total) ** -beta
