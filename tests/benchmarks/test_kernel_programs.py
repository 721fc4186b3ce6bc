"""The programs beside `benchmarks.kernels`: chains of one length, and operands that stay."""

import numpy as np
import oracle
import pytest

from benchmarks.common.operations import normal
from benchmarks.common.shapes import Conv, Dot
from benchmarks.kernels import chains, kept
from dfpjax import _native

CASE = Dot(m=12, k=64, n=64)


def test_every_length_computes_the_product():
    truth = np.asarray(normal(CASE.lhs), np.float64) @ np.asarray(normal(CASE.rhs), np.float64)
    found = chains.contenders(CASE)
    assert list(found) == [(name, length) for name, lengths in chains.LENGTHS.items() for length in lengths]
    for run in found.values():
        product, saturated = run()
        assert oracle.relative_error(np.asarray(product), truth) < 5e-2  # mantissas of 8 bits
        assert int(saturated[0]) == 0


def test_the_table_has_a_share_for_every_length():
    rows = chains.measure(CASE, budget=0.001, rounds=1)
    assert all(row["share"] > 0 for row in rows)
    first, _, *lines = chains.table(rows).splitlines()
    assert first == "| chain | 2 | 4 | 8 | 16 | 32 | 64 | 128 | 256 |"
    assert [line.split(" | ")[0] for line in lines] == ["| one exponent", "| blocks"]
    assert lines[1].endswith("|  |  |  |")


@pytest.mark.parametrize(
    "case", [Dot(m=8, k=256, n=256), Conv(1, 128, 128, 1, 4)], ids=lambda case: case.name
)
def test_one_call_keeps_its_operand_and_the_other_packs(case):
    runs = kept.contenders(case)
    before = _native.kept_operand_bytes()
    packed = [np.asarray(runs["packed"]()) for _ in range(16)]
    assert _native.kept_operand_bytes() == before
    same = [np.asarray(runs["kept"]()) for _ in range(10)]
    assert _native.kept_operand_bytes() > before
    for result in same:
        np.testing.assert_array_equal(result, packed[0])
    assert np.any(packed[0] != packed[1])


def test_the_table_of_kept_operands():
    rows = [{"case": "dot 1×2×3", "packed": 3e-3, "kept": 2e-3}]
    assert kept.table(rows).splitlines()[-1] == "| dot 1×2×3 | 3 | 2 | 1.50 |"
