"""Quantization with an exponent for each block, against a loop over blocks in NumPy."""

import functools
import itertools
import math

import jax
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dfpjax.numbers import Blocks, Quantizer, Quantizers
from dfpjax.numbers.format.blocks import expanded
from dfpjax.numbers.format.dtype import to_integers
from dfpjax.numbers.format.quantize import quantize_array

pytestmark = pytest.mark.optimized

NONFINITE = 1 << 20
NEAREST, DEFAULT = Quantizer(), Blocks()
ROUNDINGS = ["nearest", "stochastic", "biased", "truncate"]


def hashed(x):
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * np.uint32(0x846CA68B)


def reference(x, blocks, bits=16, rounding="nearest", seed=None):
    """The mantissas and the exponents of the blocks, computed block by block in float64."""
    columns, axes = 1, len(x.shape)
    while axes > 2 and x.shape[axes - 1] == 1:
        axes -= 1
    counting = axes
    while axes > 1 and columns < blocks.columns:  # the last axes, but not the first one
        axes -= 1
        columns *= x.shape[axes]
    outer = x.shape[0] if x.ndim > 1 else 1
    columns = columns if x.ndim > 1 else x.size
    rows = math.prod(x.shape[1:axes])
    merged = 1 <= axes < counting - 1
    block_rows = blocks.rows or (8 if counting > 3 else 1)
    block_columns = max(columns, 1) if merged else blocks.columns
    random = hashed(
        np.arange(x.size, dtype=np.uint32)
        ^ hashed(x.reshape(-1).view(np.uint32) if seed is None else np.full(x.size, seed, np.uint32))
    )
    flat, random = x.reshape(outer, rows, columns), random.reshape(outer, rows, columns)
    mantissa = np.zeros(flat.shape, np.int64)
    counts = outer, -(-rows // block_rows), -(-columns // block_columns)
    exponent = np.zeros(counts, np.int64)
    for o, r, c in itertools.product(*map(range, counts)):
        rows_of, columns_of = (
            slice(i * size, (i + 1) * size) for i, size in ((r, block_rows), (c, block_columns))
        )
        at = o, rows_of, columns_of
        if not np.isfinite(flat[at]).all():
            exponent[o, r, c] = NONFINITE - (bits - 2)
            continue
        exponent[o, r, c] = oracle.quantize(flat[at], bits)[1]
        units = np.ldexp(flat[at].astype(np.float64), -exponent[o, r, c])
        if rounding == "nearest":
            rounded = np.rint(np.abs(units))
        else:
            rounded = np.floor(np.abs(units))
            dropped = np.abs(units) - rounded
            if rounding == "biased":
                rounded += dropped >= 0.25
            if rounding == "stochastic":
                threshold = (random[at] >> 1).astype(np.float32)
                rounded += (threshold < dropped * 2.0**31) & (dropped >= 2.0**-63)
        limit = 2 ** (bits - 1) - 1
        mantissa[at] = np.sign(units) * np.minimum(rounded, limit)
    return mantissa.reshape(x.shape), exponent


@functools.partial(jax.jit, static_argnames=("quantizer", "blocks", "native"))
def quantized(x, seed=None, *, quantizer=NEAREST, blocks=DEFAULT, native=True):
    mantissa, exponent = quantize_array(x, quantizer, blocks=blocks, seed=seed, native=native)
    return to_integers(mantissa), exponent


def numbers(shape, scale=1.0):
    """Numbers of very different magnitudes, zeros included."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-20, 5, shape)) * (rng.random(shape) < 0.9)
    return np.asarray(x * scale, np.float32)


def assert_quantized(x, blocks, bits=16, rounding="nearest", seed=None, native=True):
    quantizer = Quantizer(bits=bits, rounding=rounding)
    mantissa, exponent = quantized(x, seed, quantizer=quantizer, blocks=blocks, native=native)
    expected_mantissa, expected_exponent = reference(x, blocks, bits, rounding, seed)
    assert exponent.dtype == np.int32 and mantissa.dtype == np.int16
    np.testing.assert_array_equal(exponent, expected_exponent)
    np.testing.assert_array_equal(mantissa, expected_mantissa)
    each = np.asarray(expanded(exponent, x.shape, blocks))
    own = np.where(each >= NONFINITE // 2, 0, each)
    assert each.shape == x.shape
    error = np.abs(np.where(each == own, x, 0) - np.ldexp(np.float64(mantissa), own))
    assert (error <= np.ldexp(1.0, own)).all()


SHAPES = [
    (), (0,), (1,), (7,), (100,), (3, 5), (2, 33), (1, 0), (0, 4, 33), (2, 0, 33), (2, 9, 40), (3, 3, 5, 2),
    (2, 3, 5, 37), (2, 9, 14, 3), (2, 3, 5, 11, 3), (2, 6, 40, 1), (2, 5, 3, 0), (2, 0, 5, 3),
    (1, 9, 2100, 3),
]  # fmt: skip


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_block_has_the_exponent_of_its_largest_magnitude(shape, native):
    assert_quantized(numbers(shape), Blocks(), native=native)


@pytest.mark.parametrize("blocks", [Blocks(rows=1, columns=16), Blocks(rows=16), Blocks(rows=2, columns=256)])
def test_blocks_of_other_sizes(blocks):
    assert_quantized(numbers((2, 3, 7, 67)), blocks)


def test_a_block_of_merged_axes_has_all_columns():
    images = (32, 224, 224, 3)
    assert Blocks(rows=4).view(images) == (32, 224, 672) and Blocks(rows=4).size(images) == (4, 672)
    assert Blocks(rows=4).counts(images) == (32, 56, 1)
    for shape in ((32, 224, 32), (5, 3), (7,), ()):  # no axes are merged
        assert Blocks(rows=4).size(shape) == (4, 32)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", [2, 7, 16])
def test_every_rounding(bits, rounding, native):
    for shape in ((2, 9, 37), (2, 9, 14, 3)):
        assert_quantized(numbers(shape), Blocks(), bits, rounding, native=native)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1])
def test_stochastic_rounding_with_a_seed(seed, native):
    for shape in ((2, 9, 37), (2, 9, 14, 3)):
        x = numbers(shape)
        x.flat[0] = 1e-30  # with seed 0 its random bits are 0, which round up whatever is not zero
        assert_quantized(x, Blocks(), 16, "stochastic", np.uint32(seed), native)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", [3e-34, 1e-38, 1e-42, 1e30])  # two are subnormal
def test_extreme_magnitudes(scale, rounding, native):
    x = numbers((2, 9, 37), scale)
    x[1, 2:] = x[1, 2:] * 1e6
    assert_quantized(x, Blocks(), 16, rounding, native=native)


@pytest.mark.parametrize("native", [True, False])
def test_just_below_a_power_of_two_is_clamped(native):
    x = np.full((1, 4, 40), np.nextafter(np.float32(2), np.float32(0)))
    x[0, 1] *= -1
    mantissa, exponent = quantized(x, native=native)
    assert set(np.unique(mantissa)) == {-32767, 32767} and set(np.unique(exponent)) == {-14}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_spoils_no_other(bad, rounding, native):
    x = numbers((2, 9, 70))
    x[0, 5, 33] = x[1, 8, 69] = bad
    assert_quantized(x, Blocks(), rounding=rounding, native=native)
    _, exponent = quantized(x)
    assert int((np.asarray(exponent) == NONFINITE - 14).sum()) == 2
    x = numbers((2, 9, 14, 3))
    x[0, 5, 13, 2] = bad
    assert_quantized(x, Blocks(), rounding=rounding, native=native)


# --- transformations --------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("in_axes", [(0, None), (1, 0), (None, 0)])
def test_vmap_is_the_loop(in_axes, rounding):
    quantizer = Quantizer(rounding=rounding)
    of_seed = functools.partial(quantized, quantizer=quantizer)
    fun = of_seed if rounding == "stochastic" else lambda x, seed: of_seed(x)
    x = np.moveaxis(numbers((3, 2, 9, 37)), 0, in_axes[0] or 0)
    seeds = np.arange(3, dtype=np.uint32)
    operands = (x if in_axes[0] is not None else x[0], seeds if in_axes[1] == 0 else seeds[1])
    loop = [
        fun(*(a if axis is None else a.take(i, axis) for a, axis in zip(operands, in_axes, strict=True)))
        for i in range(3)
    ]
    mapped = jax.jit(jax.vmap(fun, in_axes))(*operands)
    jax.tree.map(lambda *parts: np.testing.assert_array_equal(parts[0], np.stack(parts[1:])), mapped, *loop)


def test_vmap_of_vmap_is_the_loop():
    x = numbers((2, 3, 5, 37))
    fun = functools.partial(quantized, quantizer=Quantizer(rounding="stochastic"))
    mantissa, exponent = jax.vmap(jax.vmap(fun, in_axes=1), in_axes=1)(x)
    assert exponent.shape == (3, 5, 2, 1, 2) and mantissa.shape == (3, 5, 2, 37)
    for i, j in itertools.product(range(3), range(5)):
        each = fun(x[:, i, j])
        np.testing.assert_array_equal(mantissa[i, j], each[0])
        np.testing.assert_array_equal(exponent[i, j], each[1])


def test_the_derivative_is_the_identity():
    x = numbers((2, 9, 37))
    g = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    quantize = functools.partial(quantize_array, quantizer=Quantizer(granularity="block"), blocks=Blocks())
    _, (tangent, _) = jax.jvp(quantize, (x,), (g,))
    np.testing.assert_array_equal(tangent, g)
    _, pull = jax.vjp(lambda x: quantize(x)[0], x)
    np.testing.assert_array_equal(pull(g)[0], g)


def test_types_on_an_explicit_mesh():
    mesh = jax.sharding.AbstractMesh((2, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)

    def types(shape, spec, fun=lambda x: quantize_array(x, Quantizer(), blocks=Blocks(rows=8))):
        with jax.sharding.use_abstract_mesh(mesh):
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
            out = jax.eval_shape(fun, jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding))
        return [(x.shape, tuple(x.sharding.spec)) for x in out]

    assert types((4, 10, 40), ("x", None, "y")) == [
        ((4, 10, 40), ("x", None, "y")),
        ((4, 2, 2), ("x", None, None)),
    ]
    assert types((64,), ("x",)) == [((64,), ("x",)), ((1, 1, 2), (None, None, None))]
    mapped = jax.vmap(lambda x: quantize_array(x, Quantizer(), blocks=Blocks(rows=8)))
    assert types((2, 4, 10, 40), ("y", "x", None, None), mapped)[1] == ((2, 4, 2, 2), ("y", "x", None, None))


def test_devices_have_their_part_of_the_batch():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x = numbers((4, 9, 37))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    fun = functools.partial(quantized, quantizer=Quantizer(rounding="stochastic"))
    compiled = jax.jit(fun).lower(sharded).compile()
    assert "dfpjax_" not in compiled.as_text()
    jax.tree.map(np.testing.assert_array_equal, compiled(sharded), fun(x))


# --- configuration ----------------------------------------------------------------------------------


def test_bad_blocks_are_refused():
    assert Quantizer(granularity="block", blocks=Blocks(rows=1)).blocks == Blocks(rows=1)
    with pytest.raises(
        ValueError, match=r"blocks must be a Blocks, such as Blocks\(rows=8, .*, got \(4, 32\)"
    ):
        Quantizer(granularity="block", blocks=(4, 32))


def test_blocks_and_channels_do_not_go_together():
    block, channel = Quantizer(granularity="block"), Quantizer(granularity="channel")
    Quantizers(lhs=block, rhs=Quantizer(), cotangent=block)
    Quantizers(lhs=channel, rhs=Quantizer(), cotangent=channel)
    with pytest.raises(ValueError, match='got "block" for lhs and rhs, "channel" for cotangent; choose one'):
        Quantizers(lhs=block, rhs=block, cotangent=channel)
