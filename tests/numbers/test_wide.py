import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfpjax.numbers.format import wide

WORDS = st.integers(-(2**31), 2**31 - 1)
BELOW_63_BITS = st.one_of(
    st.integers(-(2**62), 2**62),
    st.integers(0, 61).map(lambda bit: 1 << bit),
    st.integers(1, 62).map(lambda bit: 1 - (1 << bit)),
    st.integers(-300, 300),
)

shift_right = jax.jit(wide.shift_right, static_argnums=2)


def as_wide(values):
    values = np.asarray(values, np.int64)
    low = jnp.asarray((values & 0xFFFFFFFF).astype(np.uint32))
    return wide.Wide(jnp.asarray((values >> 32).astype(np.int32)), low)


def as_integers(x):
    return np.asarray(x.high, np.int64) * 2**32 + np.asarray(x.low, np.int64)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=5, max_size=5), st.sampled_from([0, 1, 8, 16, 31]))
def test_widen(values, shift):
    widened = wide.widen(jnp.array(values, jnp.int32), shift)
    np.testing.assert_array_equal(as_integers(widened), np.array(values) << shift)


@settings(deadline=None)
@given(st.lists(st.tuples(BELOW_63_BITS, BELOW_63_BITS), min_size=5, max_size=5))
def test_add_magnitude_and_bit_length(pairs):
    a, b = np.array(pairs, np.int64).T
    np.testing.assert_array_equal(as_integers(wide.add(as_wide(a), as_wide(b))), a + b)
    magnitude = wide.magnitude(as_wide(a))
    np.testing.assert_array_equal(as_integers(magnitude), np.abs(a))
    lengths = [int(abs(v)).bit_length() for v in a]
    np.testing.assert_array_equal(wide.bit_length(magnitude), lengths)


@pytest.mark.parametrize("rounding", exact.ROUNDINGS)
@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(BELOW_63_BITS, st.integers(0, 100)), min_size=8, max_size=8))
@example([(2**62, shift) for shift in range(60, 68)])
def test_shift_right_is_one_rounding(rounding, cases):
    # Shifts that would leave more than 31 bits become larger.
    cases = [(m, max(shift, abs(m).bit_length() - 31)) for m, shift in cases]
    values, shifts = np.array(cases, np.int64).T
    actual = shift_right(as_wide(values), jnp.asarray(shifts, jnp.int32), rounding)
    limit = 2**31 - 1
    expected = [max(-limit, min(limit, exact.round_shift(m, s, rounding))) for m, s in cases]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("rounding", exact.ROUNDINGS)
@pytest.mark.parametrize("shift", [30, 31, 32, 33, 34, 63, 64, 65, 1000, 2**20])
def test_everything_dropped(rounding, shift):
    values = [1, -1, 2**30, 2**30 + 1, -(2**31) + 1, 2**31 - 1]
    actual = shift_right(wide.widen(jnp.array(values, jnp.int32)), jnp.int32(shift), rounding)
    np.testing.assert_array_equal(actual, [exact.round_shift(m, shift, rounding) for m in values])


@pytest.mark.parametrize("shift", [96, 1000])
def test_stochastic_drops_everything(shift):
    assert not shift_right(as_wide(np.full(1000, 2**62)), jnp.int32(shift), "stochastic", jnp.uint32(3)).any()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("m", "shift"), [(5, 1), (3, 4), (13, 4), (2**40 + 2**36, 38), (2**31 - 1, 33), (2**62, 67)]
)
def test_stochastic_is_unbiased(m, shift, sign):
    count = 50_000
    values = as_wide(np.full(count, sign * m))
    rounded = np.asarray(shift_right(values, jnp.int32(shift), "stochastic", jnp.uint32(3)), np.int64)
    low, fraction = m >> shift, m / 2**shift - (m >> shift)
    assert set(np.unique(sign * rounded)) == {low, low + 1}
    deviation = np.sqrt(fraction * (1 - fraction) / count)
    assert abs(sign * rounded.mean() - m / 2**shift) < 5 * deviation
