"""The native passes over activations: the same bits on every path and with any number of threads. They equal
JAX's bits, or NumPy's sums in float64 within rounding."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import COMPILED_QUICKLY
from every_path import assert_same_bits, assert_sums, on_every_path
from jax import lax

from dfpjax.kernels import passes
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.dtype import to_integers
from dfpjax.numbers.format.magnitude import largest_magnitude_in_hlo
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.numbers.format.quantizer import Quantizer

# --- sums over all but the channels -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "rows", "channels"),
    [(1, 0, 3), (2, 1, 100), (1, 31, 37), (3, 33, 1), (2, 2000, 16), (1, 700, 53), (0, 5, 7), (1, 5, 0)],
)
def test_sums(groups, rows, channels):
    rng = np.random.default_rng(0)
    x, g = (rng.normal(mean, 2, (groups, rows, channels)).astype(np.float32) for mean in (1, 0))
    centre = rng.normal(1, 1, (groups, channels)).astype(np.float32)
    sums, squares, low, high = on_every_path(passes.moments, x)
    totals, products = on_every_path(passes.paired_sums, g, x, centre)
    exact, weights = x.astype(np.float64), g.astype(np.float64)
    assert_sums(sums, exact)
    assert_sums(squares, exact**2)
    assert_same_bits(low, x.min(1, initial=np.inf))
    assert_same_bits(high, x.max(1, initial=-np.inf))
    assert_sums(totals, weights)
    # g · (x − centre) is rounded twice before it is added.
    assert_sums(products, weights * (exact - centre[:, None]))


def test_sums_are_not_those_of_float32():
    """A million ones on top of 2^24: a float32 sum would lose them."""
    x = np.ones((1, 1 << 20, 1), np.float32)
    x[0, 0] = 2**24
    sums, *_ = on_every_path(passes.moments, x)
    assert sums == 2**24 + 2**20 - 32  # without the ones that are added to the large number itself


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, -3e38])
def test_a_special_number_stays_in_its_channel(special):
    x = np.random.default_rng(0).normal(1, 1, (2, 700, 40)).astype(np.float32)
    plain = on_every_path(passes.moments, x)
    x[1, 650, 33] = special
    actual = on_every_path(passes.moments, x)
    others = np.ones((2, 40), bool)
    others[1, 33] = False
    for a, b in zip(actual, plain, strict=True):
        assert_same_bits(a[others], b[others])
    sums, squares, low, high = (a[1, 33] for a in actual)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(sums, x[1, :, 33].sum(dtype=np.float64), rtol=1e-6)
        np.testing.assert_equal(squares, np.float32(special) ** 2)
    np.testing.assert_equal((low, high), (x[1, :, 33].min(), x[1, :, 33].max()))
    totals, products = on_every_path(passes.paired_sums, x, np.ones_like(x), np.zeros((2, 40), np.float32))
    assert_same_bits(totals, actual[0])
    assert_same_bits(products, actual[0])


def test_both_infinities_in_a_channel():
    x = np.zeros((1, 5, 2), np.float32)
    x[0, 1, 0], x[0, 3, 0] = np.inf, -np.inf
    sums, squares, low, high = on_every_path(passes.moments, x)
    assert np.isnan(sums[0, 0]) and sums[0, 1] == 0
    assert (squares[0, 0], low[0, 0], high[0, 0]) == (np.inf, -np.inf, np.inf)


@pytest.mark.parametrize("rows", [5, 40000])  # a block, and several
def test_sums_of_subnormal_numbers(rows):
    smallest = np.float32(1e-45)
    x = np.full((1, rows, 3), smallest)
    x[0, rows - 1, 1] *= 3
    sums, squares, low, high = on_every_path(passes.moments, x)
    np.testing.assert_array_equal(sums / smallest, [[rows, rows + 2, rows]])
    assert_same_bits(low, x.min(1))
    assert_same_bits(high, x.max(1))
    assert not squares.any()


# --- quantization -----------------------------------------------------------------------------------


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(COUNT).astype(np.float32)
    full = np.nextafter(np.float32([2, -2, 2, 1]), np.float32([0, 0, 3, 0]))
    wide = np.ldexp(x, rng.integers(-160, 60, x.shape)).astype(np.float32)

    def with_one(value, index):
        return np.where(np.arange(COUNT) == index, np.float32(value), x)

    found = {
        "normal": x,
        "large": x * np.float32(5e37),
        "small": x * np.float32(1e-30),
        "subnormal": x * np.float32(1e-40),
        "around subnormal": x * np.float32(2e-38),
        "smallest": np.float32([1e-45, 0, -1e-45]),
        "wide": wide,
        "ties": np.arange(-300, 301, dtype=np.float32) / 2,
        "full scale": full,
        "rounds up": full[:2],
        "zeros": np.zeros(1, np.float32),
        "negative zeros": np.float32([-0.0]),
        "nan": with_one(np.nan, COUNT - 1),
        "negative nan": with_one(-np.nan, 0),
        "infinity": with_one(-np.inf, 500),
    }
    # All have the same size, so JAX compiles once.
    return {name: np.resize(values, COUNT) for name, values in found.items()}


COUNT = 1003
DATA = data()
BITS = range(2, 17)


def _all_bits(x, **path):
    return [passes.quantize(x, bits, **path) for bits in BITS]


@functools.partial(jax.jit, compiler_options=COMPILED_QUICKLY)
def _in_hlo(x):
    results = [quantize_array(x, Quantizer(bits=bits), native=False) for bits in BITS]
    quantized = [(to_integers(mantissa), exponent.reshape(())) for mantissa, exponent in results]
    return quantized, largest_magnitude_in_hlo(x)


@pytest.mark.parametrize("name", DATA)
def test_quantization_has_the_bits_of_hlo(name):
    x = DATA[name]
    hlo, largest_in_hlo = jax.device_get(_in_hlo(x))
    for bits, native, expected in zip(BITS, on_every_path(_all_bits, x), hlo, strict=True):
        jax.tree.map(functools.partial(assert_same_bits, message=f"{bits} bits"), native, expected)
    largest = on_every_path(passes.largest_magnitude, x)
    if np.isfinite(x).all():
        assert largest == largest_in_hlo == np.abs(x).max().view(np.int32)
    else:
        assert min(largest, largest_in_hlo) >= 0x7F800000


@pytest.mark.parametrize("count", [0, 1, 64, 131072 + 5])  # nothing, and several blocks
def test_quantization_of_so_many_numbers(count):
    x = np.resize(DATA["normal"], count)
    x[-1:] = 100
    mantissa, exponent = on_every_path(_sixteen_bits, x)
    expected = quantize_array(x, Quantizer(), native=False)
    assert_same_bits(mantissa, to_integers(expected[0]))
    assert exponent == expected[1].reshape(())
    assert on_every_path(passes.largest_magnitude, x) == np.float32(100 * (count > 0)).view(np.int32)


def _sixteen_bits(x, **path):
    return passes.quantize(x, 16, **path)


@pytest.mark.parametrize("options", [{}, {"blocks": Blocks()}], ids=["tensor", "blocks"])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5), (70000,)], ids=str)
def test_quantization_of_any_size_is_one_call(shape, options):
    fun = jax.jit(functools.partial(quantize_array, quantizer=Quantizer(), **options))
    text = fun.lower(struct(*shape)).as_text()
    assert text.count("custom_call @dfpjax_quantize_") == text.count("custom_call") == 1
    others = {*re.findall(r"= stablehlo\.(\w+)", text)}
    # What is broadcast is an empty array of seeds.
    assert others <= {"custom_call", "reshape", "bitcast_convert", "constant", "broadcast_in_dim"}, others


@pytest.mark.parametrize("rounding", ["nearest", "biased", "truncate", "stochastic"])
@pytest.mark.parametrize("seeded", [True, False])
def test_quantization_of_blocks_has_the_bits_of_hlo(rounding, seeded):
    x = DATA["normal"][:1000].reshape(2, 5, 100).copy()
    x[1, 2, 40], x[0, 4, 90:] = np.inf, 1e-40
    quantizer, blocks = Quantizer(rounding=rounding, bits=9), Blocks(rows=2)
    seeds = np.uint32([0, 7]) if seeded and rounding == "stochastic" else None
    run = functools.partial(passes.quantize_blocks, quantizer=quantizer, blocks=blocks, mapped=1)
    if seeds is None:
        native = on_every_path(run, x)
    else:
        native = on_every_path(lambda x, seeds, **path: run(x, seeds=seeds, **path), x, seeds)
    quantize = functools.partial(quantize_array, quantizer=quantizer, blocks=blocks, native=False)
    if seeds is None:
        expected = jax.jit(jax.vmap(quantize))(x)
    else:
        expected = jax.jit(jax.vmap(lambda x, seed: quantize(x, seed=seed)))(x, seeds)
    assert_same_bits(native[0], to_integers(expected[0]))
    assert_same_bits(native[1], expected[1])


def test_a_large_tensor_is_quantized_natively_and_bit_identically():
    x = np.random.default_rng(0).standard_normal((3, 1 << 14)).astype(np.float32)
    quantized = jax.jit(quantize_array, static_argnames=("quantizer", "native"))
    for witness in (None, x[1:2]):
        x[1, 5] = 9  # the largest magnitude, in x and in its stand-in
        native, hlo = (
            quantized(x, quantizer=Quantizer(), witness=witness, native=native) for native in (True, False)
        )
        jax.tree.map(np.testing.assert_array_equal, native, hlo)
    text = quantized.lower(x, quantizer=Quantizer(), native=True).as_text()
    assert text.count("custom_call @dfpjax_quantize_v1") == text.count("custom_call") == 1
    for options in ({"native": False}, {"quantizer": Quantizer(rounding="biased"), "native": False}):
        options = {"quantizer": Quantizer(), **options}
        assert "dfpjax_" not in quantized.lower(x, **options).as_text()


# --- maximum pooling --------------------------------------------------------------------------------

# Height and width, window, strides, padding
POOLS = {
    "plain": ((8, 6), (2, 2), (2, 2), ((0, 0), (0, 0))),
    "overlapping": ((9, 7), (3, 3), (2, 2), ((0, 0), (0, 0))),
    "padded": ((7, 8), (3, 3), (2, 2), ((1, 1), (0, 1))),
    "dense": ((5, 6), (3, 2), (1, 1), ((1, 1), (1, 0))),
    "cut": ((5, 7), (2, 3), (2, 3), ((0, 0), (0, 0))),
    "beyond": ((5, 5), (4, 3), (3, 2), ((3, 3), (2, 2))),
    "whole": ((4, 3), (4, 3), (1, 1), ((0, 0), (0, 0))),
    "gaps": ((9, 7), (1, 2), (4, 3), ((0, 0), (0, 0))),
}


def images(size, channels):
    """Four images: plain, with many zeros of both signs, with NaNs and infinities, and all -infinity."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, *size, channels)).astype(np.float32)
    x[1] = np.maximum(np.round(x[1]), 0) * np.where(rng.random(x[1].shape) < 0.5, np.float32(-1), 1)
    for special in (np.nan, np.inf, -np.inf):
        x[2, rng.random(x[2].shape) < 0.1] = special
    x[3] = -np.inf
    return x


