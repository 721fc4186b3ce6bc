"""A program of two layers for tests of `with_statistics`, and its statistics from NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from forced import FORCED
from transform_helpers import normal

import dfpjax
from dfpjax import Blocks
from dfpjax.insight import OperandStatistics, Statistics
from dfpjax.numbers.format.blocks import tiled


def dense(name, w, x):
    with jax.named_scope(name):
        return x @ w


def two_layers(params, x):
    x = jnp.tanh(dense("first", params["first"], x))
    return dense("second", params["second"], x)


def loss(params, x):
    return jnp.sum(two_layers(params, x) ** 2)


PARAMS = {"first": normal(0, 6, 5) * 3, "second": normal(1, 5, 4)}
X = normal(2, 7, 6)


def expected(x, bits=16) -> dict:
    """The statistics of an array in blocks, in float64."""
    blocks = np.moveaxis(tiled(np.asarray(x), Blocks()), 2, 3)
    blocks = blocks.reshape(-1, *blocks.shape[-2:])
    m, exponent = (np.stack(part) for part in zip(*(oracle.quantize(b, bits) for b in blocks), strict=True))
    lost = blocks.astype(np.float64) - m * 2.0 ** exponent[:, None, None]
    x = np.asarray(x, np.float64)
    return {
        "exponent": exponent.max(),
        "rms_over_max": np.sqrt(np.mean(x**2)) / np.abs(x).max(),
        "sqnr_db": 10 * np.log10(np.sum(x**2) / np.sum(lost**2)),
        "zeros": np.mean(m[blocks != 0] == 0),
        "clamped": np.sum(np.abs(m) == 2 ** (bits - 1) - 1) / x.size,
    }


def assert_statistics_of(actual: OperandStatistics, *xs, bits=16):
    """Check the statistics of one array, or of several stacked arrays."""
    assert actual.bits == bits
    for name in expected(xs[0], bits):
        wanted = [expected(x, bits)[name] for x in xs]
        np.testing.assert_allclose(
            getattr(actual, name), wanted[0] if len(xs) == 1 else wanted, rtol=3e-3, err_msg=name
        )


def assert_same(actual, wanted):
    """Check that two pytrees are equal to the last bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def measured(fun, *args, policy=FORCED, jit=False, **kwargs):
    """The statistics. Checks that the output is that of `mixed_precision`.

    Without `jit`, JAX compiles each operation once per shape and reuses it in all programs. With `jit`,
    kernels count chains as they compute.
    """
    transformed = dfpjax.mixed_precision(fun, policy)
    with_statistics = dfpjax.with_statistics(fun, policy, **kwargs)
    if jit:
        transformed, with_statistics = jax.jit(transformed), jax.jit(with_statistics)
    output, statistics = with_statistics(*args)
    assert type(statistics) is Statistics
    assert_same(output, transformed(*args))
    return statistics


def assert_forward(statistics):
    hidden = jnp.tanh(dfpjax.mixed_precision(jnp.matmul, FORCED)(X, PARAMS["first"]))
    assert_statistics_of(statistics["first"].input, X)
    assert_statistics_of(statistics["first"].weight, PARAMS["first"])
    assert_statistics_of(statistics["second"].input, hidden)
    assert_statistics_of(statistics["second"].weight, PARAMS["second"])


def assert_cotangent(actual: OperandStatistics, cotangent):
    """Check the statistics of an output's cotangent, given the cotangent in float32."""
    assert actual.exponent == expected(cotangent)["exponent"]
    np.testing.assert_allclose(actual.rms_over_max, expected(cotangent)["rms_over_max"], rtol=1e-3)
