import exact
import numpy as np
import oracle
import pytest
from tensors import assert_tensor, make

import dfpjax.numpy as dnp
from dfpjax import DFP32Array, DFPArray


def assert_matmul(a, b, rounding="nearest", ea=-9, eb=4):
    actual = dnp.matmul(make(DFPArray, a, ea), make(DFPArray, b, eb), rounding=rounding)
    assert isinstance(actual, DFP32Array)
    assert_tensor(actual, *exact.down_convert(a.astype(np.int64) @ b.astype(np.int64), ea + eb, 32, rounding))


LENGTHS = (0, 1, 3, 255, 256, 257, 1000)


@pytest.mark.parametrize(
    ("data", "k"), [(data, k) for data in oracle.DATA for k in LENGTHS if (data, k) != ("one_outlier", 0)]
)
def test_matmul_is_exact_within_one_rounding(data, k):
    rng = np.random.default_rng(k)
    shape_a, shape_b = (3, k), (k, 5)
    for rounding in exact.ROUNDINGS:
        assert_matmul(oracle.DATA[data](rng, shape_a), oracle.DATA[data](rng, shape_b), rounding)


@pytest.mark.parametrize("sign", [1, -1])
def test_matmul_of_100_000_full_scale_products(sign):
    a = np.full((2, 100_000), 32767, np.int16)
    assert_matmul(a, sign * a.T)
    assert_matmul(a[0], sign * a[0])


@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [((4,), (4,)), ((3, 4), (4,)), ((4,), (4, 2)), ((5, 3, 4), (4, 2)), ((5, 1, 3, 4), (2, 4, 2)),
     ((4,), (5, 4, 2)), ((0, 4), (4, 2)), ((3, 0), (0, 2))],
)  # fmt: skip
def test_matmul_shapes(shape_a, shape_b):
    rng = np.random.default_rng(0)
    assert_matmul(oracle.gaussian(rng, shape_a), oracle.gaussian(rng, shape_b))


def test_matmul_with_exponents_of_rows_and_columns():
    rng = np.random.default_rng(0)
    a, b = oracle.full_scale(rng, (3, 300)), oracle.gaussian(rng, (300, 2))
    ea, eb = np.array([[-3], [0], [9]]), np.array([-20, 5])
    actual = make(DFPArray, a, ea) @ make(DFPArray, b, eb)
    assert actual.exponent.shape == (3, 2)
    for row in range(3):
        for column in range(2):
            total = a[row].astype(np.int64) @ b[:, column]
            expected = exact.down_convert(total, int(ea[row, 0] + eb[column]), 32)
            assert_tensor(actual[row, column], *expected)
