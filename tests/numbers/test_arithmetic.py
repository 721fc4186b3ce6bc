import operator

import exact
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import BITS, FULL, KINDS, assert_tensor, make, mantissas

import dfpjax
import dfpjax.numpy as dnp
from dfpjax import DFP32Array, DFPArray
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT


def nan_tensor(kind=DFPArray, shape=(6,)):
    return make(kind, np.zeros(shape), NONFINITE_EXPONENT)


# --- element by element ---------------------------------------------------------------------------


@settings(deadline=None)
@given(mantissas(DFPArray), mantissas(DFPArray), st.integers(-163, 112), st.integers(-163, 112))
def test_multiply_is_exact(ma, mb, ea, eb):
    product = make(DFPArray, ma, ea) * make(DFPArray, mb, eb)
    assert isinstance(product, DFP32Array)
    assert_tensor(product, np.array(ma, np.int64) * np.array(mb), ea + eb)


def test_multiply_full_scale():
    m = np.array([32767, -32767, 32767, -32767])
    assert_tensor(make(DFPArray, m, 3) * make(DFPArray, m[::-1], -5), m * m[::-1], -2)


@pytest.mark.parametrize("rounding", exact.ROUNDINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_add(kind, rounding):
    @settings(deadline=None, max_examples=75)
    @given(mantissas(kind), mantissas(kind), st.integers(-163, 100), st.integers(0, 300), st.booleans())
    def check(ma, mb, ea, gap, swap):
        eb = ea - gap
        operands = [(ma, ea), (mb, eb)]
        (ma, ea), (mb, eb) = operands[::-1] if swap else operands
        total = dnp.add(make(kind, ma, ea), make(kind, mb, eb), rounding=rounding)
        assert type(total) is kind
        assert_tensor(total, *exact.add(ma, ea, mb, eb, BITS[kind], rounding))

    check()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_carry_does_not_wrap(kind, sign):
    full = sign * FULL[kind]
    x = make(kind, [full, sign], 0)
    assert_tensor(x + x, [full, sign], 1)
    assert_tensor(x - -x, [full, sign], 1)
    assert_tensor(x - x, [0, 0], 0)


@pytest.mark.parametrize("gap", range(301))
def test_every_exponent_gap(gap):
    ma, mb = [32767, -32767, 1, -1, 0], [32767, -32767, -32767, 16384, -1]
    total = make(DFPArray, ma, 0) + make(DFPArray, mb, -gap)
    assert_tensor(total, *exact.add(ma, 0, mb, -gap, 16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exponent", [-326, -163, 0, 200])
def test_zero_never_dominates(kind, exponent):
    small = make(kind, [3, -FULL[kind]], -400)
    zero = make(kind, [0, 0], exponent)
    for total in (small + zero, zero + small, small - zero):
        assert_tensor(total, small.mantissa, -400)
    assert_tensor(zero + zero, [0, 0], -149 - (BITS[kind] - 2))


def test_a_product_with_zero_does_not_dominate():
    huge, zero, tiny = (dfpjax.quantize(np.full(3, x, np.float32)) for x in (1e38, 0, 1e-20))
    np.testing.assert_array_equal(np.asarray(huge * zero + tiny * tiny), np.asarray(tiny * tiny))


def test_a_dfp16_operand_is_brought_to_dfp32_exactly():
    a = make(DFPArray, [16384, -32767, 1], -14)
    c = make(DFP32Array, [2**28 + 1, 5, -(2**30)], -28)  # more bits than DFP-16 has
    expected = exact.add([m * 2**16 for m in (16384, -32767, 1)], -30, [2**28 + 1, 5, -(2**30)], -28, 32)
    for total in (a + c, c + a):
        assert isinstance(total, DFP32Array)
        assert_tensor(total, *expected)


def test_fma_accumulates_without_shifts():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3000, 3001, (50, 4)) for _ in range(2))
    total = make(DFP32Array, np.zeros(4), 0)
    for row_a, row_b in zip(a, b, strict=True):
        total = dnp.fma(make(DFPArray, row_a, -10), make(DFPArray, row_b, -7), total)
    assert_tensor(total, (a * b).sum(0), -17)


@settings(deadline=None)
@given(mantissas(DFPArray), mantissas(DFPArray), mantissas(DFP32Array), st.integers(-60, 60))
def test_fma(ma, mb, mc, ec):
    actual = dnp.fma(make(DFPArray, ma, 2), make(DFPArray, mb, -5), make(DFP32Array, mc, ec))
    assert_tensor(actual, *exact.add(np.array(ma, object) * np.array(mb, object), -3, mc, ec, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_negative_and_absolute(kind):
    full = FULL[kind]
    x = make(kind, [full, -full, 0, -3], 5)
    assert type(-x) is type(abs(x)) is kind
    assert_tensor(-x, [-full, full, 0, 3], 5)
    assert_tensor(abs(x), [full, full, 0, 3], 5)


# --- down-conversion ------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", exact.ROUNDINGS)
@settings(deadline=None, max_examples=75)
@given(mantissas(DFP32Array), st.sampled_from([2, 3, 8, 15, 16]), st.integers(-300, 300))
def test_down_convert(rounding, m, bits, exponent):
    actual = dnp.down_convert(make(DFP32Array, m, exponent), bits, rounding)
    assert isinstance(actual, DFPArray)
    assert_tensor(actual, *exact.down_convert(m, exponent, bits, rounding))


@pytest.mark.parametrize("rounding", exact.ROUNDINGS)
@pytest.mark.parametrize("sign", [1, -1])
def test_down_convert_just_below_a_power_of_two_is_clamped(sign, rounding):
    actual = dnp.down_convert(make(DFP32Array, [sign * (2**31 - 1), 0], 0), rounding=rounding)
    assert_tensor(actual, [sign * 32767, 0], 16)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("rounding", "expected"),
    [("nearest", [0, 0, 0, 1, 2, 2]), ("biased", [0, 0, 1, 1, 2, 3]), ("truncate", [0, 0, 0, 0, 1, 2])],
)
def test_rounding_acts_on_magnitudes(rounding, expected, sign):
    # Eighths, and a largest mantissa that makes R = 3.
    m = sign * np.array([0, 1, 2, 5, 12, 18, 2**17])
    actual = dnp.down_convert(make(DFP32Array, m, 0), rounding=rounding)
    assert_tensor(actual, sign * np.array([*expected, 2**14]), 3)


@pytest.mark.parametrize("sign", [1, -1])
def test_stochastic_is_unbiased_and_reproducible(sign):
    count = 100_000
    x = make(DFP32Array, np.append(np.full(count, sign * 83), 2**20), 0)  # R = 6: 83/64 ≈ 1.297

    def rounded(seed):
        return dnp.down_convert(x, rounding="stochastic", seed=seed).mantissa

    values = np.asarray(rounded(1), np.int64)[:-1]
    fraction = 83 / 64 - 1
    assert set(np.unique(values)) == {sign, 2 * sign}
    assert abs(sign * values.mean() - 83 / 64) < 5 * np.sqrt(fraction * (1 - fraction) / count)
    np.testing.assert_array_equal(rounded(1), rounded(1))
    assert np.any(np.asarray(rounded(1)) != np.asarray(rounded(2)))


def test_quantized_numbers_are_brought_to_fewer_bits():
    x = dfpjax.quantize(np.float32([1.0, -0.3, 0.7]))
    np.testing.assert_array_equal(
        np.asarray(dnp.down_convert(x, 8)), np.asarray(dfpjax.quantize(np.asarray(x), 8))
    )


# --- not finite, and out of range -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", [operator.add, operator.sub, dnp.maximum])
def test_nonfinite_surfaces_in_sums(kind, function):
    x, nan = make(kind, [1, 2, 3, 4, 5, FULL[kind]], 40), nan_tensor(kind)
    for result in (function(x, nan), function(nan, x), function(nan, nan)):
        assert np.isnan(np.asarray(result)).all()


def test_nonfinite_surfaces_in_products():
    x, zero, nan = make(DFPArray, np.ones(6), -100), make(DFPArray, np.zeros(6), -163), nan_tensor()
    results = [x * nan, nan * zero, nan * nan, x @ nan, nan @ nan, zero @ nan, dnp.fma(nan, x, x)]
    results += [dnp.fma(x, x, nan), -nan, abs(nan), dnp.down_convert(nan * x), nan * x + x * x]
    assert all(np.isnan(np.asarray(result)).all() for result in results)


def test_nonfinite_stays_so_through_many_products():
    x = nan_tensor()
    for _ in range(40):
        x = dnp.down_convert(x * x)
    assert np.isnan(x.dequantize()).all()


@pytest.mark.parametrize(("start", "end"), [(1e30, np.nan), (1e-30, 0)])
def test_exponents_do_not_wrap(start, end):
    x = dfpjax.quantize(np.full(3, start, np.float32))
    for _ in range(40):
        x = dnp.down_convert(x * x)
    np.testing.assert_array_equal(x.dequantize(), np.full(3, end))


def test_one_slice_that_is_not_finite_leaves_the_others():
    x = make(DFPArray, [[1, 2], [0, 4]], [[0], [NONFINITE_EXPONENT]])
    for result in (x + x, x * x, x @ make(DFPArray, np.eye(2), 0)):
        assert (np.isnan(np.asarray(result)) == [[False, False], [True, True]]).all()


# --- exponents per slice --------------------------------------------------------------------------


@pytest.mark.parametrize("function", [operator.add, operator.sub, operator.mul])
@pytest.mark.parametrize(
    ("ea", "eb"),
    [(np.array([[-3, 5, 0, 9]]), 2), (np.array([-3, 5, 0, 9]), np.array([[4], [-20], [1]])),
     (np.arange(3)[:, None], np.array([[1], [-20], [30]]))],
)  # fmt: skip
def test_slices_are_tensors_of_their_own(function, ea, eb):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-32767, 32768, (3, 4)).astype(np.int16) for _ in range(2))
    a[:, 1] = 0
    result = function(make(DFPArray, a, ea), make(DFPArray, b, eb))
    shared = np.broadcast_shapes(np.shape(ea), np.shape(eb))
    rows = range(3) if len(shared) == 2 and shared[0] == 3 else [slice(None)]
    columns = range(4) if shared[-1] == 4 else [slice(None)]
    for row in rows:
        for column in columns:
            one = (row, column)
            ea_one, eb_one = (
                np.broadcast_to(e, (3, 4))[one].flat[0] if np.size(e) > 1 else e for e in (ea, eb)
            )
            if function is operator.mul:
                expected = a[one].astype(np.int64) * b[one], ea_one + eb_one
            else:
                expected = exact.add(a[one], ea_one, function(0, b[one].astype(np.int64)), eb_one, 16)
            np.testing.assert_array_equal(np.asarray(result.mantissa)[one], expected[0])
            assert np.broadcast_to(result.exponent, (3, 4))[one].flat[0] == expected[1]


