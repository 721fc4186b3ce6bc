"""`DFPArray`s with an exponent for each block: the class, transformations, and functions on the integers."""

import operator

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dfpjax
import dfpjax.numpy as dnp
from dfpjax import DFP32Array, DFPArray
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT

SMALL = Blocks(rows=2, columns=16)


def blocked(shape, blocks=SMALL, seed=0, exponents=(-20, -8)):
    rng = np.random.default_rng(seed)
    mantissa = rng.integers(-(2**15) + 1, 2**15, shape).astype(np.int16)
    return DFPArray(mantissa, rng.integers(*exponents, blocks.counts(shape)), blocks)


def expected_exponent(exponent, shape, blocks):
    """The exponent of each element, found by its position."""
    outer, rows, columns = blocks.view(shape)
    block_rows, block_columns = blocks.size(shape)
    o, r, c = np.indices((outer, rows, columns))
    return np.asarray(exponent)[o, r // block_rows, c // block_columns].reshape(shape)


def exact_values(x):
    return np.ldexp(np.asarray(x.mantissa, np.float64), np.asarray(x.exponent))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3).flatmap(
        lambda s: st.sampled_from([tuple(s), (*s, 17), (*s, 40)])
    ),
    blocks=st.sampled_from([SMALL, Blocks(rows=1, columns=32), Blocks()]),
)
def test_values_are_those_of_each_elements_block(shape, blocks):
    x = blocked(shape, blocks)
    exponent = expected_exponent(x.block_exponent, shape, blocks)
    expected = np.ldexp(np.asarray(x.values).astype(np.float64), exponent)
    np.testing.assert_array_equal(np.asarray(x, np.float64), expected)


X = blocked((3, 5, 20))
VALUES = np.asarray(X, np.float64)


def test_what_the_array_shows():
    assert X.blocks == SMALL and X.block_exponent.shape == (3, 3, 2)
    assert X.exponent.shape == X.shape and X.exponent.dtype == np.int32
    np.testing.assert_array_equal(X.exponent, expected_exponent(X.block_exponent, X.shape, SMALL))
    np.testing.assert_array_equal(X.dequantize(), VALUES)
    assert dfpjax.quantize(np.ones(3)).blocks is None and dfpjax.quantize(np.ones(3)).block_exponent is None
    small = DFPArray(np.array([[2, 4], [1, 0]], np.int16), [[[-1]], [[NONFINITE_EXPONENT]]], SMALL)
    end = f"exponent=[[[ -1]], [[{NONFINITE_EXPONENT}]]], blocks={SMALL})"
    assert repr(small) == f"DFPArray([[ 1.,  2.],\n          [nan, nan]], {end}"
    seen = []
    jax.eval_shape(lambda x: seen.append(repr(x)), small)
    assert seen == [f"DFPArray(dfp16[2,2], exponent=int32[2,1,1], blocks={SMALL})"]


