import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dfpjax
from dfpjax import DFPArray

pytestmark = pytest.mark.optimized

SCALES = [1.0, 1e4, 1e38, 1e-20, 3e-34, 1e-38, 1e-42, 1e-45]  # the last three are subnormal


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("scale", SCALES)
def test_mantissa_and_exponent_follow_the_definition(bits, scale):
    x = (np.random.default_rng(0).standard_normal(257) * scale).clip(-3e38, 3e38).astype(np.float32)
    q = dfpjax.quantize(x, bits)
    mantissa, exponent = oracle.quantize(x, bits)
    assert int(q.exponent) == exponent
    np.testing.assert_array_equal(q.mantissa, mantissa)
    expected = np.ldexp(mantissa.astype(np.float64), exponent).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(q.dequantize()), expected)


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float32, 16, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_any_finite_values(x):
    q = dfpjax.quantize(x)
    mantissa, exponent = oracle.quantize(x)
    assert int(q.exponent) == exponent
    np.testing.assert_array_equal(q.mantissa, mantissa)


def test_fields():
    q = dfpjax.quantize(jnp.ones((2, 3)))
    assert q.mantissa.dtype == jnp.int16 and q.exponent.dtype == jnp.int32 and q.exponent.shape == ()
    assert q.dtype == dfpjax.dfp16 and q.shape == (2, 3)
    assert len(jax.tree.leaves(q)) == 2
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(q)]
    assert paths == [".mantissa", ".exponent"]
    rebuilt = DFPArray(q.mantissa, q.exponent)
    np.testing.assert_array_equal(rebuilt.dequantize(), q.dequantize())


ROUNDINGS = ["nearest", "stochastic", "biased", "truncate"]


def rounded(x, rounding, bits=16):
    return dfpjax.quantize(x, bits, rounding, seed=1 if rounding == "stochastic" else None)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", [2, 7, 16])
@pytest.mark.parametrize("scale", SCALES)
def test_every_rounding_stays_within_a_unit(rounding, bits, scale):
    x = (np.random.default_rng(0).standard_normal(257) * scale).clip(-3e38, 3e38).astype(np.float32)
    q = rounded(x, rounding, bits)
    assert int(q.exponent) == oracle.quantize(x, bits)[1]
    units = np.ldexp(x.astype(np.float64), -int(q.exponent))
    limit = 2 ** (bits - 1) - 1
    error = np.abs(q.mantissa - units.clip(-limit, limit))
    assert (error <= 0.5).all() if rounding == "nearest" else (error < 1).all()
    assert (np.abs(q.mantissa) <= limit).all() and (q.mantissa * np.sign(x) >= 0).all()
    if rounding == "truncate":
        np.testing.assert_array_equal(q.mantissa, np.trunc(units.clip(-limit, limit)))
    if rounding == "biased":
        magnitude = np.abs(units)
        up = magnitude - np.floor(magnitude) >= 0.25
        np.testing.assert_array_equal(np.abs(q.mantissa), np.minimum(np.floor(magnitude) + up, limit))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_rounding_of_special_tensors(rounding):
    assert not rounded(np.zeros(5, np.float32), rounding).mantissa.any()
    assert rounded(np.zeros((0, 3), np.float32), rounding).shape == (0, 3)
    smallest = np.array([1e-45, -1e-45, 0], np.float32)
    q = rounded(smallest, rounding)
    np.testing.assert_array_equal(q.mantissa, [2**14, -(2**14), 0])
    np.testing.assert_array_equal(np.asarray(q.dequantize()), smallest)
    largest = np.float32(np.finfo(np.float32).max)
    assert np.abs(rounded(np.array([largest, -largest]), rounding).mantissa).tolist() == [32767] * 2
    exact = np.array([2.0**14, -3, 1, 0], np.float32)  # nothing is dropped
    np.testing.assert_array_equal(rounded(exact, rounding).mantissa, exact)
    for bad in (np.nan, np.inf, -np.inf):
        assert np.isnan(rounded(np.array([1, bad, 0], np.float32), rounding).dequantize()).all()


@pytest.mark.parametrize("power", [1.0, 2.0**60])
def test_just_below_a_power_of_two_is_clamped(power):
    x = np.nextafter(np.float32(power), np.float32(0))  # rounds to 32768 units
    np.testing.assert_array_equal(dfpjax.quantize(np.array([-x, x])).mantissa, [-32767, 32767])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_surfaces_in_every_element(bad):
    x = jnp.array([1.0, bad, 2.0])
    assert np.isnan(dfpjax.quantize(x).dequantize()).all()
    assert np.isnan(jax.jit(lambda x: dfpjax.quantize(x).dequantize())(x)).all()


