"""One exponent per slice."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dfpjax
from dfpjax.numbers import Quantizer
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.numbers.format.scaling import NONFINITE_THRESHOLD

pytestmark = pytest.mark.optimized


def many_scales(shape, seed=0):
    """Normally distributed numbers, in which every slice along any axis has its own scale."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    for axis, size in enumerate(shape):
        x *= 10.0 ** rng.uniform(-12, 12, size).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return x.astype(np.float32)


@pytest.mark.parametrize(
    ("axis", "bits"),
    [(0, 16), (1, 16), (-1, 16), ((0, 2), 16), ((-3, 1), 16), ([2], 16), ((0, 1, 2), 16), ((), 16), ([1], 5)],
)
def test_each_slice_follows_the_definition(axis, bits):
    x = many_scales((3, 4, 17))

    @jax.jit
    def quantized(x):
        q = dfpjax.quantize(x, bits, axis=axis)
        return q, q.mantissa, q.dequantize()

    q, mantissas, values = quantized(x)
    axes = {a % 3 for a in ((axis,) if isinstance(axis, int) else axis)}
    assert q.exponent.shape == tuple(size if a in axes else 1 for a, size in enumerate(x.shape))
    indices = [range(size) if a in axes else [slice(None)] for a, size in enumerate(x.shape)]
    for at in itertools.product(*indices):
        mantissa, exponent = oracle.quantize(x[at], bits)
        assert np.asarray(q.exponent)[tuple(0 if isinstance(i, slice) else i for i in at)] == exponent
        np.testing.assert_array_equal(np.asarray(mantissas)[at], mantissa)
    expected = np.ldexp(np.asarray(mantissas, np.float64), q.exponent).astype(np.float32)
    np.testing.assert_array_equal(values, expected)


def test_slices_of_tiny_zero_and_non_finite_values_beside_others():
    x = np.ones((7, 5), np.float32)
    x[0], x[1], x[2] = 0, 1e-44, 3e38
    x[3, 2], x[4, 0], x[5, 1] = np.nan, np.inf, 1e-40
    q = dfpjax.quantize(x, axis=0)
    mantissas, exponents, values = (np.asarray(y) for y in (q.mantissa, q.exponent, q.dequantize()))
    for row in (0, 1, 2, 5, 6):
        mantissa, exponent = oracle.quantize(x[row])
        assert exponents[row, 0] == exponent
        np.testing.assert_array_equal(mantissas[row], mantissa)
    assert np.isnan(values[3:5]).all() and np.isfinite(np.delete(values, [3, 4], 0)).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty(shape):
    q = dfpjax.quantize(np.zeros(shape, np.float32), axis=0)
    values = jax.eval_shape(lambda q: q.dequantize(), q)
    assert q.shape == shape and q.exponent.shape == (shape[0], 1) and values.shape == shape


def test_vmap_is_the_loop():
    x = many_scales((4, 3, 5, 6))
    for rounding, seed in (("nearest", None), ("stochastic", 3)):

        def one(x, rounding=rounding, seed=seed):
            return dfpjax.quantize(x, rounding=rounding, seed=seed, axis=(0, 2))

        loop = [one(example) for example in x]
        q = jax.jit(jax.vmap(one))(x)
        np.testing.assert_array_equal(q.mantissa, np.stack([example.mantissa for example in loop]))
        np.testing.assert_array_equal(q.exponent, np.stack([example.exponent for example in loop]))


def test_random_bits_differ_between_slices():
    x = np.tile(np.linspace(0.1, 1, 200, dtype=np.float32), (2, 1))
    mantissa = np.asarray(dfpjax.quantize(x, 8, "stochastic", seed=1, axis=0).mantissa)
    assert (mantissa[0] != mantissa[1]).any()


def test_derivative_is_the_identity():
    x = jnp.asarray(many_scales((3, 4)))
    gradient = jax.jit(jax.grad(lambda x: (3 * dfpjax.quantize(x, axis=1).dequantize()).sum()))(x)
    np.testing.assert_array_equal(gradient, np.full((3, 4), 3))


def test_a_shift_takes_values_beyond_float32s_range():
    # Columns of 2^−120 … 2^120, for all of which x · 2^shift is about 2^200, or 2^−300.
    powers = np.array([-120, -60, 0, 60, 120, -140])
    x = np.ldexp(np.random.default_rng(0).uniform(1, 2, (5, 6)), powers).astype(np.float32)
    x[:, 3] = 0
    for total in (200, -300):
        shift = np.int32(total - powers)[None]
        shift[0, 3] += 1000  # a zero remains a zero
        for axes in ((), (0,)):
            mantissa, exponent = quantize_array(jnp.asarray(x), Quantizer(), slice_axes=axes, shift=shift)
            assert exponent.shape == (5 if axes else 1, 1)
            assert np.isin(exponent, total - 14).all()
            value = np.ldexp(np.asarray(mantissa).astype(np.float64), np.asarray(exponent) - shift)
            np.testing.assert_allclose(value, x, rtol=2.0**-14)


def test_a_shift_leaves_zeros_and_non_finite_values_as_they_are():
    x = jnp.array([[0.0, 0.0], [1.0, 0.0], [np.nan, 1.0], [np.inf, 0.0]])
    shift = np.int32([[-500, 500]])
    mantissa, exponent = map(np.asarray, quantize_array(x, Quantizer(), slice_axes=(0,), shift=shift))
    assert exponent[0, 0] == -163 and exponent[1, 0] == -514
    np.testing.assert_array_equal(mantissa[:2], [[0, 0], [2**14, 0]])
    assert (exponent[2:] >= NONFINITE_THRESHOLD).all()


@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        (2, ValueError, "axis 2 is not one of 2 axes"),
        ((0, -3), ValueError, "axis -3 is not one of 2 axes"),
        ((1, -1), ValueError, r"axis names one twice: \(1, -1\)"),
        (1.0, TypeError, "axis must be an integer or several, got 1.0"),
        ("ab", TypeError, "axis must be an integer or several, got 'ab'"),
    ],
)
def test_errors(axis, error, message):
    with pytest.raises(error, match=f"quantize: {message}"):
        dfpjax.quantize(np.ones((2, 3)), axis=axis)


def test_unknown_granularity():
    with pytest.raises(ValueError, match="granularity must be one of tensor, channel, block, got 'row'"):
        Quantizer(granularity="row")