@pytest.mark.parametrize(
    ("exponent", "blocks", "error", "message"),
    [
        (np.zeros((3, 3, 3), int), SMALL, ValueError,
         r"exponent must have shape \(3, 3, 2\), .*got shape \(3, 3, 3\)"),
        (0, SMALL, ValueError, r"exponent must have shape \(3, 3, 2\), .*got shape \(\)"),
        (np.zeros((3, 5, 20), int), SMALL, ValueError, r"exponent must have shape"),
        (0, (4, 32), TypeError, r"blocks must be a dfpjax.Blocks or None, got \(4, 32\)"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(exponent, blocks, error, message):
    with pytest.raises(error, match=f"DFPArray: {message}"):
        DFPArray(np.zeros((3, 5, 20), np.int16), exponent, blocks)


def test_blocks_that_scan_cut_are_reported():
    # As many blocks of rows as the second axis is long, but its first index has rows of one block alone.
    x = blocked((2, 2, 3, 32), Blocks(rows=4, columns=32))
    with pytest.raises(ValueError, match=r"are not those of the blocks .*split_exponent"):
        jax.lax.map(lambda one: jax.lax.map(DFPArray.dequantize, one), x)


# --- transformations ------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vmap_maps_over_every_axis(axis):
    def f(x):
        assert (x.blocks is not None) == (axis == 0)
        return -x, x.dequantize()

    negative, values = jax.vmap(f, in_axes=axis, out_axes=axis)(X)
    np.testing.assert_array_equal(negative, -VALUES)
    np.testing.assert_array_equal(values, VALUES)


def test_vmap_over_examples_that_have_blocks():
    examples = [blocked((3, 20), seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    expected = np.stack([np.asarray(x) for x in examples])
    np.testing.assert_array_equal(stacked, expected)
    out = jax.vmap(lambda x: x, in_axes=0)(stacked)
    assert out.blocks == SMALL
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(jax.vmap(DFPArray.dequantize, in_axes=1, out_axes=1)(stacked), expected)
    twice = jax.vmap(jax.vmap(operator.neg))(stacked)
    assert twice.blocks == SMALL
    np.testing.assert_array_equal(twice, -expected)
    vectors = jax.vmap(operator.neg)(blocked((20,)))  # its only axis has blocks
    assert vectors.blocks is None
    np.testing.assert_array_equal(vectors, -np.asarray(blocked((20,))))


def test_scan_and_map_take_the_first_axis():
    np.testing.assert_array_equal(jax.lax.map(DFPArray.dequantize, X), VALUES)
    _, out = jax.lax.scan(lambda carry, x: (carry, -x), 0, X)
    assert out.blocks == SMALL and out.block_exponent.shape == X.block_exponent.shape
    np.testing.assert_array_equal(out, -VALUES)
    assert dnp.split_exponent(X) is X
    vector = blocked((20,))
    np.testing.assert_array_equal(jax.lax.map(DFPArray.dequantize, dnp.split_exponent(vector)), vector)


def test_gradients_under_jit_and_checkpoint():
    @jax.jit
    @jax.checkpoint
    def loss(x):
        return (checkpoint_name(x, "x").dequantize() ** 2).sum()

    gradient = jax.grad(loss, allow_int=True)(X)
    assert gradient.blocks == SMALL and gradient.exponent.shape == X.shape
    np.testing.assert_array_equal(gradient.values, 2 * np.asarray(X))


def test_donation_and_placement():
    device = jax.devices()[0]
    x = jax.device_put(blocked((2, 3, 20)), jax.sharding.SingleDeviceSharding(device))
    assert x.sharding.device_set == {device} and x.blocks == SMALL
    out = jax.jit(operator.neg, donate_argnums=0)(x)
    assert x.values.is_deleted() and out.blocks == SMALL


# --- functions on the integers --------------------------------------------------------------------

OTHER = blocked((3, 5, 20), Blocks(rows=1, columns=32), seed=1)
WHOLE = dfpjax.quantize(np.random.default_rng(2).standard_normal((5, 20)).astype(np.float32))
KEEPING = {
    "negative": operator.neg,
    "absolute": abs,
    "relu": dnp.relu,
    "one": operator.itemgetter(1),
    "slice": operator.itemgetter(slice(1, None)),
    "reversed": operator.itemgetter((slice(None, None, -1), ...)),
    "array": operator.itemgetter(np.array([[2, 0], [1, -1]])),
    "take": lambda x: dnp.take(x, np.array([2, 2]), 0),
}
REFERENCES = {"relu": lambda x: np.maximum(x, 0), "take": lambda x: x[[2, 2]]}


def test_what_keeps_blocks():
    results = jax.jit(lambda x: {name: f(x) for name, f in KEEPING.items()})(X)
    for name, result in results.items():
        assert result.blocks == SMALL, name
        np.testing.assert_array_equal(exact_values(result), REFERENCES.get(name, KEEPING[name])(VALUES), name)


EXACT = {
    "index": lambda x, _: x[1, :, 3:],
    "arrays": lambda x, _: x[:, [4, 0, 0]],
    "new axis": lambda x, _: x[None, 2],
    "row of a row": lambda x, _: x[1][2],
    "reshape": lambda x, _: x.reshape(15, 20),
    "ravel": lambda x, _: x.ravel(),
    "transpose": lambda x, _: x.T,
    "swapaxes": lambda x, _: x.swapaxes(0, 2),
    "expand_dims": lambda x, m: m.expand_dims(x, 1),
    "squeeze": lambda x, _: x[:1].squeeze(),
    "flip": lambda x, m: m.flip(x),
    "broadcast_to": lambda x, m: m.broadcast_to(x, (2, 3, 5, 20)),
    "pad": lambda x, m: m.pad(x, ((1, 0), (0, 2), (3, 0))),
    "concatenate": lambda x, m: m.concatenate([x, -x], 1),
    "stack": lambda x, m: m.stack([x, x[::-1]], 1),
    "product": lambda x, _: x * x,
}


def indexed(key):
    return lambda x, _: x[key]


def test_what_computes_exactly():
    functions = EXACT | {"arrays": indexed((slice(None), np.array([4, 0, 0])))}
    results = jax.jit(lambda x: {name: f(x, dnp) for name, f in functions.items()})(X)
    for name, result in results.items():
        assert result.blocks is None, name
        np.testing.assert_array_equal(exact_values(result), functions[name](VALUES, np), name)
    assert isinstance(results["product"], DFP32Array)


@pytest.mark.parametrize("name", ["add", "subtract", "maximum"])
@pytest.mark.parametrize("other", [OTHER, WHOLE], ids=["blocks", "whole"])
def test_sums_are_rounded_once(name, other):
    found = jax.jit(getattr(dnp, name))(X, other)
    expected = getattr(np, name)(VALUES, np.asarray(other, np.float64))
    # Each sum is that of mantissas of the larger exponent, with room for a carry.
    unit = np.ldexp(1.0, np.maximum(np.asarray(X.exponent), np.asarray(other.exponent)) + 1)
    assert found.blocks is None and (np.abs(exact_values(found) - expected) <= unit).all()


def test_comparison_and_single_values():
    other = np.asarray(OTHER, np.float64)
    np.testing.assert_array_equal(X < OTHER, other > VALUES)
    np.testing.assert_array_equal(X[::-1] == X, VALUES[::-1] == VALUES)
    assert X[0, 1, 2].item() == VALUES[0, 1, 2] and X.tolist() == VALUES.tolist()
    assert [len(row) for row in X] == [5, 5, 5]


def test_down_conversion_of_products():
    x = DFPArray(np.array([[2**14, 3, 2**9 + 1]], np.int16), [[[-4]]], SMALL)
    found = dnp.down_convert(x * x, 16)
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(x, np.float64) ** 2, rtol=2**-14)


def test_down_conversion_of_blocks_is_that_of_each_block():
    exponent = np.array(X.block_exponent)
    exponent[0, 1, 0] = NONFINITE_EXPONENT
    x = DFPArray(X.mantissa, exponent, SMALL)
    found = jax.jit(lambda x: dnp.down_convert(x, 7))(x)
    assert found.blocks == SMALL
    for o, r, c in np.ndindex(*exponent.shape):
        block = np.s_[o, 2 * r : 2 * r + 2, 16 * c : 16 * c + 16]
        alone = exact.down_convert(np.asarray(x.mantissa[block], np.int64), int(exponent[o, r, c]), 7)
        if (o, r, c) == (0, 1, 0):
            alone = 0, NONFINITE_EXPONENT
        np.testing.assert_array_equal(found.mantissa[block], alone[0])
        assert found.block_exponent[o, r, c] == alone[1]
    np.testing.assert_array_equal(jax.jit(lambda x: dnp.down_convert(x[1], 7))(x), np.asarray(found)[1])


def test_max_pool_selects_values_of_all_exponents():
    x = blocked((2, 4, 6, 20), seed=3)
    values = np.asarray(x, np.float64)
    found = jax.jit(lambda x: dnp.max_pool(x, (2, 2), (2, 2), [(0, 0), (1, 1)]))(x)
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = padded.reshape(2, 2, 2, 4, 2, 20).max((2, 4))
    np.testing.assert_array_equal(exact_values(found), expected)


def test_max_pool_with_nan_and_its_gradient():
    mantissa = np.array([[[3], [5], [5], [1]]], np.int16)
    exponent = np.array([[[0], [4], [4], [NONFINITE_EXPONENT]]])
    x = DFPArray(mantissa, exponent)
    np.testing.assert_array_equal(dnp.max_pool(x, (2,)), np.float32([[[80], [80], [np.nan]]]))

    def first_windows(x):
        return dnp.max_pool(x, (2,))[:, :2].dequantize().sum()

    gradient = jax.grad(first_windows, allow_int=True)(x)
    np.testing.assert_array_equal(gradient.values[0, :, 0], [0, 2, 0, 0])


@pytest.mark.parametrize(("a", "b"), [((3, 40), (40, 5)), ((20,), (20,)), ((2, 3, 300), (2, 300, 5))])
def test_matmul_is_exact_where_exponents_differ_little(a, b):
    a, b = blocked(a, exponents=(-12, -8)), blocked(b, seed=1, exponents=(-12, -8))
    found = a @ b
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)  # fewer than 53 bits
    unit = np.ldexp(1.0, np.asarray(found.exponent))
    assert (np.abs(exact_values(found) - exact) <= unit / 2).all()


def test_matmul_aligns_rows_and_columns():
    a, b = blocked((4, 64), exponents=(-60, -8)), blocked((64, 3), seed=1, exponents=(-60, -8))
    a_values, b_values = np.asarray(a, np.float64), np.asarray(b, np.float64)
    found = exact_values(a @ b)
    error = np.abs(found - a_values @ b_values)
    scale = 64 * np.abs(a_values).max(1)[:, None] * np.abs(b_values).max(0)
    assert (error <= 2.0**-22 * scale).all()
    whole = DFPArray(b.mantissa, -9)
    np.testing.assert_allclose(
        exact_values(a @ whole), a_values @ np.asarray(whole, np.float64), atol=(2.0**-22 * scale).max()
    )


def test_a_block_with_nan_makes_nan_what_depends_on_it():
    exponent = np.full(SMALL.counts((2, 20)), -9)
    exponent[1, 0, 1] = NONFINITE_EXPONENT
    x = DFPArray(np.ones((2, 20), np.int16), exponent, SMALL)
    is_nan = np.zeros((2, 20), bool)
    is_nan[1, 16:] = True
    for result in (x, x + x, x * x, dnp.relu(x)):
        np.testing.assert_array_equal(np.isnan(np.asarray(result)), is_nan)
    np.testing.assert_array_equal(np.isnan(np.asarray(x @ x.T)), [[False, True], [True, True]])


def test_gradients_through_functions():
    def f(x, y):
        return ((x * y).dequantize() + (x[1:] + y[:2]).dequantize().sum()).sum() + (
            x @ y[0].T
        ).dequantize().sum()

    def reference(x, y):
        return (x * y + (x[1:] + y[:2]).sum()).sum() + (x @ y[0].T).sum()

    found = jax.jit(jax.grad(f, argnums=(0, 1), allow_int=True))(X, OTHER)
    expected = jax.jit(jax.grad(reference, argnums=(0, 1)))(X.dequantize(), OTHER.dequantize())
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.values, other, rtol=1e-5)


@pytest.mark.parametrize("spec", [pytest.param(P("x"), marks=pytest.mark.slow), P(None, None, "x")])
def test_explicit_meshes_split_exponents_as_they_split_values(spec):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    x = blocked((2, 3, 40))
    values = jax.device_put(x.values, NamedSharding(mesh, spec))
    outer = NamedSharding(mesh, P("x") if spec == P("x") else P())
    split = DFPArray.of(values, jax.device_put(x.block_exponent, outer), SMALL)

    def f(x):
        assert jax.typeof(x.exponent).sharding == jax.typeof(x.values).sharding
        return x + x, dnp.down_convert(x, 8), dnp.max_pool(x, (2,)), jax.vmap(DFPArray.dequantize)(x)

    with jax.set_mesh(mesh):
        found = jax.jit(f)(split)
    for one, other in zip(found, jax.jit(lambda x: f(x))(x), strict=True):
        assert one.sharding.spec == P(*spec, *[None] * (3 - len(spec)))
        np.testing.assert_array_equal(one, other)
