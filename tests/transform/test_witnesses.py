"""Exponents from batch statistics equal those from a pass over the operand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import TENSOR_WIDE
from fusing import (
    BIAS,
    EXPONENT,
    LARGE,
    LARGE_X,
    OF_CHANNELS,
    SUM,
    SUM_TOLERANCE,
    WEIGHTS,
    W,
    batch_norm,
    both,
    conv,
    fused,
    kinds,
    moments_of,
    random,
    unfused,
)
from transform_helpers import relative_error

import dfpjax


def rectified(x, scale, shift, w):
    """The operand, and the operation on it."""
    hidden = jax.nn.relu(batch_norm(x, scale, shift))
    with jax.named_scope("op"):
        return hidden, conv(hidden, w)


def exponent_of(x):
    x = np.asarray(x)
    if not np.isfinite(x).all():
        return (1 << 20) - 14
    return int(np.floor(np.log2(np.abs(x).max()))) - 14 if x.any() else -149 - 14


@pytest.fixture(scope="module")
def measured():
    """A function, compiled once, that returns the operand, the result and the operand's exponent."""
    assert kinds(rectified, LARGE_X, OF_CHANNELS, OF_CHANNELS, W)[-1] == EXPONENT

    @jax.jit
    def run(x, scale, shift, w):
        (hidden, out), statistics = dfpjax.with_statistics(rectified, policy=TENSOR_WIDE)(x, scale, shift, w)
        return hidden, out, statistics["op"].input.exponent

    return run


def special(value, channel=3):
    x = random(*LARGE)
    x[3, 60, 61, channel] = value
    return x


ONES, ZEROS = np.ones((1, 1, 1, 64), np.float32), np.zeros((1, 1, 1, 64), np.float32)
DATA = {
    "normal": (random(*LARGE), ONES, ZEROS),
    "negative only": (-np.abs(random(*LARGE)) - 5, ONES, ZEROS),
    "negative scale": (random(*LARGE) ** 3, -3 * ONES, 0.1 * ONES),
    "some negative scales": (random(*LARGE) ** 3, random(1, 1, 1, 64) * 10, random(1, 1, 1, 64)),
    "nothing is positive": (random(*LARGE), ONES, -100 * ONES),
    "constant": (np.full(LARGE, 3, np.float32), ONES, 7 * ONES),
    "outlier": (special(1e4), ONES, ZEROS),
    "tiny": (random(*LARGE) * np.float32(1e-30), 1e-30 * ONES, ZEROS),
    "NaN": (special(np.nan), ONES, ZEROS),
    "NaN in the first channel": (special(np.nan, 0), ONES, ZEROS),
    "infinity": (special(-np.inf), ONES, ZEROS),
    "NaN as a scale": (random(*LARGE), ONES * np.where(np.arange(64) == 5, np.nan, 1), ZEROS),
}


@pytest.mark.parametrize("name", DATA)
def test_exponents_are_those_of_a_pass_over_the_operand(name, measured):
    hidden, out, exponent = jax.device_get(measured(*map(np.float32, DATA[name]), WEIGHTS))
    assert exponent == exponent_of(hidden)
    assert np.isnan(out).all() if exponent > 1 << 19 else np.isfinite(out).all()


# --- exponents of rectified sums --------------------------------------------------------------------


def rectified_sum(x, scale, shift, residual, w):
    """The operand, and the operation on it."""
    hidden = jax.nn.relu(batch_norm(x, scale, shift) + residual)
    with jax.named_scope("op"):
        return hidden, conv(hidden, w)


@pytest.fixture(scope="module")
def measured_sum():
    """Like `measured`, for rectified sums."""
    assert kinds(rectified_sum, LARGE_X, OF_CHANNELS, OF_CHANNELS, LARGE_X, W)[-2:] == [SUM, EXPONENT]

    @jax.jit
    def run(*args):
        (hidden, out), statistics = dfpjax.with_statistics(rectified_sum, policy=TENSOR_WIDE)(*args)
        return hidden, out, statistics["op"].input.exponent

    return run


