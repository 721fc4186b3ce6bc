"""docs/explanation/numerics.md: what it says of the code, and the bits that follow from it."""

import functools
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_the_page_winograd import cut

import dfpjax
from dfpjax.numbers import Blocks
from dfpjax.numbers.contraction import algorithm, alignment, plan, running, transformed, transforms
from dfpjax.numbers.format import scaling
from dfpjax.policy import OpConfig, Policy
from dfpjax.transform import mixed_precision

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "numerics.md").read_text()
ONE_LINE = " ".join(PAGE.split())


def test_the_modules_that_it_names_exist():
    names = {path.replace("N/", "dfpjax/numbers/") for path in re.findall(r"`((?:N|dfpjax)/[\w/.]+)`", PAGE)}
    assert len(names) > 10
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_its_examples_of_blocks():
    rows = re.findall(r"^\| [a-z]+ \(([\d, ]+)\) \| ([\d, ]+) \| ([\d × ]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
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
        f"If an operand is in blocks, panels have {plan.BLOCKS_COLUMN_TILE} columns",
        f"has {plan.SEGMENTS} *segments* of {plan.SEGMENT} k",
        f"takes a length of its own, at most {plan.SEGMENT}, by",
        f"modulo {alignment.LANES}",
        f"A shift by {alignment.NEGLIGIBLE_SHIFT} or more gives zero",
        f"is more than {running.MOST_ABOVE} above the base",
        f"or by 0 if top is more than {running.MOST_BELOW} above",
        f"or by 0 if e is more than {running.MOST_BELOW} below the base",
        f"E = −{-scaling.MIN_FLOAT_EXPONENT} − (P − 2)",
        f"E = 2^{scaling.NONFINITE_EXPONENT.bit_length() - 1} − (P − 2)",
        f"of 2^{scaling.NONFINITE_THRESHOLD.bit_length() - 1} or more means NaN",
        f"if that is at most {algorithm.MOST_OF_DIRECT}, else `direct`",
        f"of k, in blocks of {plan.BLOCK}. In wgrad it is",
        f"κ are tiles, in blocks of {plan.TILES_BLOCK}",
        f"or e is more than {running.MOST_BELOW} below E",
        f"If L = 0 or s < −{transformed.LEAST_SCALE}, they are 0",
        f"less than 2^−{transformed.LEAST_SCALE}, and added",
        f"over {transformed.SAMPLE} pairs of a row (column) and a block of κ",
    ],
)
def test_its_constants_are_those_of_the_code(statement):
    assert statement in ONE_LINE


TRANSFORM = re.compile(r"^\| (\w+), of d \| (F\(.*?\)) \| (.*) ?\| (.*) \|$", re.MULTILINE)


def test_its_transforms_are_those_of_the_code():
    rows = [
        (name, (int(outputs), int(taps)), first, result)
        for name, tiles, first, result in TRANSFORM.findall(PAGE)
        for outputs, taps in re.findall(r"F\((\d), (\d)\)", tiles)
    ]
    assert {(name, tile) for name, tile, *_ in rows} == {
        *itertools.product(transforms.Transforms._fields, transforms.TRANSFORMS)
    }
    rng = np.random.default_rng(0)
    for name, tile, first, result in rows:
        values = rng.standard_normal(sum(tile) - 1).astype(np.float32)
        known = {f"d{i}": x for i, x in enumerate(values)} | {"cut": lambda x: cut(x)[0]}

        def of(text, known=known):
            return eval(text.strip().replace("·", "*").replace("−", "-"), known)

        for assignment in filter(str.strip, first.split(";")):
            variable, text = assignment.split("=")
            known[variable.strip()] = of(text)
        actual = getattr(transforms.TRANSFORMS[tile], name)([jnp.asarray(x) for x in values])
        np.testing.assert_array_equal(actual, [of(text) for text in result.split(";")], name)


def test_its_points_are_those_of_the_code():
    for count, points in transforms.POINTS.items():
        written = re.search(rf"{count} points [a-z ]*([−\d/, ]+), ∞", ONE_LINE)[1].replace("−", "-")
        assert tuple(eval(x) for x in written.split(",")) == points


@functools.cache
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


def takes_part(e):
    return (e < 2**19) & (e > -163)


