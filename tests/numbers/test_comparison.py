"""Comparison of tensors in dynamic fixed point with one another, with arrays and with numbers."""

import operator
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax
import dfpjax.numpy as dnp
from dfpjax import DFP32Array, DFPArray

OPERATORS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
NUMBERS = np.float32([0, -0.0, 1, -1, 1.5, 2, 2**-149, -(2**-149), 3e38, np.inf, -np.inf, np.nan, 0.1])


def exact(x) -> list:
    """Fractions, or a float for what is not finite."""
    if isinstance(x, DFPArray | DFP32Array):
        mantissa, exponent = np.broadcast_arrays(x.mantissa, x.exponent)
        return [
            float("nan") if e >= 1 << 19 else Fraction(int(m)) * Fraction(2) ** int(e)
            for m, e in zip(mantissa.ravel(), exponent.ravel(), strict=True)
        ]
    values = np.asarray(x)
    values = values if values.dtype.kind in "iu" else values.astype(np.float64)
    return [Fraction(v) if np.isfinite(v) else v for v in values.ravel().tolist()]


M = np.int16([0, 1, -1, 3, 16384, 32767, -32767, 2, 0, 1, 26214, -2, 5])
TENSORS = [
    DFPArray(M, -14),
    DFPArray(M, np.int32([0, -149, -149, 1, 113, 5, 2, 900, -900, 1 << 20, -18, 0, -1])),
    DFP32Array(np.int32(M) * 65535, -30),
]
OTHERS = [
    *TENSORS[1:],
    NUMBERS,
    np.int32([0, 1, -1, 3, 16384, 2**31 - 1, -(2**31), 2, 7, 8, 9, -2, 5]),
    np.uint32(NUMBERS.size * [2**32 - 1]),
    jnp.asarray(NUMBERS, jnp.bfloat16),
    1.0,
    2,
]


@pytest.mark.parametrize(
    ("a", "others"), [(TENSORS[1], OTHERS), (TENSORS[0], [NUMBERS]), (TENSORS[2], [NUMBERS])]
)
def test_every_comparison_is_exact(a, others):
    for b in others:
        values = exact(b)
        pairs = list(zip(exact(a), values * (a.size // len(values)), strict=True))
        for compare in OPERATORS:
            expected = [compare(x, y) for x, y in pairs]
            np.testing.assert_array_equal(compare(a, b), expected, err_msg=f"{compare.__name__} {b}")


@pytest.mark.parametrize("compare", OPERATORS)
def test_from_the_other_side(compare):
    q = dfpjax.quantize(np.float32([1, 2, 3]))
    for other in (np.float32([2, 2, 2]), jnp.float32([2, 2, 2]), np.float32(2), 2):
        np.testing.assert_array_equal(compare(other, q), compare(np.full(3, 2), [1, 2, 3]))


def test_with_64_bits():
    with jax.enable_x64(True):
        a = DFPArray(np.int16([1, 1, -3, 5]), np.int32([-1000, 62, 0, -400]))
        for b in (np.array([2.0**-1000, 2.0**62 + 2**11, -3, 1e300]), np.array([0, 2**62 + 1, -3, -(2**63)])):
            for compare in OPERATORS:
                expected = [compare(x, y) for x, y in zip(exact(a), exact(b), strict=True)]
                np.testing.assert_array_equal(compare(a, b), expected)


def test_broadcasts_and_transforms():
    a = dfpjax.quantize(np.float32([[1, 2, 3], [4, 5, 6]]), axis=0)
    np.testing.assert_array_equal(a > a[1], np.array([[1, 2, 3], [4, 5, 6]]) > [4, 5, 6])
    np.testing.assert_array_equal(jax.jit(lambda a: a == 2)(a), [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(jax.vmap(lambda a, b: a >= b)(a, jnp.array([2, 4])), [[0, 1, 1], [1, 1, 1]])
    gradient = jax.grad(lambda x: jnp.where(dfpjax.quantize(x) > 1, x, 0).sum())(jnp.float32([1, 2]))
    np.testing.assert_array_equal(gradient, [0, 1])


def test_other_types():
    q = dfpjax.quantize(np.float32([1, 2]))
    assert (q == None) is False and (q != "a") is True  # noqa: E711
    with pytest.raises(TypeError, match="not supported between"):
        q < "a"  # noqa: B015
    with pytest.raises(TypeError, match="equal: b must be a DFPArray, an array or a number, got list"):
        q == [1, 2]  # noqa: B015
    with pytest.raises(TypeError, match="less: b must be an array of real numbers, got dtype complex64"):
        q < 1j  # noqa: B015
    with pytest.raises(
        ValueError, match=r"equal: a and b must have shapes that broadcast, got \(2,\) and \(3,\)"
    ):
        q == np.ones(3)  # noqa: B015
    with pytest.raises(TypeError, match="unhashable"):
        hash(q)


def test_truth_and_numbers():
    one, zero, nan = (dfpjax.quantize(np.float32(x)) for x in (1.5, 0, np.nan))
    assert bool(one) and not zero and bool(nan)
    assert float(one) == 1.5 and int(one) == 1 and one.item() == 1.5
    assert dfpjax.quantize(np.float32([[1, 2]])).tolist() == [[1.0, 2.0]]
    q = dfpjax.quantize(np.float32([1, 2]))
    assert 2 in q and 3 not in q
    for read in (bool, float, int, DFPArray.item):
        with pytest.raises(ValueError, match=r"DFPArray of shape \(2,\) has no single (truth )?value"):
            read(q)
    with pytest.raises(TypeError, match="iteration over a DFPArray without axes"):
        iter(one)
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda q: bool(q))(one)


def test_maps_over_an_axis_with_the_exponent_split():
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    q = dfpjax.quantize(x)
    for axis in (0, 1):
        split = dnp.split_exponent(q, axis)
        assert split.exponent.shape == tuple(2 + a if a == axis else 1 for a in range(2))
        mapped = jax.vmap(lambda row: row.dequantize() * 2, in_axes=axis, out_axes=axis)(split)
        np.testing.assert_array_equal(mapped, 2 * x)
    _, rows = jax.lax.scan(lambda carry, row: (carry, row.dequantize()), 0, dnp.split_exponent(q))
    np.testing.assert_array_equal(rows, x)