OTHER = random(*LARGE)[::-1].copy()
SUMS = {
    **{name: (*of, OTHER) for name, of in DATA.items()},
    "large residual": (random(*LARGE), ONES, ZEROS, 1e6 * OTHER),
    "one large number in the residual": (random(*LARGE), ONES, ZEROS, special(1e4)),
    "one large negative number in the residual": (random(*LARGE), ONES, ZEROS, special(-1e4)),
    "the residual makes all negative": (random(*LARGE), ONES, ZEROS, np.full(LARGE, -100)),
    "the residual makes all positive": (-np.abs(random(*LARGE)), ONES, -10 * ONES, np.full(LARGE, 100)),
    "the residual makes all zero": (np.full(LARGE, 3), ONES, 7 * ONES, np.full(LARGE, -7)),
    "both tiny": (random(*LARGE) * np.float32(1e-30), 1e-30 * ONES, ZEROS, OTHER * np.float32(1e-33)),
    "NaN in the residual": (random(*LARGE), ONES, ZEROS, special(np.nan)),
    "NaN in the residual's last channel": (random(*LARGE), ONES, ZEROS, special(np.nan, 63)),
    "infinity in the residual": (random(*LARGE), ONES, ZEROS, special(np.inf)),
    "infinity that is rectified": (random(*LARGE), ONES, ZEROS, special(-np.inf)),
}


@pytest.mark.parametrize("name", SUMS)
def test_exponents_of_rectified_sums_are_those_of_a_pass_over_them(name, measured_sum):
    arguments = (*map(np.float32, SUMS[name]), WEIGHTS)
    hidden, out, exponent = jax.device_get(measured_sum(*arguments))
    assert exponent == exponent_of(hidden)
    assert np.isnan(out).all() if exponent > 1 << 19 else np.isfinite(out).all()


# --- which statistics -------------------------------------------------------------------------------


def moved(x, shift, w, mean):
    """Statistics of x, and an operation on x that uses neither mean nor variance."""
    hidden = jnp.maximum(x + shift, -1.5)
    return moments_of(x)[1] + mean, conv(hidden, w)


FUSED_AND_UNFUSED = [jax.jit(t(moved)) for t in (fused, unfused)]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_a_special_number_shows_where_no_statistic_brings_it(value):
    """The exponent is computed from the witness alone."""
    assert kinds(moved, LARGE_X, OF_CHANNELS, W, OF_CHANNELS)[-1] == EXPONENT
    arguments = special(value), ONES, WEIGHTS, ZEROS
    actual, expected = (run(*arguments)[1] for run in FUSED_AND_UNFUSED)
    np.testing.assert_array_equal(actual, expected)
    assert np.isnan(actual).all() == (not np.isfinite(value))


def test_what_follows_a_rectified_sum_has_its_witness_too():
    def fun(x, scale, shift, residual, more, w):
        hidden = jax.nn.relu(batch_norm(x, scale, shift) + residual)
        with jax.named_scope("op"):
            hidden = jnp.maximum(hidden + more, -1.5)
            return hidden, conv(hidden, w)

    args = random(*LARGE), ONES, ZEROS, OTHER, -3 * ONES, WEIGHTS
    assert kinds(fun, *args)[-3:] == [SUM, BIAS, EXPONENT]
    (hidden, _), statistics = jax.jit(dfpjax.with_statistics(fun, policy=TENSOR_WIDE))(*args)
    assert statistics["op"].input.exponent == exponent_of(hidden)


def test_two_layers_of_the_same_shape_have_witnesses_of_their_own():
    def two(x, scale, shift, w):
        first, second = (batch_norm(y, scale, shift) for y in (x, 100 * x[::-1] ** 3))
        return conv(jax.nn.relu(first), w), conv(jax.nn.relu(second), w)

    args = random(*LARGE), 3 * random(1, 1, 1, 64), random(1, 1, 1, 64), WEIGHTS
    assert kinds(two, *args).count(EXPONENT) == 2
    for actual, expected in zip(*both(two, *args), strict=True):
        assert relative_error(actual, expected) < SUM_TOLERANCE