@pytest.mark.parametrize("name", POOLS)
def test_max_pooling_has_the_bits_of_xla(name):
    size, window, strides, padding = POOLS[name]
    assert_pools_as_xla(images(size, 21), window, strides, padding)


def test_max_pooling_of_one_high_image():
    """Threads split the gradient of a single image in bands of rows, which share windows."""
    _, window, strides, padding = POOLS["overlapping"]
    x = images((39, 5), 40)
    assert_pools_as_xla(x[1:2], window, strides, padding)


def assert_pools_as_xla(x, window, strides, padding):
    def pool(x):
        full = (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
        return lax.reduce_window(x, -np.inf, lax.max, *full)

    @jax.jit
    def in_hlo(g, x):
        out, pull = jax.vjp(pool, x)
        return out, pull(g)[0]

    # Multiples of 1/8, so the order in which a pixel's gradients are added does not matter.
    shape = jax.eval_shape(pool, x).shape
    g = np.random.default_rng(1).integers(-20, 20, shape).astype(np.float32) / 8
    out, gradient = jax.device_get(in_hlo(g, x))
    windows = tuple(n for axis in (0, 1) for n in (window[axis], strides[axis], padding[axis][0]))
    assert_same_bits(
        on_every_path(functools.partial(passes.max_pool, out_shape=shape, windows=windows), x), out
    )
    actual = on_every_path(functools.partial(passes.max_pool_gradient, windows=windows), g, x)
    np.testing.assert_array_equal(actual, gradient)


# --- bad arguments ----------------------------------------------------------------------------------

CUBE, IMAGES = jnp.ones((2, 3, 4)), jnp.ones((2, 8, 8, 3))


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


RESPONSE = {"reach": np.int64(2), "k": np.float32(2), "alpha": np.float32(1e-4)}
GOOD = {
    "moments": ([struct(2, 4)] * 4, [CUBE], {}),
    "paired_sums": ([struct(2, 4)] * 2, [CUBE, CUBE, CUBE[:, 0]], {}),
    "rectified_sums": ([struct(2, 4)] * 2, [CUBE, CUBE, *[CUBE[:, 0]] * 3], {}),
    "rectified_sum": (
        [struct(2, 3, 4), struct(2, 3, 4, dtype=jnp.bool_), struct(2, 4), struct(2, 4)],
        [CUBE, CUBE, *[CUBE[:, 0]] * 3],
        {},
    ),
    "largest_magnitude": (struct(dtype=jnp.int32), [CUBE], {}),
    "quantize": (
        [struct(2, 3, 4, dtype=jnp.int16), struct(dtype=jnp.int32)],
        [CUBE],
        {"bits": np.int64(16)},
    ),
    "quantize_blocks": (
        [struct(2, 3, 4, dtype=jnp.int16), struct(2, 1, 1, dtype=jnp.int32)],
        [CUBE, jnp.uint32([7])],
        {
            "bits": np.int64(16),
            "rounding": "stochastic",
            "view": np.int64([1, 2, 3, 4]),
            "block": np.int64([4, 32]),
        },
    ),
    "max_pool": (struct(2, 4, 4, 3), [IMAGES], {"windows": np.int64([2, 2, 0, 2, 2, 0])}),
    "max_pool_gradient": (
        struct(2, 8, 8, 3),
        [IMAGES[:, ::2, ::2], IMAGES],
        {"windows": np.int64([2, 2, 0, 2, 2, 0])},
    ),
    "local_response": (struct(3, 4), [CUBE[0]], RESPONSE),
    "local_response_gradient": (struct(3, 4), [CUBE[0], CUBE[0]], RESPONSE),
}


def call(name, *, results=None, operands=None, **attributes):
    """Call a pass with good arguments, some of them replaced."""
    good_results, good_operands, more = GOOD[name]
    attributes = {"isa": "", "threads": np.int64(0), **more, **attributes}
    function = jax.ffi.ffi_call(f"dfpjax_{name}_v1", good_results if results is None else results)
    return jax.device_get(function(*(good_operands if operands is None else operands), **attributes))


@pytest.mark.parametrize("name", GOOD)
def test_bad_paths_and_threads_are_refused(name):
    call(name)
    with pytest.raises(jax.errors.JaxRuntimeError, match="threads: must not be negative"):
        call(name, threads=np.int64(-1))
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"isa: unknown ISA path 'mmx'; there are .*portable"
    ):
        call(name, isa="mmx")


