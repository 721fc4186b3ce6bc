import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import INTEGER, KINDS, assert_tensor, make, mantissas

import dfpjax
from dfpjax import DFP32Array


@settings(deadline=None, max_examples=300)
@given(mantissas(DFP32Array), st.integers(-230, 130))
def test_dequantize_rounds_once(m, exponent):
    actual = make(DFP32Array, m, exponent).dequantize()
    np.testing.assert_array_equal(np.asarray(actual), exact.to_float32(m, exponent))


@pytest.mark.parametrize("exponent", [-149, -150, -151, -156, -157, -158, -179, -180, -181, -182])
def test_dequantize_at_the_edge_of_the_subnormal_range(exponent):
    # Near a tie of the subnormal result, which rounding to 24 bits first would resolve wrongly.
    m = [2**31 - 1, 2**30 + 1, 2**30 + 2**6, 2**30 + 2**6 + 1, 2**29 + 2**28 + 1, 2**24 + 1, 3, 2, 1]
    m += [-v for v in m]
    actual = make(DFP32Array, m, exponent).dequantize()
    np.testing.assert_array_equal(np.asarray(actual), exact.to_float32(m, exponent))


def test_accumulator_is_a_pytree():
    x = make(DFP32Array, [[1, 2], [3, 4]], -3)
    assert x.shape == (2, 2) and x.ndim == 2 and x.size == 4 and x.dtype == dfpjax.dfp32
    assert x.mantissa.dtype == jnp.int32 and x.exponent.dtype == jnp.int32
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(x)]
    assert paths == [".mantissa", ".exponent"]
    mapped = jax.tree.map(lambda leaf: leaf, x)
    assert isinstance(mapped, DFP32Array)
    assert_tensor(jax.jit(lambda x: x)(mapped), [[1, 2], [3, 4]], -3)


@pytest.mark.parametrize("kind", KINDS)
def test_exponent_must_fit_the_mantissa(kind):
    m = np.zeros((2, 3), INTEGER[kind])
    assert make(kind, m, [[0], [1]]).exponent.shape == (2, 1)
    for shape in [(2,), (3, 1), (1, 2, 3)]:
        with pytest.raises(ValueError, match=r"exponent must broadcast to the mantissa's shape \(2, 3\)"):
            kind(m, np.zeros(shape, np.int32))


def test_accumulator_refuses_other_integers():
    with pytest.raises(TypeError, match="DFP32Array: mantissa must be of dtype int32 or dfp32, got int16"):
        DFP32Array(jnp.zeros(3, jnp.int16), 0)
