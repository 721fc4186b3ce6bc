"""The benchmark of block sizes measures what it claims to measure."""

import numpy as np
import oracle
import pytest

from benchmarks import block_sizes
from benchmarks.common.operations import PASSES
from benchmarks.common.shapes import Conv, Dot
from benchmarks.fidelity.precisions import exact_passes
from benchmarks.fidelity.tensors import random_operands
from dfpjax.numbers.format.blocks import Blocks

SIZES = {"1×32": Blocks(rows=1, columns=32), "16×64": Blocks(rows=16, columns=64), "tensor": None}


def test_storage_rounds_each_block_by_itself():
    x = np.random.default_rng(0).standard_t(2, (3, 9, 40)).astype(np.float32)
    expected = np.zeros(x.shape)
    for i, j, k in np.ndindex(3, 2, 2):
        block = np.s_[i, 8 * j : 8 * j + 8, 32 * k : 32 * k + 32]
        mantissa, exponent = oracle.quantize(x[block])
        expected[block] = np.ldexp(mantissa.astype(np.float64), exponent)
    np.testing.assert_array_equal(block_sizes.stored(x, Blocks(rows=8)), expected)
    mantissa, exponent = oracle.quantize(x)
    np.testing.assert_array_equal(block_sizes.stored(x, None), np.ldexp(mantissa.astype(float), exponent))


@pytest.mark.parametrize("case", (Conv(1, 4, 6, 3, 8, 2), Dot(m=5, k=40, n=9)), ids=lambda case: case.name)
def test_the_kernels_that_are_timed_compute_the_passes(case, monkeypatch):
    monkeypatch.setattr(block_sizes, "SIZES", SIZES)
    operands = random_operands("normal", case)
    truth = exact_passes(case, operands.x, operands.w, operands.dy)
    for which, contenders in block_sizes.kernels(operands).items():
        for size in SIZES:
            result = np.asarray(contenders[size]()).ravel()
            # A kernel may compute the transpose.
            norms = np.sort(np.abs(result)), np.sort(np.abs(truth[which]).ravel())
            assert oracle.relative_error(*norms) < 1e-3


def test_blocks_are_more_accurate_than_tensors(monkeypatch):
    sizes = {size: SIZES[size] for size in ("1×32", "tensor")}
    monkeypatch.setattr(block_sizes, "SIZES", sizes)
    operands = random_operands("log-normal", Dot(m=64, k=256, n=48))
    rows = block_sizes.measure(operands, budget=0.001, rounds=1)
    assert [(row.size, row.which) for row in rows] == [(s, which) for s in sizes for which in PASSES]
    for which in PASSES:
        blocks, tensor = (row for row in rows if row.which == which)
        assert blocks.storage > tensor.storage and blocks.computed > tensor.computed
        assert tensor.computed == pytest.approx(tensor.storage, rel=1e-3)
        assert blocks.seconds > 0 and tensor.seconds > 0
    table = block_sizes.tables(rows)
    assert table.count("| 1×32 |") == 3
    assert "| tensor | 0.00% | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 |" in table
