"""The native passes of local response normalization: on every path and with any number of threads they give
the bits of NumPy in float32, and values close to float64."""

import functools

import numpy as np
import pytest
from every_path import assert_same_bits, on_every_path

from dfpjax.kernels import passes

K, ALPHA = 2.0, 1e-2
SHAPES = [(0, 5), (5, 0), (1, 1), (3, 2), (2, 15), (31, 16), (700, 17), (33, 96), (5000, 48), (1, 1000)]
REACHES = (0, 1, 2, 7)


def normal(seed, *shape, scale=9.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@functools.cache
def on_all(gradient: bool, reach: int, k: float = K, alpha: float = ALPHA):
    fun = passes.local_response_gradient if gradient else passes.local_response
    return functools.partial(on_every_path, functools.partial(fun, reach=reach, k=k, alpha=alpha))


def window_sums(x, reach):
    """Sums over windows, added in the same order as in the passes."""
    channels = x.shape[-1]
    padded = np.pad(x, ((0, 0), (reach, reach)))
    total = padded[:, :channels]
    for start in range(1, 2 * reach + 1):
        total = total + padded[:, start : start + channels]
    return total


def in_numpy(x, g, reach, k=K, alpha=ALPHA):
    """The result and the gradient, in float32."""
    k, alpha, one = np.float32(k), np.float32(alpha), np.float32(1)
    with np.errstate(all="ignore"):
        inverse = one / np.sqrt(k + alpha * window_sums(x * x, reach))
        scale = inverse * np.sqrt(inverse)
        sums = window_sums(g * x * scale * (inverse * inverse), reach)
        return x * scale, g * scale + np.float32(-1.5) * alpha * x * sums


def exactly(x, g, reach):
    """The result and the gradient, by definition, in float64."""
    x, g = x.astype(np.float64), g.astype(np.float64)
    near = np.abs(np.subtract.outer(*2 * [np.arange(x.shape[-1])])) <= reach
    divisor = K + ALPHA * x**2 @ near
    y = x / divisor**0.75
    # dy[c]/dx[i] = [i = c] divisor[c]^-3/4 - [i near c] 3/2 alpha x[i] x[c] divisor[c]^-7/4
    gradient = g / divisor**0.75 - 1.5 * ALPHA * x * (g * x / divisor**1.75 @ near)
    return y, gradient


def assert_right(x, g, reach, **constants):
    expected, gradient = in_numpy(x, g, reach, **constants)
    assert_same_bits(on_all(False, reach, **constants)(x), expected)
    assert_same_bits(on_all(True, reach, **constants)(g, x), gradient)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ordinary_numbers(shape, reach):
    x, g = normal(0, *shape), normal(1, *shape)
    reach = min(reach, shape[1])
    assert_right(x, g, reach)
    y, gradient = exactly(x, g, reach)
    np.testing.assert_allclose(on_all(False, reach)(x), y, rtol=1e-6)
    np.testing.assert_allclose(on_all(True, reach)(g, x), gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3e38, -0.0, 1e-45])
@pytest.mark.parametrize("channel", [0, 20, 36])
def test_a_special_number_stays_in_its_neighbourhood(special, channel):
    x, g = normal(0, 40, 37), normal(1, 40, 37)
    whole = [on_all(False, 2)(x), on_all(True, 2)(g, x)]
    x[7, channel] = special
    assert_right(x, g, 2)
    # The gradient sums over windows of values that contain window sums, so it reaches twice as far.
    for before, after, reach in zip(whole, (on_all(False, 2)(x), on_all(True, 2)(g, x)), (2, 4), strict=True):
        others = np.ones(x.shape, bool)
        others[7, max(channel - reach, 0) : channel + reach + 1] = False
        assert_same_bits(after[others], before[others])
    if np.isnan(special):
        assert np.isnan(on_all(False, 2)(x)[7, channel])


@pytest.mark.parametrize("special", [np.nan, np.inf, 3e38, 1e-45])
def test_special_cotangents(special):
    x, g = normal(0, 40, 37), normal(1, 40, 37)
    g[7, 33] = special
    assert_right(x, g, 2)


def test_subnormal_numbers():
    x, g = normal(0, 40, 37, scale=1e-40), normal(1, 40, 37, scale=1e-40)
    assert_right(x, g, 2)
    assert on_all(False, 2)(x).any() and on_all(True, 2)(g, x).any()


def test_a_divisor_of_zero():
    """0 / 0 is NaN, as in IEEE arithmetic."""
    x = np.zeros((3, 5), np.float32)
    x[0, 0] = 1
    assert_right(x, np.ones_like(x), 1, k=0.0, alpha=1.0)
    y = on_all(False, 1, k=0.0, alpha=1.0)(x)
    assert y[0, 0] == 1 and y[0, 1] == 0 and np.isnan(y[0, 2])
