"""docs/numerics.md: what it says of the code."""

import re
from pathlib import Path

import pytest

from dfpjax.numbers import Blocks
from dfpjax.numbers.contraction import alignment, plan, running
from dfpjax.numbers.format import scaling

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "numerics.md").read_text()
ONE_LINE = " ".join(PAGE.split())


def test_the_modules_that_it_names_exist():
    names = {path.replace("N/", "dfpjax/numbers/") for path in re.findall(r"`((?:N|dfpjax)/[\w/.]+)`", PAGE)}
    assert len(names) > 10
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_its_examples_of_blocks():
    rows = re.findall(r"^\| [a-z]+ \(([\d, ]+)\) \| ([\d, ]+) \| ([\d × ]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for shape, view, counts in rows:
        shape = tuple(map(int, shape.split(",")))
        assert Blocks().view(shape) == tuple(map(int, view.split(",")))
        assert Blocks().counts(shape) == tuple(map(int, counts.split("×")))


@pytest.mark.parametrize(
    "statement",
    [
        f"cut into tiles of {plan.ROW_TILE}, columns (n) into *panels* of {plan.COLUMN_TILE}, k into",
        f"k into blocks of {plan.BLOCK}",
        f"L = {', '.join(map(str, plan.CHAINS[:-1]))} for which",
        f"floor((x² + y²) / 2^{plan.NORM_SHIFT}) + 1",
        f"differ by more than {plan.NARROW_RANGE} within the block of k",
        f"each of its *segments* of {plan.SEGMENT}",
        f"The range counts the exponents of −{-1 - scaling.MIN_FLOAT_EXPONENT} and more alone",
        f"modulo {alignment.LANES}",
        f"A shift by {alignment.NEGLIGIBLE_SHIFT} or more gives zero",
        f"If e is more than {running.MOST_ABOVE} above the base",
        f"If e is more than {running.MOST_BELOW} below the base",
        f"E = −{-scaling.MIN_FLOAT_EXPONENT} − (P − 2)",
        f"E = 2^{scaling.NONFINITE_EXPONENT.bit_length() - 1} − (P − 2)",
        f"of 2^{scaling.NONFINITE_THRESHOLD.bit_length() - 1} or more means NaN",
    ],
)
def test_its_constants_are_those_of_the_code(statement):
    assert statement in ONE_LINE