def test_zero_has_the_smallest_exponent():
    q = dfpjax.quantize(jnp.zeros((3, 2)))
    assert not q.mantissa.any()
    smallest_number = np.array([1e-45], np.float32)
    assert int(q.exponent) == -163 <= int(dfpjax.quantize(smallest_number).exponent)
    assert not q.dequantize().any()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
def test_empty(shape):
    q = dfpjax.quantize(jnp.zeros(shape))
    assert q.shape == shape and q.dequantize().shape == shape


def test_scalar():
    q = dfpjax.quantize(jnp.float32(-3.0))
    assert q.shape == () and float(q.dequantize()) == -3.0


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("nearest", [0, 0, 0, 0, 1, 1, 2, 2]),
        ("biased", [0, 1, 1, 1, 1, 1, 2, 3]),
        ("truncate", [0, 0, 0, 0, 0, 1, 1, 2]),
    ],
)
def test_rounding_acts_on_magnitudes(rounding, expected, sign):
    units = [0.2, 0.25, 0.3, 0.5, 0.75, 1.2, 1.5, 2.5]
    x = sign * np.array([*units, 2.0**14], np.float32)  # the largest value makes the exponent 0
    q = dfpjax.quantize(x, rounding=rounding)
    np.testing.assert_array_equal(q.mantissa[:-1], sign * np.array(expected))


def test_stochastic_is_reproducible_and_varies_with_the_seed():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    first, again, other = (dfpjax.quantize(x, rounding="stochastic", seed=s).mantissa for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("in_axes", [(0, None), (0, 0), (None, 0)])
def test_stochastic_under_vmap_is_the_loop(in_axes):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 50)), jnp.float32)
    seeds = jnp.arange(3, dtype=jnp.uint32)
    operands = (x if in_axes[0] == 0 else x[0], seeds if in_axes[1] == 0 else seeds[1])

    def one(x, seed):
        return dfpjax.quantize(x, rounding="stochastic", seed=seed).mantissa

    loop = [
        one(*(a[i] if axis == 0 else a for a, axis in zip(operands, in_axes, strict=True))) for i in range(3)
    ]
    np.testing.assert_array_equal(jax.vmap(one, in_axes)(*operands), jnp.stack(loop))


def test_vmap_gives_each_example_its_exponent():
    q = jax.vmap(dfpjax.quantize)(jnp.array([[1.0, 0.5], [4.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(q.exponent, [-14, -12, -163])


def test_derivative_is_the_identity():
    x = jnp.array([0.3, -1.7, 2.2])

    def value(x):
        return dfpjax.quantize(x).dequantize()

    np.testing.assert_array_equal(jax.grad(lambda x: (3 * value(x)).sum())(x), [3, 3, 3])
    _, tangent = jax.jvp(value, (x,), (jnp.array([1.0, 2.0, 3.0]),))
    np.testing.assert_array_equal(tangent, [1, 2, 3])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_float_types_are_taken(dtype):
    x = jnp.array([1.0, -0.5, 3.0], dtype)
    np.testing.assert_array_equal(dfpjax.quantize(x).dequantize(), x.astype(jnp.float32))


ONES = np.ones(3)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((ONES, 1), {}, ValueError, "bits must be an integer from 2 to 16, got 1"),
        ((ONES, 17), {}, ValueError, "bits must be an integer from 2 to 16, got 17"),
        ((ONES,), {"rounding": "up"}, ValueError, "one of nearest, stochastic, biased, truncate"),
        ((ONES,), {"rounding": "stochastic"}, ValueError, "needs a seed"),
        ((ONES,), {"seed": 1}, ValueError, 'seed is for rounding="stochastic"'),
        ((np.ones(3, np.int32),), {}, TypeError, "real floating-point array, got dtype int32"),
        ((np.ones(3, np.complex64),), {}, TypeError, "got dtype complex64"),
        ((dfpjax.quantize(ONES),), {}, TypeError, "DFPArray already"),
    ],
)
def test_errors(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        dfpjax.quantize(*args, **kwargs)


def test_dfparray_refuses_floats():
    with pytest.raises(TypeError, match="mantissa must be of dtype int16 or dfp16, got float32"):
        DFPArray(jnp.ones(3), 0)
