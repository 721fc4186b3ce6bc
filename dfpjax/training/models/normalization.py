"""Local response normalization, for images in NHWC."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def local_response_norm(
    x: jax.Array, *, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Each value divided by a power of the sum of squares of its neighbours among the channels.

    `y[c] = x[c] / (k + alpha · Σ x[i]²) ** beta`, summed over the `size` channels around `c`, as many as
    there are of them. This and the defaults are those of Krizhevsky et al., "ImageNet Classification
    with Deep Convolutional Neural Networks" (2012), §3.3. Caffe's layer divides `alpha` by `size`, and
    its `k` is 1.

    The gradient is written out, since XLA for CPU takes 15 times as long for the one that JAX derives; so
    there is no forward-mode derivative.

    **Arguments:**

    - `x`: `[..., channels]`
    - `size`: an odd number

    **Returns:** as `x`, in shape and dtype.

    **Raises:** `ValueError` for an even `size`.
    """
    if size % 2 == 0:
        raise ValueError(f"size is {size}; it must be odd, so that a channel is the middle of its neighbours")
    return _normalized(x, size, k, alpha, beta)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _normalized(x: jax.Array, size: int, k: float, alpha: float, beta: float) -> jax.Array:
    return x * _power(k + alpha * _window_sum(x * x, size), beta)


def _forward(x, size, k, alpha, beta):
    return _normalized(x, size, k, alpha, beta), x


def _backward(size, k, alpha, beta, x, g):
    divisor = k + alpha * _window_sum(x * x, size)
    scale = _power(divisor, beta)
    # The window is as wide to the left as to the right, so its sum is its own transpose.
    return (g * scale - 2 * alpha * beta * x * _window_sum(g * x * scale / divisor, size),)


_normalized.defvjp(_forward, _backward)


def _window_sum(x: jax.Array, size: int) -> jax.Array:
    """Over the `size` channels around each."""
    channels, reach = x.shape[-1], size // 2
    # Slices of one padded array and not a window reduction: XLA fuses them into one pass.
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(reach, reach)])
    return sum(x[..., start : start + channels] for start in range(size))


def _power(x: jax.Array, beta: float) -> jax.Array:
    """x ** −beta, without a logarithm for the usual power."""
    if beta == 0.75:
        root = lax.rsqrt(x)
        return root * lax.sqrt(root)
    return x**-beta
