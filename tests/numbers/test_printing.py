import jax
import jax.numpy as jnp
import numpy as np

import dfpjax
from dfpjax import DFPArray
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT


def test_values_and_exponent():
    q = dfpjax.quantize(jnp.array([[1.0, 0.5], [-0.25, 0.0]]))
    assert repr(q) == "DFPArray([[ 1.  ,  0.5 ],\n          [-0.25,  0.  ]], exponent=-14)"
    assert repr(q[0] * q[0]) == "DFP32Array([1.  , 0.25], exponent=-28)"
    assert repr(q[0, 0]) == "DFPArray(1., exponent=-14)"


def test_exponents_per_slice():
    q = DFPArray(np.array([[1, 2], [3, 4]], np.int16), [[0], [1]])
    assert repr(q) == "DFPArray([[1., 2.],\n          [6., 8.]], exponent=[[0], [1]])"


def test_nonfinite_and_empty():
    nan = DFPArray(np.zeros(2, np.int16), NONFINITE_EXPONENT)
    assert repr(nan) == "DFPArray([nan, nan], exponent=nonfinite)"
    assert repr(dfpjax.quantize(jnp.zeros((0, 3)))) == "DFPArray([], shape=(0, 3), exponent=-163)"


def test_long_arrays_are_summarized():
    text = repr(dfpjax.quantize(jnp.arange(10_000.0)))
    assert "..." in text and len(text) < 200


def test_types_while_tracing():
    seen = []
    jax.jit(lambda q: seen.append(repr(q)) or seen.append(repr(q * q)))(dfpjax.quantize(jnp.ones((2, 3))))
    assert seen == ["DFPArray(dfp16[2,3], exponent=int32[])", "DFP32Array(dfp32[2,3], exponent=int32[])"]


def test_what_jax_puts_in_its_place():
    q = dfpjax.quantize(jnp.ones(2))
    gradient = jax.grad(lambda q: q.dequantize().sum(), allow_int=True)(q)
    assert repr(gradient).startswith("DFPArray(Array([1., 1.], dtype=float32), exponent=")
    shapes = jax.eval_shape(lambda q: q, q)
    assert repr(shapes) == "DFPArray(dfp16[2], exponent=int32[])"
    assert repr(jax.tree.map(lambda _: None, q)) == "DFPArray(None, exponent=None)"


def test_deleted_arrays():
    q = dfpjax.quantize(jnp.ones(2))
    q.values.delete()
    assert repr(q) == "DFPArray(dfp16[2], exponent=int32[])"
