"""The native passes that compute a tensor and write it as an operand: the bits of NumPy's tensor, quantized
in HLO, on every path and with any number of threads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_path import assert_same_bits, on_every_path
from fused import fused

from dfpjax.kernels import operands
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.dtype import to_integers
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.numbers.format.quantizer import Quantizer

SHAPES = [(70,), (33, 5), (4, 197, 48), (3, 5, 7, 70), (2, 12, 9, 3), (2, 6, 6, 1), (9, 1), (0, 5), (3, 0)]
ROUNDINGS = ["nearest", "biased", "truncate", "stochastic"]


def arguments(shape):
    """A tensor, another one of its shape, and four numbers for each channel."""
    rng = np.random.default_rng(0)
    full = [(rng.normal(1, 1, shape) * 2.0 ** rng.integers(-12, 4, shape)).astype(np.float32) for _ in "xg"]
    return *full, *(rng.normal(0.5, 1, shape[-1:]).astype(np.float32) for _ in range(4))


def assert_operand(actual, tensor, quantizer, blocks):
    expected = quantize_array(tensor, quantizer, blocks=blocks, native=False)
    assert_same_bits(actual[0], to_integers(expected[0]))
    assert_same_bits(actual[1], expected[1])
    assert actual[1].shape == blocks.counts(tensor.shape)


def rectify(numbers):
    return np.where(numbers <= 0, np.float32(0), numbers)


def run(function, *args, given=(), quantizer=Quantizer(), blocks=Blocks(), **options):  # noqa: B008 (frozen)
    """Run a pass on every path, with some operands given by name."""
    names = tuple(given)

    def call(*args, isa, threads):
        plain, named = args[: len(args) - len(names)], args[len(args) - len(names) :]
        keywords = dict(zip(names, named, strict=True)) | options
        return function(*plain, **keywords, quantizer=quantizer, blocks=blocks, isa=isa, threads=threads)

    return on_every_path(call, *args, *(given[name] for name in names))


# --- bits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rectified_normalization(shape):
    x, _, mean, scale, shift, _ = arguments(shape)
    y = rectify(fused(x - mean, scale, shift))
    blocks = Blocks(rows=4)
    actual = run(operands.rectified_operand, x, shift, given={"mean": mean, "scale": scale}, blocks=blocks)
    assert len(actual) == 3 and actual[2].shape == (0,)
    assert_operand(actual[:2], y, Quantizer(), blocks)


@pytest.mark.parametrize("given", ["", "mean", "scale"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_absent_operands(given, with_residual):
    x, residual, mean, scale, shift, _ = arguments((2, 8, 5, 37))
    named = {name: v for name, v in (("mean", mean), ("scale", scale)) if name == given}
    y = fused(x - named.get("mean", np.float32(0)), named.get("scale", np.float32(1)), shift)
    if with_residual:
        named["residual"] = residual
        y = y + residual
    actual = run(operands.rectified_operand, x, shift, given=named)
    assert len(actual) == (6 if with_residual else 3)
    assert_operand(actual[:2], rectify(y), Quantizer(), Blocks())


def assert_mask(actual, expected):
    assert actual.dtype == np.bool_
    if expected is None:
        assert actual.shape == (0,)
        return
    # Compare bytes, since a bool must be exactly 0 or 1.
    np.testing.assert_array_equal(actual.view(np.uint8), expected.astype(np.uint8))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_bias_and_its_mask(shape):
    x, _, _, _, shift, _ = arguments(shape)
    y, blocks = rectify(x + shift), Blocks(rows=4)
    actual = run(operands.rectified_operand, x, shift, blocks=blocks, masked=True)
    assert_operand(actual[:2], y, Quantizer(), blocks)
    assert_mask(actual[2], y > 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masked_operand(shape):
    x, other, *_ = arguments(shape)
    x.flat[:1] = np.nan
    positive, blocks = other > 0, Blocks(rows=4)
    actual = run(operands.masked_operand, x, positive, blocks=blocks)
    assert_operand(actual, np.where(positive, x, np.float32(0)), Quantizer(), blocks)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum_with_a_residual(shape, masked):
    x, residual, mean, scale, shift, _ = arguments(shape)
    y = rectify(fused(x - mean, scale, shift) + residual)
    given = {"mean": mean, "scale": scale, "residual": residual}
    blocks = Blocks(rows=4)
    actual = run(operands.rectified_operand, x, shift, given=given, blocks=blocks, masked=masked)
    assert_operand(actual[:2], y, Quantizer(), blocks)
    _, _, positive, written, low, high = actual
    assert_same_bits(written, y)
    assert_mask(positive, y > 0 if masked else None)
    rows = tuple(range(y.ndim - 1))
    assert_same_bits(low, y.min(rows, initial=np.inf))
    assert_same_bits(high, y.max(rows, initial=0))


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient(shape, rectified):
    x, g, mean, scale, shift, slope = arguments(shape)
    offset = scale[::-1].copy()
    counted = np.where(fused(x - mean, scale, shift) > 0, g, np.float32(0)) if rectified else g
    assert not rectified or x.size < 100 or 0.1 < (counted != 0).mean() < 0.9
    gradient = fused(slope, x, fused(counted, scale, offset))
    given = {"mean": mean, "shift": shift} if rectified else {}
    blocks = Blocks(rows=4)
    actual = run(operands.gradient_operand, g, x, scale, offset, slope, given=given, blocks=blocks)
    assert_operand(actual, gradient, Quantizer(), blocks)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 32, 70])
def test_pooled_operand(channels, kept):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, (3, 9, 8, channels)) * 2.0 ** rng.integers(-12, 4, (3, 9, 8, channels))
    x = x.astype(np.float32)
    x[1, 2, 3, 0] = np.nan
    # 3 rows at strides of 2, one of them before the image; 2 columns at strides of 1.
    rows = np.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=-np.inf)
    taps = [rows[:, r : r + 7 : 2, k : k + 7] for r in range(3) for k in range(2)]
    y = np.maximum.reduce(taps)
    blocks = Blocks(rows=4)
    pass_ = functools.partial(operands.pooled_operand, shape=y.shape, windows=(3, 2, 1, 2, 1, 0))
    actual = run(pass_, x, kept=kept, blocks=blocks)
    assert_operand(actual, y, Quantizer(), blocks)
    np.testing.assert_array_equal(actual[2], y if kept else np.zeros(0))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_roundings(rounding):
    """Random bits depend on the index in the whole tensor, wherever a piece begins."""
    x, g, mean, scale, shift, slope = arguments((3, 40, 9, 70))
    quantizer, blocks = Quantizer(rounding=rounding, bits=9), Blocks(rows=8, columns=16)
    run_one = functools.partial(run, quantizer=quantizer, blocks=blocks)
    normalized = fused(x - mean, scale, shift)
    given = {"mean": mean, "scale": scale}
    actual = run_one(operands.rectified_operand, x, shift, given=given)
    assert_operand(actual[:2], rectify(normalized), quantizer, blocks)
    actual = run_one(operands.rectified_operand, x, shift, given=given | {"residual": g})
    assert_operand(actual[:2], rectify(normalized + g), quantizer, blocks)
    actual = run_one(operands.gradient_operand, g, x, scale, shift, slope)
    assert_operand(actual, fused(slope, x, fused(g, scale, shift)), quantizer, blocks)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3e38, -0.0, 1e-45])
def test_special_numbers(special):
    x, g, mean, scale, shift, slope = arguments((2, 4, 6, 53))
    x[1, 2, 3, [3, 50]] = g[0, 1, 2, 52] = shift[40] = special
    with np.errstate(invalid="ignore", over="ignore"):
        normalized = fused(x - mean, scale, shift)
        y = rectify(normalized + g)
    given = {"mean": mean, "scale": scale}
    actual = run(operands.rectified_operand, x, shift, given=given)
    assert_operand(actual[:2], rectify(normalized), Quantizer(), Blocks())
    actual = run(operands.rectified_operand, x, shift, given=given | {"residual": g})
    assert_operand(actual[:2], y, Quantizer(), Blocks())
    for found, expected in zip(actual[3:], (y, y.min((0, 1, 2)), y.max((0, 1, 2))), strict=True):
        assert_same_bits(found, expected)
    given = {"mean": mean, "shift": shift}
    actual = run(operands.gradient_operand, g, x, scale, shift, slope, given=given)
    counted = np.where(normalized > 0, g, np.float32(0))
    assert_operand(actual, fused(slope, x, fused(counted, scale, shift)), Quantizer(), Blocks())


@pytest.mark.parametrize("scale", [1e-38, 1e-40, 1e-44])
def test_subnormal_numbers(scale):
    x, g, mean, factor, shift, slope = arguments((2, 4, 6, 53))
    x, g, mean, shift = ((v * np.float64(scale)).astype(np.float32) for v in (x, g, mean, shift))
    y = rectify(fused(x - mean, factor, shift) + g)
    assert ((y > 0) & (y < 1.2e-38)).any()
    given = {"mean": mean, "scale": factor, "residual": g}
    actual = run(operands.rectified_operand, x, shift, given=given)
    # HLO flushes subnormal numbers, so y is scaled by a power of two before it is quantized there.
    mantissas, exponents = quantize_array(
        y * np.float32(2.0**100), Quantizer(), blocks=Blocks(), native=False
    )
    assert_same_bits(actual[0], to_integers(mantissas))
    nothing = np.asarray(exponents) == -149 - 14
    assert_same_bits(actual[1], np.where(nothing, exponents, exponents - 100))
    assert_same_bits(actual[3], y)
    gradient = fused(slope, x, fused(g, factor, shift))
    actual = run(operands.gradient_operand, g, x, factor, shift, slope)
    mantissas, exponents = quantize_array(
        gradient * np.float32(2.0**100), Quantizer(), blocks=Blocks(), native=False
    )
    assert_same_bits(actual[0], to_integers(mantissas))
    assert_same_bits(actual[1], exponents - 100)


def test_products_are_not_rounded():
    """(1 + 2^-23) · (1 − 2^-23) − 1 is −2^-46, and 0 if the product is rounded."""
    x, one = np.full((1, 4, 4, 32), 1 + 2.0**-23, np.float32), np.ones(32, np.float32)
    factor = -(np.float32(1) - np.float32(2.0**-23)) * one
    mantissas, exponents, _ = run(operands.rectified_operand, x, one, given={"scale": factor})
    assert (mantissas * 2.0 ** int(exponents.ravel()[0]) == 2.0**-46).all() and (exponents == -60).all()
    mantissas, exponents = run(operands.gradient_operand, x, x, factor, one, 0 * one)
    assert (mantissas == 2**14).all() and (exponents == -60).all()


# --- errors -----------------------------------------------------------------------------------------

X, OF = jnp.ones((2, 3, 4)), jnp.ones(4)
PLAIN = {"quantizer": Quantizer(), "blocks": Blocks()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": OF[:3]}, "shift: must be one number for each channel"),
        ({"mean": OF[:3]}, "mean: must be one number for each channel"),
        ({"scale": OF[:3]}, "scale: must be one number for each channel"),
        ({"residual": X[:1]}, "residual: must be of x's size"),
        ({"residual": X[:0]}, "residual: must be of x's size"),
        ({"x": jnp.ones(())}, r"x: must be \[\.\.\., channels\]"),
        ({"threads": -1}, "threads: must not be negative"),
        ({"isa": "mmx"}, "isa: unknown ISA path 'mmx'"),
    ],
)
def test_bad_rectified_operands_are_refused(changes, message):
    arguments = {"x": X, "shift": OF, **PLAIN, **changes}
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(operands.rectified_operand(**arguments))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(jax.errors.JaxRuntimeError, match="positive: must be of x's size"):
        jax.block_until_ready(operands.masked_operand(X, X[:1] > 0, **PLAIN))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"g": X[:1]}, "g: must be of x's size"),
        ({"scale": OF[:3]}, "scale: must be one number for each channel"),
        ({"offset": OF[:3]}, "offset: must be one number for each channel"),
        ({"slope": OF[:3]}, "slope: must be one number for each channel"),
        ({"mean": OF}, "shift: must be one number for each channel"),
        ({"shift": OF}, "mean: must be one number for each channel"),
        ({"mean": OF, "shift": OF[:3]}, "shift: must be one number for each channel"),
        ({"isa": "mmx"}, "isa: unknown ISA path 'mmx'"),
    ],
)
def test_bad_gradient_operands_are_refused(changes, message):
    arguments = {"g": X, "x": X, "scale": OF, "offset": OF, "slope": OF, **PLAIN, **changes}
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(operands.gradient_operand(**arguments))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": (2, 2, 2, 2, 2, 0)}, "height: padding must be less than the window"),
        ({"shape": (1, 4, 4, 5)}, "images and channels: must be as many before and after"),
        ({"shape": (2, 4, 9, 5)}, "width: a window holds no pixel"),
        ({"shape": (2, 4, 4)}, r"images: must be \[images, height, width, channels\]"),
        ({"windows": (2, 2)}, "windows: must be window, stride and padding of height and width"),
    ],
)
def test_bad_pooled_operands_are_refused(changes, message):
    arguments = {"x": jnp.ones((2, 8, 8, 5)), "shape": (2, 4, 4, 5), "windows": (2, 2, 0, 2, 2, 0)}
    arguments |= {"quantizer": Quantizer(), "blocks": Blocks()} | changes
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(operands.pooled_operand(**arguments))


def test_maxima_of_another_size_are_refused():
    results = [struct(2, 4, 4, 5, dtype=jnp.int16), struct(2, 4, 1, dtype=jnp.int32), struct(2, 4, 4)]
    call = jax.ffi.ffi_call("dfpjax_pooled_operand_v1", results)
    attributes = {"isa": "", "threads": np.int64(0), "bits": np.int64(16), "rounding": "nearest"}
    attributes |= {"view": np.int64([2, 4, 20]), "block": np.int64([1, 20])}
    with pytest.raises(jax.errors.JaxRuntimeError, match="y: must be of the mantissas' size"):
        call(jnp.ones((2, 8, 8, 5)), windows=np.int64([2, 2, 0, 2, 2, 0]), **attributes)


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


MANTISSAS, EXPONENTS = struct(2, 3, 4, dtype=jnp.int16), struct(2, 3, 1, dtype=jnp.int32)
NOTHING = struct(0)
SUM = [struct(2, 3, 4), struct(2, 3, 4, dtype=jnp.bool_), struct(4), struct(4)]
NO_SUM = [NOTHING, struct(0, dtype=jnp.bool_), NOTHING, NOTHING]
VIEW = r"view: must be the extents \[outer, rows, columns\] of x, columns of whole channels"


def replaced(results, at, result):
    return [*results[:at], result, *results[at + 1 :]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view": [2, 3]}, VIEW),
        ({"view": [2, 3, 5]}, VIEW),
        ({"view": [2, 6, 2]}, VIEW),
        ({"view": [-2, -3, 4]}, VIEW),
        ({"block": [1]}, "block: must be the rows and columns of a block"),
        ({"block": [3, 32]}, "block: must have rows that are a power of two"),
        ({"block": [1, 8]}, "block: must have columns that are a power of two"),
        ({"bits": 1}, "bits: must be from 2 to 16"),
        ({"rounding": "up"}, "rounding: must be nearest, stochastic, biased or truncate"),
        ({"operand": [struct(2, 3, dtype=jnp.int16), EXPONENTS]}, "mantissas: must be of x's size"),
        ({"operand": [MANTISSAS, struct(2, dtype=jnp.int32)]}, "exponents: must be one for each block"),
        ({"sum": replaced(SUM, 0, struct(2, 3))}, "y: must be of x's size"),
        ({"sum": replaced(SUM, 1, struct(2, 3, dtype=jnp.bool_))}, "positive: must be of x's size"),
        ({"sum": replaced(SUM, 2, struct(3))}, "low: must be one number for each channel"),
        ({"sum": replaced(SUM, 3, struct(3))}, "high: must be one number for each channel"),
        ({"sum": replaced(NO_SUM, 0, SUM[0]), "residual": None}, "y: must be empty without a residual"),
        (
            {"sum": replaced(NO_SUM, 1, struct(2, 3, dtype=jnp.bool_)), "residual": None},
            "positive: must be of x's size",
        ),
        ({"sum": replaced(NO_SUM, 3, SUM[3]), "residual": None}, "high: must be empty without a residual"),
    ],
)
def test_bad_descriptions_are_refused(changes, message):
    good = {"operand": [MANTISSAS, EXPONENTS], "sum": SUM, "residual": X}
    good |= {"bits": 16, "rounding": "nearest", "view": [2, 3, 4], "block": [1, 32]}
    call_rectified(**good)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        call_rectified(**good | changes)


def call_rectified(operand, sum, residual, bits, rounding, view, block):
    attributes = {"isa": "", "threads": np.int64(0), "bits": np.int64(bits), "rounding": rounding}
    attributes |= {"view": np.int64(view), "block": np.int64(block)}
    function = jax.ffi.ffi_call("dfpjax_rectified_operand_v1", [*operand, *sum])
    empty = jnp.zeros(0)
    residual = empty if residual is None else residual
    jax.block_until_ready(function(X, OF, empty, empty, residual, **attributes))
