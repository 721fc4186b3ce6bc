"""docs/numerics.md: what it says of the code, and the bits that follow from it."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax
from dfpjax.numbers import Blocks
from dfpjax.numbers.contraction import alignment, plan, running
from dfpjax.numbers.format import scaling
from dfpjax.policy import OpConfig, Policy
from dfpjax.transform import mixed_precision

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


def hashed(x):
    x = np.uint32([x])  # an array wraps without a warning
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    return int((x ^ (x >> np.uint32(15)))[0]) * 0x846CA68B % 2**32


def shift(m, s, threshold):
    """Alignment of one mantissa by s bits: to nearest even, or dithered if there is a threshold."""
    if s >= 16:
        return 0
    if threshold is None:
        return int(np.rint(m / 2**s))
    return min(m + (threshold >> (16 - s)), 32767) >> s


def aligned(m, e, is_b):
    """Rows [rows, k] of a block of k: aligned mantissas, the exponents [rows, segments], and whether segments
    of some row have exponents of their own. A's rows are contiguous in k, B's columns are not."""
    k = m.shape[1]
    starts = range(0, k, 32)
    target = np.zeros((len(m), len(starts)), int)
    wide = False
    for group in [range(len(m))] if is_b else [[row] for row in range(len(m))]:
        counted = [x for row in group for x in e[row] if x >= -148]
        apart = bool(counted) and max(e[row].max() for row in group) - min(counted) > 4
        wide |= apart
        for i, start in enumerate(starts):
            part = slice(start, start + 32) if apart else slice(None)
            target[group, i] = max(e[row, part].max() for row in group)
    out = np.zeros_like(m)
    for row, column in np.ndindex(m.shape):
        threshold = (hashed(column + 256) >> 16) ^ (hashed(512 + row % 64) >> 16) if is_b else None
        out[row, column] = shift(
            int(m[row, column]), int(target[row, column // 32] - e[row, column]), threshold
        )
    return out, target, wide


def norm(m, length):
    padded = np.zeros((len(m), 256), np.int64)
    padded[:, : m.shape[1]] = m
    pairs = (padded**2).reshape(len(m), -1, 2).sum(-1) // 256 + 1
    return np.float32(pairs.reshape(len(m), -1, length // 2).sum(-1).max())


def product_by_the_page(a, ea, b, eb):
    """Σ_k a[m, k] · b[n, k] for mantissas and exponents, one panel and one split, as the page says."""
    out = np.zeros((len(a), len(b)), np.float32)
    base = np.zeros(len(a), int)
    for start in range(0, a.shape[1], 256):
        block = slice(start, start + 256)
        mb, tb, wide_b = aligned(b[:, block], eb[:, block], True)
        for first in range(0, len(a), 6):
            tile = slice(first, first + 6)
            ma, ta, wide_a = aligned(a[tile, block], ea[tile, block], False)
            chain = next(n for n in plan.CHAINS if n == 2 or norm(ma, n) * norm(mb, n) < 2.0**46 - 2.0**30)
            wide = wide_a or wide_b
            chain = min(chain, 32) if wide else chain
            step = 32 if wide else 256
            for segment in range(0, ma.shape[1], step):
                for i, row in enumerate(range(first, first + len(ma))):
                    term = np.zeros(len(b), np.float32)
                    for k in range(segment, min(segment + step, ma.shape[1]), chain):
                        part = slice(k, min(k + chain, segment + step))
                        term += np.float32(mb[:, part].astype(np.int64) @ ma[i, part])
                    e = int(ta[i, segment // 32] + tb[0, segment // 32])
                    if start == segment == 0:
                        base[row] = e
                    assert -100 <= e - base[row] <= 60
                    out[row] += term * np.float32(2.0) ** (e - base[row])
    return np.ldexp(out, base[:, None])


@pytest.mark.parametrize("spread", [1, 6], ids=["narrow", "wide"])
def test_the_kernels_bits_follow_from_the_page(spread):
    """A dot product whose left operand is contiguous along k, and whose right one is not."""
    rng = np.random.default_rng(spread)

    def operand(*shape):
        scales = np.exp2(rng.integers(-spread, spread + 1, (*shape[:-1], 1)))
        return (rng.standard_normal(shape) * scales).astype(np.float32)

    x, w = operand(13, 300) * np.exp2(np.arange(300) // 100 * spread).astype(np.float32), operand(300, 40)
    policy = Policy(default=OpConfig(force=True, granularity="block"))
    actual = jax.jit(mixed_precision(jnp.dot, policy))(x, w)
    a, b = (dfpjax.quantize(z, blocks=Blocks()) for z in (x, w))
    mantissas = [np.asarray(z.mantissa, np.int64) for z in (a, b)]
    exponents = [np.asarray(z.exponent) for z in (a, b)]
    expected = product_by_the_page(mantissas[0], exponents[0], mantissas[1].T, exponents[1].T)
    np.testing.assert_array_equal(actual, expected)