OTHERS = r"operands but g and x, and results: must be \[groups, channels\]"
EXTREMES = r"mean, scale, shift, low and high: must be \[groups, channels\]"
SEEDS = "seeds: must be one for each example, or none, and none unless stochastic"
VIEW = r"view: must be the extents \[examples, outer, rows, columns\] of x"
BAD_VIEWS = [[1, 2, 3], [1, 2, 3, 5], [-1, -2, 3, 4], [2**62, 2**62, 0, 1], [1, 2, 12, 2**60]]
BOOLS = struct(2, 3, 3, dtype=jnp.bool_)


def rectified(at, operand):
    """Replace an operand of a rectified pass."""
    operands = list(GOOD["rectified_sum"][1])
    operands[at] = operand
    return {"operands": operands}


def rectified_results(at, result):
    results = list(GOOD["rectified_sum"][0])
    results[at] = result
    return {"results": results}


def windows(*numbers):
    return {"windows": np.int64(numbers)}


@pytest.mark.parametrize(
    ("name", "message", "changes"),
    [
        ("moments", r"x: must be \[groups, rows, channels\]", {"operands": [CUBE[0]]}),
        ("moments", r"results: must be \[groups, channels\]", {"results": [struct(2, 4)] * 3 + [struct(4)]}),
        ("paired_sums", r"x: must be \[groups, rows, channels\]", {"operands": [CUBE, CUBE[0], CUBE[:, 0]]}),
        ("paired_sums", "g: must be of x's size", {"operands": [CUBE[:, 1:], CUBE, CUBE[:, 0]]}),
        ("paired_sums", OTHERS, {"operands": [CUBE, CUBE, CUBE[0, 0]]}),
        ("paired_sums", OTHERS, {"results": [struct(2, 4), struct(2, 3)]}),
        ("rectified_sums", r"x: must be \[groups, rows, channels\]", rectified(1, CUBE[0])),
        ("rectified_sums", "g: must be of x's size", rectified(0, CUBE[:, 1:])),
        *(("rectified_sums", OTHERS, rectified(at, CUBE[0, 0])) for at in (2, 3, 4)),
        ("rectified_sums", OTHERS, {"results": [struct(2, 3), struct(2, 4)]}),
        ("rectified_sums", OTHERS, {"results": [struct(2, 4), struct(2, 3)]}),
        ("rectified_sum", r"x: must be \[groups, rows, channels\]", rectified(0, CUBE[0])),
        ("rectified_sum", "residual and y: must be of x's size", rectified(1, CUBE[:, 1:])),
        ("rectified_sum", "residual and y: must be of x's size", rectified_results(0, struct(2, 3, 3))),
        ("rectified_sum", "positive: must be of x's size or empty", rectified_results(1, BOOLS)),
        *(("rectified_sum", EXTREMES, rectified(at, CUBE[0, 0])) for at in (2, 3, 4)),
        *(("rectified_sum", EXTREMES, rectified_results(at, struct(2, 3))) for at in (2, 3)),
        ("largest_magnitude", "result: must be one number", {"results": struct(2, dtype=jnp.int32)}),
        (
            "quantize",
            "mantissas: must be of x's size",
            {"results": [struct(2, 3, dtype=jnp.int16), struct(dtype=jnp.int32)]},
        ),
        (
            "quantize",
            "exponent: must be one number",
            {"results": [struct(2, 3, 4, dtype=jnp.int16), struct(2, dtype=jnp.int32)]},
        ),
        ("quantize", "bits: must be from 2 to 16", {"bits": np.int64(1)}),
        ("quantize", "bits: must be from 2 to 16", {"bits": np.int64(17)}),
        ("quantize_blocks", "bits: must be from 2 to 16", {"bits": np.int64(17)}),
        (
            "quantize_blocks",
            "rounding: must be nearest, stochastic, biased or truncate",
            {"rounding": "up", "operands": [CUBE, jnp.zeros(0, jnp.uint32)]},
        ),
        ("quantize_blocks", SEEDS, {"rounding": "nearest"}),
        ("quantize_blocks", SEEDS, {"operands": [CUBE, jnp.uint32([7, 8])]}),
        *(("quantize_blocks", VIEW, {"view": np.int64(view)}) for view in BAD_VIEWS),
        ("quantize_blocks", "block: must be the rows and columns", {"block": np.int64([4])}),
        ("quantize_blocks", "block: must have rows that are a power of two", {"block": np.int64([3, 32])}),
        ("quantize_blocks", "block: must have columns that are a power", {"block": np.int64([4, 8])}),
        (
            "quantize_blocks",
            "mantissas: must be of x's size",
            {"results": [struct(2, 3, dtype=jnp.int16), struct(2, 1, 1, dtype=jnp.int32)]},
        ),
        (
            "quantize_blocks",
            "exponents: must be one for each block",
            {"results": [struct(2, 3, 4, dtype=jnp.int16), struct(1, 1, 1, dtype=jnp.int32)]},
        ),
        ("max_pool", r"images: must be \[images, height, width, channels\]", {"operands": [CUBE]}),
        ("max_pool", "images and channels: must be as many", {"results": struct(2, 4, 4, 4)}),
        ("max_pool", "images and channels: must be as many", {"results": struct(1, 4, 4, 3)}),
        ("max_pool", "windows: must be window, stride and padding", windows(2, 2, 0)),
        ("max_pool", "height: window and stride must be positive", windows(0, 2, 0, 2, 2, 0)),
        ("max_pool", "width: window and stride must be positive", windows(2, 2, 0, 2, -1, 0)),
        ("max_pool", "width: padding must be less than the window", windows(2, 2, 0, 2, 2, 2)),
        ("max_pool", "height: a window holds no pixel", windows(2, 3, 0, 2, 2, 0)),
        ("max_pool", "height: a window holds no pixel", windows(2, 2**62, 0, 2, 2, 0)),
        ("max_pool", "height: must have at most 1024 pixels", windows(2**40, 2, 0, 2, 2, 0)),
        ("max_pool", "window: must have at most 1024 pixels", windows(33, 2, 0, 33, 2, 0)),
        ("max_pool", "height: an image has no pixels", {"operands": [IMAGES[:, :0]]}),
        ("max_pool_gradient", "result: must be of x's size", {"results": struct(2, 8, 8, 4)}),
        ("max_pool_gradient", "height: a window holds no pixel", windows(2, 3, 0, 2, 2, 0)),
        ("local_response", r"x: must be \[rows, channels\]", {"operands": [CUBE]}),
        ("local_response", "operands and result: must be of x's size", {"results": struct(3, 3)}),
        ("local_response", "reach: must be from 0 to the channels", {"reach": np.int64(-1)}),
        ("local_response", "reach: must be from 0 to the channels", {"reach": np.int64(5)}),
        ("local_response_gradient", "must be of x's size", {"operands": [CUBE[0, :2], CUBE[0]]}),
        ("local_response_gradient", "must be of x's size", {"results": struct(3, 3)}),
        ("local_response_gradient", "reach: must be from 0 to the channels", {"reach": np.int64(2**62)}),
    ],
)
def test_bad_arguments_are_refused(name, message, changes):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        call(name, **changes)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 8, 8, 0)])
def test_pooling_nothing(shape):
    x, small = np.zeros(shape, np.float32), (shape[0], 4, 4, shape[3])
    assert passes.max_pool(x, small, (2, 2, 0, 2, 2, 0)).shape == small
    assert passes.max_pool_gradient(np.zeros(small, np.float32), x, (2, 2, 0, 2, 2, 0)).shape == shape
