"""Gradients of deep networks without normalization, whose scale grows or shrinks with every layer."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.means import geometric_mean
from benchmarks.fidelity.precisions import Precision, relative_error
from benchmarks.robustness.precisions import COMPARED, matmul

GAINS = (0.5, 1.0, 1.5, 2.0, 2.5)
"""Deviation of the weights, times √width."""

SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772
"""Of SELU (Klambauer et al., 2017, equation 2)."""


@dataclass(frozen=True, kw_only=True)
class DepthRow:
    """The kernels' gradients of one network in one precision."""

    precision: str
    gain: float
    error: float
    """Relative error of a layer's gradient, geometric mean of the layers."""
    worst: float
    """That of the worst layer."""


def deep_network(depth: int, width: int, batch: int, seed: int = 0) -> list[DepthRow]:
    """Dense layers with SELU; the result's gradient is normal.

    SELU's slope jumps at zero, and rounding moves numbers across. How many is proportional to the rounding
    error ε, so the gradient's error is proportional to √ε.
    """
    rng = np.random.default_rng(seed)
    x, dy = (rng.standard_normal((batch, width)).astype(np.float32) for _ in range(2))
    normal = rng.standard_normal((depth, width, width)).astype(np.float32)
    rows = []
    for gain in GAINS:
        weights = normal * np.float32(gain / np.sqrt(width))
        truth = exact_gradients(x, weights, dy)
        for precision in COMPARED:
            found = np.asarray(gradients(precision)(x, weights, dy), np.float64)
            errors = [relative_error(a, b) for a, b in zip(found, truth, strict=True)]
            rows.append(
                DepthRow(precision=precision.name, gain=gain, error=geometric_mean(errors), worst=max(errors))
            )
    return rows


def gradients(precision: Precision) -> Callable[..., jax.Array]:
    """The kernels' gradients, float32 like (x, kernels `[depth, width, width]`, the result's gradient)."""

    def run(weights, x):
        batch, width = x.shape
        product = matmul(precision, batch, width, width)
        result, _ = jax.lax.scan(lambda x, w: (jax.nn.selu(product(x, w)), None), x, weights)
        return result

    return jax.jit(lambda x, weights, dy: jax.vjp(lambda w: run(w, x), weights)[1](jnp.asarray(dy))[0])


def exact_gradients(x: np.ndarray, weights: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """The same in float64, with NumPy alone."""
    x, weights, dy = (array.astype(np.float64) for array in (x, weights, dy))
    inputs, slopes = [], []
    for w in weights:
        inputs.append(x)
        y = x @ w
        negative = ALPHA * np.exp(np.minimum(y, 0))
        slopes.append(SCALE * np.where(y > 0, 1, negative))
        x = SCALE * np.where(y > 0, y, negative - ALPHA)
    found = np.zeros(weights.shape)
    for layer in reversed(range(len(weights))):
        dy = dy * slopes[layer]
        found[layer] = inputs[layer].T @ dy
        dy = dy @ weights[layer].T
    return found
