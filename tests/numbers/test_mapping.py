"""`jax.vmap` and `jax.lax.scan` over tensors in dynamic fixed point, and with such results."""

import jax
import numpy as np
import pytest

import dfpjax
import dfpjax.numpy as dnp
from dfpjax import DFPArray

# As many slices as rows and columns, so an exponent along the wrong axis is not an error of shapes.
X = np.random.default_rng(0).integers(-20, 20, (3, 3, 3)).astype(np.float32)
X *= np.float32([1, 64, 4096])[:, None, None] * np.float32([1, 256, 2**20])
WHOLE = dfpjax.quantize(X)


def slices(x, axis):
    return np.moveaxis(np.asarray(x, np.float64), axis, 0)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_a_tensor_of_one_exponent_is_mapped_over_any_axis(axis):
    def f(q):
        assert q.shape == (3, 3) and q.exponent.shape == ()
        return q + q, q.dequantize()

    twice, values = jax.vmap(f, in_axes=axis, out_axes=axis)(WHOLE)
    np.testing.assert_array_equal(twice, 2 * np.asarray(WHOLE))
    np.testing.assert_array_equal(values, WHOLE)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_each_example_of_a_result_has_its_exponent(axis):
    q = jax.vmap(dfpjax.quantize, in_axes=axis, out_axes=axis)(X)
    extents = [1, 1, 1]
    extents[axis] = 3
    assert q.exponent.shape == tuple(extents)
    for found, x in zip(slices(q, axis), slices(X, axis), strict=True):
        np.testing.assert_array_equal(found, dfpjax.quantize(x.astype(np.float32)))


@pytest.mark.parametrize("exponents", [(3, 1, 1), (1, 3, 1), (1, 1, 3), (3, 1, 3)])
def test_exponents_of_slices_are_mapped_with_them(exponents):
    mantissa = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    exponent = np.arange(np.prod(exponents), dtype=np.int32).reshape(exponents)
    expected = np.ldexp(mantissa.astype(np.float32), exponent)
    tensor = DFPArray(mantissa, exponent.squeeze(0) if exponents[0] == 1 else exponent)
    for axis in range(3):
        whole, one = jax.vmap(lambda q: (q, q[0]), in_axes=axis, out_axes=(axis, 0))(tensor)
        np.testing.assert_array_equal(whole, expected)
        np.testing.assert_array_equal(one, np.moveaxis(expected, axis, 0)[:, 0])


def test_nested_maps_and_what_all_examples_share():
    def product(a, b):
        return dnp.down_convert(a @ b)

    def mapped(a, b):
        return jax.vmap(product, (None, 1), 1)(a, b)

    a, b = jax.vmap(dfpjax.quantize)(X), WHOLE
    out = jax.jit(jax.vmap(mapped, (0, None)))(a, b)
    for i in range(3):
        for j in range(3):
            expected = product(a[i], b[:, j])
            np.testing.assert_array_equal(out[i, :, j], expected)


def test_gradients_of_examples():
    def loss(q):
        return (q.dequantize() ** 2).sum()

    gradient = jax.vmap(jax.grad(loss, allow_int=True))(WHOLE)
    np.testing.assert_array_equal(jax.tree.leaves(gradient)[0], 2 * np.asarray(WHOLE))


def test_scan_stacks_tensors_and_takes_them_apart():
    _, q = jax.lax.scan(lambda carry, x: (carry, dfpjax.quantize(x)), 0, X)
    assert q.exponent.shape == (3, 1, 1)
    np.testing.assert_array_equal(q, jax.vmap(dfpjax.quantize)(X))
    np.testing.assert_array_equal(q[1:] + q[1:], 2 * np.asarray(q)[1:])
    np.testing.assert_array_equal(jax.lax.map(DFPArray.dequantize, q), q)
    np.testing.assert_array_equal(jax.lax.map(DFPArray.dequantize, dnp.split_exponent(WHOLE)), WHOLE)


def test_an_axis_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match=r"vmap: in_axes gives axis 3 for a DFPArray of shape \(3, 3, 3\)"):
        jax.vmap(lambda q, x: q.dequantize() + x, in_axes=(3, 0))(WHOLE, X)
