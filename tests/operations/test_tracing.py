"""The operations under JAX's settings and inside shard_map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType, PartitionSpec

from dfpjax.operations import dot_general

dot = functools.partial(dot_general, dimension_numbers=(((1,), (0,)), ((), ())))


@pytest.fixture
def operands():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((8, 30), (30, 5))]


def test_without_jit(operands):
    expected = dot(*operands)
    with jax.disable_jit():
        np.testing.assert_array_equal(dot(*operands), expected)
        gradient = jax.grad(lambda w: dot(operands[0], w).sum())(operands[1])
    np.testing.assert_array_equal(gradient, jax.grad(lambda w: dot(operands[0], w).sum())(operands[1]))


def test_linear_transpose_of_a_float32_program(operands):
    x, w = operands
    cotangent = jnp.ones((8, 5))
    (actual,) = jax.linear_transpose(lambda x: dot(x, w), x)(cotangent)
    assert oracle.relative_error(actual, cotangent @ w.T) < 2e-4
    (actual,) = jax.linear_transpose(lambda w: dot(x, w), w)(cotangent)
    assert oracle.relative_error(actual, x.T @ cotangent) < 2e-4


@pytest.mark.parametrize("check_vma", [False, True])
def test_gradients_inside_shard_map(operands, check_vma):
    x, w = operands
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (PartitionSpec("data"), PartitionSpec()), "out_specs": PartitionSpec()}

    def loss(product, x, w):
        return jnp.sum(jnp.sin(product(x, w)))

    def sharded(x, w):
        return jax.lax.psum(loss(dot, x, w), "data")

    sharded = jax.shard_map(sharded, mesh=mesh, check_vma=check_vma, **specs)
    actual = jax.jit(jax.grad(sharded, (0, 1)))(x, w)
    assert oracle.relative_error(actual, jax.grad(functools.partial(loss, jnp.matmul), (0, 1))(x, w)) < 1e-3