def test_down_convert_keeps_exponents_per_slice():
    m = np.array([[2**30, 5], [77777, -3], [0, 0]])
    actual = dnp.down_convert(make(DFP32Array, m, [[0], [1], [2]]))
    for row in range(3):
        assert_tensor(actual[row], *[np.atleast_1d(e) for e in exact.down_convert(m[row], row, 16)])


@pytest.mark.parametrize(("shape_a", "shape_b"), [((), ()), ((0,), (0,)), ((), (3,)), ((2, 1), (3,))])
def test_empty_scalar_and_broadcast_shapes(shape_a, shape_b):
    a, b = make(DFPArray, np.full(shape_a, 3), 0), make(DFPArray, np.full(shape_b, -5), -1)
    shape = np.broadcast_shapes(shape_a, shape_b)
    assert_tensor(a * b, np.full(shape, -15), -1)
    assert (a + b).shape == (a - b).shape == shape
    assert_tensor(dnp.down_convert(a * b), np.full(shape, -15), -1)


# --- errors ---------------------------------------------------------------------------------------

Q = dfpjax.quantize(np.ones(3))


@pytest.mark.parametrize("symbol", ["+", "-", "*", "@"])
@pytest.mark.parametrize("other", [np.ones(3), jnp.ones(3), 2.0, 1, [1.0, 2.0, 3.0]])
def test_floats_are_refused(symbol, other):
    function = {"+": operator.add, "-": operator.sub, "*": operator.mul, "@": operator.matmul}[symbol]
    for operands in ((Q, other), (other, Q)):
        with pytest.raises(TypeError, match=r"must be a DFPArray.* quantize it first: dfpjax\.quantize\(x\)"):
            function(*operands)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: (Q * Q) * Q, TypeError, r"multiply: a must be a DFPArray, got a DFP32Array.*down_convert"),
        (lambda: Q @ (Q * Q), TypeError, "matmul: b must be a DFPArray, got a DFP32Array"),
        (lambda: dnp.down_convert(np.ones(3)), TypeError, "down_convert: x must be .* got dtype float64"),
        (lambda: dnp.down_convert(Q * Q, 17), ValueError, "bits must be an integer from 2 to 16, got 17"),
        (lambda: dnp.add(Q, Q, rounding="up"), ValueError, "one of nearest, stochastic, biased, truncate"),
        (lambda: dnp.add(Q, Q, rounding="stochastic"), ValueError, "add: .* needs a seed"),
        (lambda: dnp.matmul(Q, Q, seed=1), ValueError, 'matmul: seed is for rounding="stochastic"'),
        (lambda: dnp.fma(Q, Q, 1.0), TypeError, "fma: c must be a DFPArray or DFP32Array, got float"),
        (lambda: Q @ dfpjax.quantize(np.ones(4)), ValueError, "matmul: contracted extents differ"),
        (lambda: Q @ dfpjax.quantize(np.float32(1)), ValueError, "matmul: both operands need at least one"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
