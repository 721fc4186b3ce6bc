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


@pytest.mark.parametrize("bits", [2, 3, 7, 8, 14, 16])
@pytest.mark.parametrize("scale", SCALES)
def test_mantissa_and_exponent_follow_the_definition(bits, scale):
    x = (np.random.default_rng(0).standard_normal(257) * scale).clip(-3e38, 3e38).astype(np.float32)
    q = dfpjax.quantize(x, bits)
    mantissa, exponent = oracle.quantize(x, bits)
    assert int(q.exponent) == exponent
    np.testing.assert_array_equal(q.mantissa, mantissa)
    expected = np.ldexp(mantissa.astype(np.float64), exponent).astype(np.float32)
    np.testing.assert_array_equal(q.dequantize(), expected)


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float32, 16, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_any_finite_values(x):
    q = dfpjax.quantize(x)
    mantissa, exponent = oracle.quantize(x)
    assert int(q.exponent) == exponent
    np.testing.assert_array_equal(q.mantissa, mantissa)


def test_fields():
    q = dfpjax.quantize(np.ones((2, 3), np.float32))
    assert q.mantissa.dtype == jnp.int16 and q.exponent.dtype == jnp.int32 and q.exponent.shape == ()
    assert q.dtype == dfpjax.dfp16 and q.shape == (2, 3)
    assert len(jax.tree.leaves(q)) == 2
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(q)]
    assert paths == [".mantissa", ".exponent"]
    rebuilt = DFPArray(q.mantissa, q.exponent)
    np.testing.assert_array_equal(np.asarray(rebuilt), np.asarray(q))


ROUNDINGS = ["nearest", "stochastic", "biased", "truncate"]


def rounded(x, rounding, bits=16):
    return dfpjax.quantize(x, bits, rounding, seed=1 if rounding == "stochastic" else None)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", [2, 16])
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
    assert rounded(np.zeros((0, 3), np.float32), rounding).shape == (0, 3)
    assert not rounded(np.zeros(4, np.float32), rounding).mantissa.any()
    smallest = np.array([1e-45, -1e-45, 0, 0], np.float32)
    q = rounded(smallest, rounding)
    np.testing.assert_array_equal(q.mantissa, [2**14, -(2**14), 0, 0])
    np.testing.assert_array_equal(q.dequantize(), smallest)
    largest = np.float32(np.finfo(np.float32).max)
    assert np.abs(rounded(largest * np.float32([1, -1, 1, -1]), rounding).mantissa).tolist() == [32767] * 4
    exact = np.array([2.0**14, -3, 1, 0], np.float32)  # nothing is dropped
    np.testing.assert_array_equal(rounded(exact, rounding).mantissa, exact)
    for bad in (np.nan, np.inf, -np.inf):
        assert np.isnan(rounded(np.array([1, bad, 0, 0], np.float32), rounding).dequantize()).all()


@pytest.mark.parametrize("power", [1.0, 2.0**60])
def test_just_below_a_power_of_two_is_clamped(power):
    x = np.nextafter(np.float32(power), np.float32(0))  # rounds to 32768 units
    np.testing.assert_array_equal(dfpjax.quantize(np.array([-x, x])).mantissa, [-32767, 32767])


quantized_and_back = jax.jit(lambda x: dfpjax.quantize(x).dequantize())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_surfaces_in_every_element(bad):
    x = np.array([1.0, bad, 2.0, 0.0], np.float32)
    assert np.isnan(dfpjax.quantize(x).dequantize()).all()
    assert np.isnan(quantized_and_back(x)).all()


def test_zero_has_the_smallest_exponent():
    q = dfpjax.quantize(np.zeros(4, np.float32))
    assert not np.any(q.mantissa)
    smallest_number = np.array([1e-45, 0, 0, 0], np.float32)
    assert int(q.exponent) == -163 <= int(dfpjax.quantize(smallest_number).exponent)
    assert not np.any(q.dequantize())


@pytest.mark.parametrize("shape", [(0,), (2, 0, 4)])
def test_empty(shape):
    x = np.zeros(shape, np.float32)
    assert dfpjax.quantize(x).shape == shape and quantized_and_back(x).shape == shape


def test_scalar():
    q = dfpjax.quantize(np.float32(-3.0))
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
    np.testing.assert_array_equal(np.asarray(q.mantissa)[:-1], sign * np.array(expected))


def test_stochastic_is_reproducible_and_varies_with_the_seed():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    first, again, other = (dfpjax.quantize(x, rounding="stochastic", seed=s).mantissa for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))


@pytest.mark.parametrize("in_axes", [(0, None), (0, 0), (None, 0)])
def test_stochastic_under_vmap_is_the_loop(in_axes):
    x = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    seeds = np.arange(3, dtype=np.uint32)
    operands = (x if in_axes[0] == 0 else x[0], seeds if in_axes[1] == 0 else seeds[1])

    def one(x, seed):
        return dfpjax.quantize(x, rounding="stochastic", seed=seed).mantissa

    loop = [
        one(*(a[i] if axis == 0 else a for a, axis in zip(operands, in_axes, strict=True))) for i in range(3)
    ]
    np.testing.assert_array_equal(jax.jit(jax.vmap(one, in_axes))(*operands), np.stack(loop))


