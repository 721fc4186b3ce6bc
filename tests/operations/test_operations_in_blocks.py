"""Operations whose operands and cotangents have an exponent for each block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, COMPILED_QUICKLY

from dfpjax.numbers import Quantizer, Quantizers
from dfpjax.operations import conv_general_dilated, dot_general

JAX = {conv_general_dilated: jax.lax.conv_general_dilated, dot_general: jax.lax.dot_general}
BLOCK, TENSOR = Quantizer(granularity="block"), Quantizer()
IN_BLOCKS = Quantizers(lhs=BLOCK, rhs=BLOCK, cotangent=BLOCK)


def pair(name, quantizers=IN_BLOCKS, seed=0):
    """Our operation, JAX's, and operands of normally distributed values."""
    function, shapes, kwargs = CASES[name]
    rng = np.random.default_rng(seed)
    operands = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    ours = functools.partial(function, **kwargs, quantizers=quantizers)
    return ours, functools.partial(JAX[function], **kwargs), operands


def with_gradients(function):
    """The function's value, and its gradients for a cotangent of the value's shape."""

    def run(cotangent, *operands):
        out, transpose = jax.vjp(function, *operands)
        return out, *transpose(cotangent)

    return run


def cotangent_of(function, operands, seed=1):
    shape = jax.eval_shape(function, *operands).shape
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["3x3_strided", "grouped", "depthwise", "odd_layout", "batched", "matvec"])
def test_values_and_gradients(name):
    ours, theirs, operands = pair(name)
    cotangent = cotangent_of(theirs, operands)
    with jax.enable_x64(True):
        wide = [x.astype(np.float64) for x in (cotangent, *operands)]
        expected = jax.jit(with_gradients(theirs), compiler_options=COMPILED_QUICKLY)(*wide)
    actual = jax.jit(with_gradients(ours))(cotangent, *operands)
    assert oracle.relative_error(actual, expected) < 2e-4
    reference = with_gradients(functools.partial(ours, backend="reference"))
    reference = jax.jit(reference, compiler_options=COMPILED_QUICKLY)(cotangent, *operands)
    jax.tree.map(np.testing.assert_array_equal, actual, reference)


@pytest.mark.parametrize("mapped", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", ["3x3", "matmul_tt"])
def test_vmap_equals_the_loop(name, mapped):
    ours, _, operands = pair(name)
    cotangent = cotangent_of(ours, operands)
    scales = np.array([1, 1e-6, 300], np.float32)
    several = [
        x * scales.reshape(3, *(1,) * x.ndim) if m else x for x, m in zip(operands, mapped, strict=True)
    ]
    several = [cotangent * scales.reshape(3, *(1,) * cotangent.ndim), *several]
    axes = (0, *(0 if m else None for m in mapped))
    run = with_gradients(ours)
    together = jax.jit(jax.vmap(run, axes))(*several)
    one = jax.jit(run)
    for i in range(3):
        expected = one(*(x if axis is None else x[i] for x, axis in zip(several, axes, strict=True)))
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), together, expected)


@pytest.mark.parametrize("role", ["lhs", "rhs", "cotangent"])
def test_one_exponent_beside_blocks(role):
    quantizers = Quantizers(**{"lhs": BLOCK, "rhs": BLOCK, "cotangent": BLOCK, role: TENSOR})
    ours, theirs, operands = pair("matmul", quantizers)
    cotangent = cotangent_of(theirs, operands)
    expected = with_gradients(functools.partial(theirs, precision="highest"))(cotangent, *operands)
    assert oracle.relative_error(jax.jit(with_gradients(ours))(cotangent, *operands), expected) < 3e-4


def test_derivatives_of_second_order():
    ours, theirs, operands = pair("matmul")

    def product(function):
        def loss(x, w):
            return jnp.sum(jnp.tanh(function(x, w) / 20))

        return jax.jit(lambda x, w: jax.jvp(jax.grad(loss, argnums=(0, 1)), (x, w), (x, w))[1])

    expected = product(functools.partial(theirs, precision="highest"))(*operands)
    assert oracle.relative_error(product(ours)(*operands), expected) < 1e-3


def dense(x, w):
    return dot_general(x, w, dimension_numbers=(((1,), (0,)), ((), ())), quantizers=IN_BLOCKS)


def test_a_padding_token_leaves_the_other_rows():
    _, _, (x, w) = pair("matmul")
    x[5] = -1e9
    actual = np.delete(np.asarray(dense(x, w)), 5, axis=0)
    assert oracle.relative_error(actual, np.delete(x, 5, axis=0).astype(np.float64) @ w) < 1.5e-4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stays_in_what_depends_on_its_block(value):
    _, _, (x, w) = pair("matmul")
    x[5, 70] = value
    out, dx, dw = jax.jit(with_gradients(dense))(np.ones((37, 129), np.float32), x, w)
    assert np.flatnonzero(np.isnan(out).any(axis=1)).tolist() == [5] and np.isnan(out[5]).all()
    assert not np.isnan(dx).any()
    assert np.flatnonzero(np.isnan(dw).any(axis=1)).tolist() == list(range(64, 96))  # its block's channels
    w[70, 3] = value
    out = dense(np.delete(x, 5, axis=0), w)
    assert np.flatnonzero(np.isnan(out).any(axis=0)).tolist() == list(range(32))


def test_rows_of_different_scales():
    """Each row is as accurate as it would be alone."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 300)) * np.array([[1e30], [1e-30], [1], [1e-37], [0]])
    w = rng.standard_normal((300, 70)) * 1e3
    x, w = x.astype(np.float32), w.astype(np.float32)
    out = np.asarray(dense(x, w), np.float64)
    expected = x.astype(np.float64) @ w.astype(np.float64)
    for row in range(4):
        assert oracle.relative_error(out[row], expected[row]) < 1.5e-4
    assert not out[4].any()
