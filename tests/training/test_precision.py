import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpjax.training.precision import with_precision


def _dot(w: jax.Array, x: jax.Array) -> jax.Array:
    return w @ x


def _rounding_errors(precision: str, w: jax.Array) -> np.ndarray:
    """The quantization errors of `w`. The identity matrix is exact and selects every element. On the left,
    each segment of a row is a block, so no mantissa is shifted."""
    product = jax.jit(with_precision(_dot, precision))(w, jnp.eye(len(w)))
    return np.ravel(product.astype(np.float64) - np.asarray(w, np.float64))


@pytest.mark.parametrize("precision", ["dfp16", "dfp16_stochastic"])
def test_what_is_too_small_to_gain_stays_in_float32(precision):
    w = jax.random.normal(jax.random.key(0), (16, 16))
    assert not np.any(_rounding_errors(precision, w))
    assert np.any(_rounding_errors(precision.replace("dfp16", "dfp16_forced"), w))


def test_stochastic_rounding_has_new_noise_in_every_step():
    before = jax.random.normal(jax.random.key(0), (256, 256))
    # A change by a thousandth of a rounding step, as from a small gradient. It far exceeds float32's steps.
    after = before + 2e-7 * jnp.sign(before)

    def correlation(precision: str) -> float:
        errors = [_rounding_errors(precision, w) for w in (before, after)]
        return np.corrcoef(*errors)[0, 1]

    assert correlation("dfp16_forced") > 0.9
    assert abs(correlation("dfp16_forced_stochastic")) < 4.5 / 256
    # Equal numbers are rounded equally, so runs can be repeated.
    np.testing.assert_array_equal(
        _rounding_errors("dfp16_forced_stochastic", before),
        _rounding_errors("dfp16_forced_stochastic", before),
    )
