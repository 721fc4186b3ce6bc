"""`dfpjax.quantize` with `blocks`. `test_block_quantize` compares the primitive with its definition."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dfpjax
from dfpjax import Blocks

SMALL = Blocks(rows=2, columns=16)
quantize = functools.partial(dfpjax.quantize, blocks=SMALL)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def pieces(shape, blocks):
    """The elements of each block, as (index of the block, mask of `shape`)."""
    outer, rows, columns = blocks.view(shape)
    block_rows, block_columns = blocks.size(shape)
    o, r, c = np.indices((outer, rows, columns))
    own = np.stack([o, r // block_rows, c // block_columns], -1)
    for index in np.ndindex(*blocks.counts(shape)):
        yield index, (own == index).all(-1).reshape(shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_block_is_quantized_by_itself(dtype):
    x = normal(2, 3, 20).astype(dtype)
    x *= np.ldexp(1.0, np.random.default_rng(1).integers(-60, 60, (2, 3, 1)))
    found = quantize(x)
    assert found.blocks == SMALL and found.block_exponent.shape == (2, 2, 2)
    for index, mask in pieces(x.shape, SMALL):
        alone = dfpjax.quantize(x[mask])
        assert found.block_exponent[index] == alone.exponent
        np.testing.assert_array_equal(np.asarray(found.values)[mask], alone.values)


@pytest.mark.parametrize("in_jax", [False, True])
def test_float64_keeps_its_range_in_every_block(in_jax):
    x = np.zeros((3, 20))
    x[0, 3], x[0, 17], x[1, 0], x[2, 1] = 1.5e300, -1e-300, np.inf, 0.75
    with jax.enable_x64(True):
        found = jax.jit(quantize)(jax.numpy.asarray(x)) if in_jax else quantize(x)
        values = np.asarray(found, np.float64)
    np.testing.assert_allclose(values[[0, 2]], x[[0, 2]], rtol=2**-15)
    np.testing.assert_array_equal(np.isnan(values[1]), np.arange(20) < 16)


def test_vmap_scan_and_jit_are_the_loop():
    x = normal(3, 4, 20)
    expected = np.stack([quantize(one) for one in x])
    mapped = jax.jit(jax.vmap(quantize))(x)
    assert mapped.block_exponent.shape == (3, 4, 1, 2)
    np.testing.assert_array_equal(mapped, expected)
    np.testing.assert_array_equal(jax.lax.map(quantize, x), expected)
    across = jax.vmap(quantize, in_axes=1, out_axes=1)(x)
    np.testing.assert_array_equal(across, np.stack([quantize(x[:, i]) for i in range(4)], 1))


def test_gradient_is_straight_through():
    x = normal(2, 20)
    gradient = jax.jit(jax.grad(lambda x: (quantize(x).dequantize() ** 2).sum()))(x)
    np.testing.assert_array_equal(gradient, 2 * np.asarray(quantize(x)))


def test_blocks_and_axis_exclude_each_other():
    with pytest.raises(
        ValueError, match="quantize: axis and blocks exclude each other, got axis=0 and blocks"
    ):
        quantize(np.ones((2, 3)), axis=0)


def test_float64_on_an_explicit_mesh():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    x = normal(2, 3, 20).astype(np.float64) * 1e100
    with jax.enable_x64(True), jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, P(None, None, "x")))
        found = jax.jit(quantize)(split)
        assert found.sharding.spec == P(None, None, "x")
        np.testing.assert_array_equal(np.asarray(found, np.float64), np.asarray(quantize(x), np.float64))
