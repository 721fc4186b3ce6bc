import jax.numpy as jnp
import numpy as np
import pytest

from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT, scale_by_power_of_two

EXPONENTS = [-400, -330, -280, -180, -165, -150, -149, -140, -127, -126, -30, 0, 60, 97, 98, 127, 200]


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_one_rounding_to_nearest_even(exponent):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 2**24, 500) * 2.0 ** rng.integers(0, 30, 500) * rng.choice([-1, 1], 500)
    x = x.astype(np.float32)
    # x · 2^exponent is exact in float64, so the conversion to float32 is the only rounding.
    with np.errstate(over="ignore", under="ignore"):
        expected = np.ldexp(x.astype(np.float64), exponent).astype(np.float32)
    actual = np.asarray(scale_by_power_of_two(jnp.asarray(x), jnp.int32(exponent)))
    np.testing.assert_array_equal(actual, expected)


def test_zero_and_nan():
    zero = jnp.zeros(2)
    assert not scale_by_power_of_two(zero, jnp.int32(-200)).any()
    assert np.isnan(scale_by_power_of_two(zero, jnp.int32(NONFINITE_EXPONENT - 163))).all()