def aligned(m, e, is_b, row, k):
    """The aligned mantissas [rows, ks] of a segment, and the exponent of each row, −∞ if it has none.

    row and k are the first row, and the first index in the block of k. A's rows are contiguous in k, and B's
    columns are not.
    """
    common = np.where(takes_part(e), e, -np.inf).max(axis=None if is_b else 1, keepdims=True)
    common = np.broadcast_to(common, (len(m), 1))[:, 0]
    out = np.zeros_like(m)
    for i, j in np.argwhere(takes_part(e)):
        threshold = (hashed(256 + k + j) >> 16) ^ (hashed(512 + (row + i) % 64) >> 16) if is_b else None
        out[i, j] = shift(int(m[i, j]), int(common[i] - e[i, j]), threshold)
    return out, common


def norm(m, length):
    padded = np.zeros((len(m), 32), np.int64)
    padded[:, : m.shape[1]] = m
    pairs = (padded**2).reshape(len(m), -1, 2).sum(-1) // 256 + 1
    return np.float32(pairs.reshape(len(m), -1, length // 2).sum(-1).max())


def chain_sums(a, b):
    """The chain sums of a segment of a cell, [chains, rows, columns]."""
    lengths = (32, 16, 8, 4, 2)
    chain = next(n for n in lengths if n == 2 or norm(a, n) * norm(b, n) < 2.0**46 - 2.0**30)
    return [np.float32(a[:, k : k + chain] @ b[:, k : k + chain].T) for k in range(0, a.shape[1], chain)]


def add_cell(total, base, segments, *, anew=True):
    """Add a cell to running sums float32[rows, columns], whose bases are [rows], −∞ if they are not set.
    segments are pairs of chain sums and of exponents, [rows]. Unless sums begin anew with each cell, chain
    sums are added to the running sums one after the other."""
    top = np.max([e for _, e in segments], axis=0)
    for i in np.flatnonzero((top > -np.inf) & (top > base + 60)):
        total[i] *= np.float32(2.0 ** (base[i] - top[i]) if top[i] - base[i] <= 100 else 0)
        base[i] = top[i]
    cell = np.zeros_like(total) if anew else total
    for sums, e in segments:
        there = (e > -np.inf) & (e >= base - 100)
        factor = np.float32([2.0 ** (x - y) if z else 0 for x, y, z in zip(e, base, there, strict=True)])
        for x in sums:
            cell += x * factor[:, None]
    if anew:
        total += cell


def product_by_the_page(a, ea, b, eb):
    """Σ_k a[m, k] · b[n, k] for mantissas and exponents, in one split, as the page says."""
    out = np.zeros((len(a), len(b)), np.float32)
    for m, n in itertools.product(range(0, len(a), 6), range(0, len(b), 32)):
        rows, columns = slice(m, m + 6), slice(n, n + 32)
        total = out[rows, columns]
        base = np.full(len(total), -np.inf)
        for start in range(0, a.shape[1], 256):
            segments = []
            for k in range(start, min(start + 256, a.shape[1]), 32):
                part = slice(k, k + 32)
                of_a, e_a = aligned(a[rows, part], ea[rows, part], False, m, k - start)
                of_b, e_b = aligned(b[columns, part], eb[columns, part], True, n, k - start)
                segments.append((chain_sums(of_a, of_b), e_a + e_b[0]))
            add_cell(total, base, segments)
            block = slice(start, start + 256)
            total[(ea[rows, block] >= 2**19).any(axis=1)] = np.nan
            total[:, (eb[columns, block] >= 2**19).any(axis=1)] = np.nan
        exponent = np.where(base > -np.inf, base, 0).astype(int)
        out[rows, columns] = np.ldexp(total.astype(np.float64), exponent[:, None])
    return out


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("spread", "blocks_of_k"),
    [(1, (0, 0, 0)), (6, (0, 4, 8)), (6, (0, 75, -45)), (6, (-60, 60, 0))],
    ids=["narrow", "wide", "far", "farther"],
)
def test_the_bits_of_both_backends_follow_from_the_page(backend, spread, blocks_of_k):
    """A dot product whose left operand is contiguous along k, and whose right one is not. The arguments are
    powers of two: how far rows are apart, and the scale of each block of k. One column has terms in the first
    block alone, and one in the last. They show what becomes of them where the block between raises the base.
    """
    rng = np.random.default_rng(spread)

    def operand(*shape):
        scales = np.exp2(rng.integers(-spread, spread + 1, (*shape[:-1], 1)))
        return (rng.standard_normal(shape) * scales).astype(np.float32)

    k = np.arange(600)
    x, w = operand(13, 600) * np.exp2(np.take(blocks_of_k, k // 256)).astype(np.float32), operand(600, 90)
    w[32:64] = 0  # a whole segment
    w[256:, 40] = w[:512, 41] = 0
    x[3, 300] = np.inf
    w[599, 89] = np.nan
    blocks = Blocks(columns=16)
    policy = Policy(default=OpConfig(force=True, granularity="block", blocks=blocks))
    actual = jax.jit(mixed_precision(jnp.dot, policy, backend=backend))(x, w)
    a, b = (dfpjax.quantize(z, blocks=blocks) for z in (x, w))
    mantissas = [np.asarray(z.mantissa, np.int64) for z in (a, b)]
    exponents = [np.asarray(z.exponent) for z in (a, b)]
    expected = product_by_the_page(mantissas[0], exponents[0], mantissas[1].T, exponents[1].T)
    lost = np.zeros(expected.shape, bool)
    lost[3] = lost[:, 80:] = True
    np.testing.assert_array_equal(np.isnan(expected), lost)
    np.testing.assert_array_equal(actual, expected)


def depthwise_by_the_page(a, ea, b, eb):
    """Σ_k a[i, k] · b[i, k] for mantissas and exponents, in one split, as the page says."""
    total, base = np.zeros((len(a), 1), np.float32), np.full(len(a), -np.inf)
    products = (a * b).astype(np.float32)[:, :, None]
    exponents = np.where(takes_part(ea) & takes_part(eb), ea + eb, -np.inf)
    for start in range(0, a.shape[1], 256):
        block = range(start, min(start + 256, a.shape[1]))
        add_cell(total, base, [([products[:, k]], exponents[:, k]) for k in block], anew=False)
        total[(ea[:, block] >= 2**19).any(axis=1) | (eb[:, block] >= 2**19).any(axis=1)] = np.nan
    exponent = np.where(base > -np.inf, base, 0).astype(int)
    return np.ldexp(total[:, 0].astype(np.float64), exponent).astype(np.float32)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("scales", [(0, 0), (0, 70), (0, 120), (120, 0), (-np.inf, 0)])
def test_the_bits_of_a_depthwise_convolution_follow_from_the_page(backend, scales):
    """A window of 300 taps: two blocks of k, whose weights have these scales, powers of two."""
    rng = np.random.default_rng(7)
    channels, taps, outputs = 40, 300, 21
    x = rng.standard_normal((1, taps + outputs - 1, channels, 1))
    x *= np.exp2(rng.integers(-9, 10, (1, x.shape[1], 1, 1)))
    x[0, -1, 3] = np.inf  # in a block of 4 rows and 32 columns, which the last 4 windows meet
    w = rng.standard_normal((taps, 1, channels, 1))
    w *= np.exp2(np.repeat(scales, (256, taps - 256)) - 60).reshape(-1, 1, 1, 1)
    x, w = x.astype(np.float32), w.astype(np.float32)
    blocks = Blocks(rows=4, columns=32)
    policy = Policy(default=OpConfig(force=True, granularity="block", blocks=blocks))
    conv = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1,), padding="VALID", feature_group_count=channels,
        dimension_numbers=("NHC", "HIO", "NHC"),
    )  # fmt: skip
    actual = jax.jit(mixed_precision(conv, policy, backend=backend))(x[..., 0], w[..., 0])
    of_x, of_w = (dfpjax.quantize(z, blocks=blocks) for z in (x, w))

    def of_outputs(x, w):
        """What the outputs meet of both operands, [outputs, taps]."""
        windows = np.asarray(x, np.int64)[0, np.arange(outputs)[:, None] + np.arange(taps), :, 0]
        windows = np.moveaxis(windows, 1, 2)
        return [z.reshape(-1, taps) for z in (windows, np.broadcast_to(w[:, 0, :, 0].T, windows.shape))]

    (a, b), (ea, eb) = of_outputs(of_x.mantissa, of_w.mantissa), of_outputs(of_x.exponent, of_w.exponent)
    expected = depthwise_by_the_page(a, ea, b.astype(np.int64), eb).reshape(actual.shape)
    assert np.isnan(expected[..., :32]).all(axis=-1).tolist() == [[False] * 17 + [True] * 4]
    assert not np.isnan(expected[..., 32:]).any()
    np.testing.assert_array_equal(actual, expected)