def test_vmap_gives_each_example_its_exponent():
    q = jax.vmap(dfpjax.quantize)(np.float32([[1.0, 0.5], [4.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(q.exponent, [[-14], [-12], [-163]])


def test_derivative_is_the_identity():
    x = np.float32([0.3, -1.7, 2.2])

    def value(x):
        return dfpjax.quantize(x).dequantize()

    np.testing.assert_array_equal(jax.vjp(value, x)[1](np.float32([3, 2, 1]))[0], [3, 2, 1])
    _, tangent = jax.jvp(value, (x,), (np.float32([1, 2, 3]),))
    np.testing.assert_array_equal(tangent, [1, 2, 3])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_float_types_are_taken(dtype):
    x = np.array([1.0, -0.5, 3.0]).astype(dtype)
    np.testing.assert_array_equal(dfpjax.quantize(x).dequantize(), x.astype(np.float32))


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


# --- float64 beyond float32's range, seeds, conversion to NumPy ------------------------------------------

WIDE = np.array([[1e300, -3e299, 0], [5e-300, 2e-301, -1e-304]])


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("axis", [None, 0])
def test_float64_keeps_its_range(x64, axis):
    # The exponent covers what float32 cannot. The format's formula, in float64.
    largest = np.abs(WIDE).max(axis=None if axis is None else 1, keepdims=True)
    exponent = np.floor(np.log2(largest)).astype(int) - 14
    mantissa = np.clip(np.rint(np.ldexp(WIDE, -exponent)), -32767, 32767)
    with jax.enable_x64(x64):
        x = jnp.asarray(WIDE) if x64 else WIDE
        q = dfpjax.quantize(x, axis=axis)
        np.testing.assert_array_equal(q.mantissa, mantissa)
        np.testing.assert_array_equal(q.exponent, exponent.reshape(q.exponent.shape))
        np.testing.assert_array_equal(np.asarray(q, np.float64), np.ldexp(mantissa, exponent))
        np.testing.assert_array_equal(np.asarray(q.dequantize())[0, :2], [np.inf, -np.inf])


def test_float64_has_the_derivative_of_the_identity():
    with jax.enable_x64(True):
        _, transpose = jax.vjp(lambda x: dfpjax.quantize(x).dequantize(), np.array([1e9, 3.0]))
        (gradient,) = transpose(np.float32([1, 2]))
        np.testing.assert_array_equal(gradient, [1, 2])


def test_a_number_beyond_float32_is_none_without_x64_either():
    assert dfpjax.quantize(1e300).tolist() == pytest.approx(1e300, rel=1e-4)
    assert np.isnan(np.asarray(dfpjax.quantize(np.array([np.inf, 1.0])))).all()


SEEDS = [np.uint32(7), np.int64(7), jnp.uint32(7), jnp.int32(7), 7 + 2**32]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: type(seed).__name__)
def test_integers_of_every_type_are_the_same_seed(seed):
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    expected = dfpjax.quantize(x, rounding="stochastic", seed=7)
    np.testing.assert_array_equal(
        dfpjax.quantize(x, rounding="stochastic", seed=seed).mantissa, expected.mantissa
    )


def test_a_key_is_a_seed():
    x = np.linspace(-1, 1, 64, dtype=np.float32)

    def rounded(key):
        return dfpjax.quantize(x, rounding="stochastic", seed=key).mantissa

    keys = [jax.random.wrap_key_data(np.uint32([0, seed])) for seed in (1, 2)]
    first, second = (np.asarray(rounded(key)) for key in keys)
    assert (first != second).any()
    np.testing.assert_array_equal(jax.jit(rounded)(keys[0]), first)
    both = jax.random.wrap_key_data(np.uint32([[0, 1], [0, 2]]))
    np.testing.assert_array_equal(jax.jit(jax.vmap(rounded))(both), [first, second])


@pytest.mark.parametrize("seed", ["a", 1.0, True, jnp.float32(1), jax.random.PRNGKey(0), [1]], ids=str)
def test_other_seeds_are_refused(seed):
    with pytest.raises(
        TypeError, match=r"quantize: seed must be an integer, .* or a key of jax\.random\.key"
    ):
        dfpjax.quantize(ONES, rounding="stochastic", seed=seed)


def test_numpy_gets_the_values():
    x = np.float32([[1, -2.5], [0, 3]])
    q = dfpjax.quantize(x)
    assert np.asarray(q).dtype == np.float32
    np.testing.assert_array_equal(np.asarray(q), x)
    np.testing.assert_array_equal(np.array(q, np.float64), x)
    np.testing.assert_array_equal(np.asarray(q, int), [[1, -2], [0, 3]])
    assert np.isnan(np.asarray(dfpjax.quantize(np.float32([np.nan])))).all()
    with pytest.raises(ValueError, match="copy=False cannot be had"):
        np.asarray(q, copy=False)


@pytest.mark.parametrize(
    ("mantissa", "exponent", "error", "message"),
    [
        ([1, 2], 0, TypeError, r"mantissa must be of dtype int16 or dfp16, got \[1, 2\]"),
        (np.int16([1]), 1.5, TypeError, "exponent must be an int32 scalar or array, got 1.5"),
        (
            np.int16([1]),
            np.float32([1]),
            TypeError,
            "exponent must be an int32 scalar or array, got dtype float32",
        ),
        (np.int16([1]), True, TypeError, "exponent must be an int32 scalar or array, got True"),
        (np.int16([1]), 2**31, ValueError, "exponent must fit an int32, got 2147483648"),
        (np.int16([-32768]), 0, ValueError, r"mantissa must lie in ±32767; -32768"),
        (jnp.int16([3, -32768]), 0, ValueError, r"mantissa must lie in ±32767; -32768"),
    ],
)
def test_dfparray_refuses(mantissa, exponent, error, message):
    with pytest.raises(error, match=f"DFPArray: {message}"):
        DFPArray(mantissa, exponent)
