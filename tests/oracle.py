"""Independent references for the tests, in NumPy and exact Python numbers, without dfpjax."""

import functools
import itertools
from fractions import Fraction

import jax
import numpy as np


def quantize(x, bits=16):
    """Quantization by the definition, rounded to nearest even. Exact rationals give the exponent.

    Returns (mantissas, exponent), with int64 mantissas.
    """
    x = np.asarray(x, np.float32)
    largest = Fraction(float(np.abs(x).max(initial=0)))
    if largest == 0:
        return np.zeros(x.shape, np.int64), -149 - (bits - 2)
    log2 = largest.numerator.bit_length() - largest.denominator.bit_length()
    log2 -= largest < Fraction(2) ** log2
    exponent = log2 - (bits - 2)
    limit = 2 ** (bits - 1) - 1
    scaled = np.ldexp(x.astype(np.float64), -exponent)  # exact in float64
    return np.clip(np.rint(scaled), -limit, limit).astype(np.int64), exponent


def relative_error(actual, expected) -> float:
    """The largest relative error, in norm, over the leaves of two pytrees."""
    errors = []
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape, (a.shape, e.shape)
        errors.append(np.linalg.norm(a - e) / max(np.linalg.norm(e), 1e-30))
    return max(errors)


def full_scale(rng, shape):
    """Only mantissas of ±32767."""
    return np.where(rng.random(shape) < 0.5, -32767, 32767).astype(np.int16)


def one_outlier(rng, shape):
    """Small mantissas and one full-scale mantissa."""
    x = rng.integers(-40, 41, shape).astype(np.int16)
    x.reshape(-1)[rng.integers(x.size)] = 32767
    return x


def gaussian(rng, shape):
    """Mantissas of a quantized normally distributed tensor: full scale is about 4.7 standard deviations."""
    return np.clip(np.rint(rng.standard_normal(shape) * 7000), -32767, 32767).astype(np.int16)


def small(rng, shape):
    """Mantissas so small that every chain length is certified."""
    return rng.integers(-300, 301, shape).astype(np.int16)


DATA = {f.__name__: f for f in (full_scale, one_outlier, gaussian, small)}


def same_sign(rng, shape):
    """All mantissas are 32767, so sums grow as fast as possible."""
    return np.full(shape, 32767, np.int16)


def alternating(rng, shape):
    """Full-scale mantissas whose signs alternate along every axis."""
    return (32767 * (1 - 2 * (np.indices(shape).sum(axis=0) % 2))).astype(np.int16)


def _slice_outlier(rng, shape, axes):
    x = rng.integers(-30, 31, shape).astype(np.int16)
    x[tuple(rng.integers(n) if axis in axes else slice(None) for axis, n in enumerate(shape))] = -32767
    return x


def row_outlier(rng, shape):
    """Small mantissas, except at one index of the first axis: a row, or an image."""
    return _slice_outlier(rng, shape, {0})


def channel_outlier(rng, shape):
    """Small mantissas, except at one index of the last axis: a column, or a channel."""
    return _slice_outlier(rng, shape, {len(shape) - 1})


def pixel_outlier(rng, shape):
    """Small mantissas, except at one index of all axes but the last: a pixel of an image."""
    return _slice_outlier(rng, shape, set(range(len(shape) - 1)))


ADVERSARIAL = {
    f.__name__: f
    for f in (full_scale, one_outlier, same_sign, alternating, row_outlier, channel_outlier, pixel_outlier)
}


def products(contraction, a, b):
    """The products that each output of a contraction sums, in the order of A's axes.

    Yields (positions, int64 or float64[outputs, k]) for each group of outputs that meet the same taps.

    The output's index i and the tap r determine a window's coordinate h in A: lhs_coef · h = offset −
    out_coef · i − rhs_coef · r. A tap without an integer h does not meet the output. h outside A is padding.
    """
    c = contraction
    size = dict(zip((*c.lhs, *c.rhs, *c.out), (*a.shape, *b.shape, *c.out_shape), strict=True))
    by_tap = {w.lhs: w for w in c.windows}
    phases = []
    for w in c.windows:
        groups = {}
        for i in range(size[w.out]):
            rest = w.offset - w.out_coef * i
            taps = tuple(r for r in range(size[w.rhs]) if (rest - w.rhs_coef * r) % w.lhs_coef == 0)
            groups.setdefault(taps, []).append(i)
        phases.append([(w, np.array(outs), np.array(taps, int)) for taps, outs in groups.items()])
    for phase in itertools.product(*phases):
        extents = {label: np.arange(size[label]) for label in (*c.lhs, *c.out) if label not in by_tap}
        for w, outs, taps in phase:
            extents[w.out], extents[w.lhs] = outs, taps  # a window's k is its tap
        free = list(c.out)
        contracted = [label for label in c.lhs if label not in c.out]
        rows = np.meshgrid(*(extents[label] for label in free), indexing="ij")
        columns = np.meshgrid(*(extents[label] for label in contracted), indexing="ij")
        at = {label: x.reshape(-1, 1) for label, x in zip(free, rows, strict=True)}
        at |= {label: x.reshape(1, -1) for label, x in zip(contracted, columns, strict=True)}
        inside = np.ones((rows[0].size if rows else 1, columns[0].size if columns else 1), bool)
        for w, *_ in phase:
            at[w.rhs] = at[w.lhs]
            h = (w.offset - w.out_coef * at[w.out] - w.rhs_coef * at[w.rhs]) // w.lhs_coef
            inside &= (h >= 0) & (h < size[w.lhs])
            at[w.lhs] = np.clip(h, 0, size[w.lhs] - 1)
        x = a[tuple(at[label] for label in c.lhs)].astype(np.result_type(a, np.int64)) * inside
        y = b[tuple(at[label] for label in c.rhs)].astype(np.result_type(b, np.int64))
        yield tuple(at[label].ravel() for label in c.out), x * y


def add_saturated_chains(products, length, split=2**62):
    """Sum chains of products, saturated to int32, in float32: those of a block, then the blocks of a split.

    Arguments:
        products: int64[outputs, k].
        length: products in a chain.
        split: products in a split, a multiple of a block's 256. The sums of the splits are added at the end.

    Returns:
        float32[outputs], and the number of saturated chains.
    """
    k = products.shape[1]
    padded = np.pad(products, ((0, 0), (0, -k % length)))
    exact = padded.reshape(len(products), -1, length).sum(axis=2)
    sums = np.clip(exact, -(2**31), 2**31 - 1)

    def total(parts):
        return functools.reduce(np.add, parts, np.zeros(len(products), np.float32))

    chains = list(sums.T.astype(np.float32))
    in_block, in_split = 256 // length, split // 256
    blocks = [total(chains[i : i + in_block]) for i in range(0, len(chains), in_block)]
    splits = [total(blocks[i : i + in_split]) for i in range(0, len(blocks), in_split)]
    return total(splits), int((sums != exact).sum())


def chain_shares(a, b):
    """The shares of a matrix product's multiply-accumulates in certified chains of length 256, 128, …, 2.

    Arguments:
        a, b: integer matrices [m, k] and [k, n]. A tile has 6 rows of a and 64 columns of b.
    """

    def norm(x, length):
        padded = np.pad(x, ((0, 0), (0, 256 - x.shape[1])))
        pairs = (padded.astype(np.int64) ** 2).reshape(len(x), -1, 2).sum(axis=2) // 256 + 1
        return int(pairs.reshape(len(x), -1, length // 2).sum(axis=2).max())

    lengths = [2**i for i in range(8, 0, -1)]
    macs = dict.fromkeys(lengths, 0)
    starts = (range(0, size, step) for size, step in zip((*a.shape, b.shape[1]), (6, 256, 64), strict=True))
    for m, k, n in itertools.product(*starts):
        rows, columns = a[m : m + 6, k : k + 256], b[k : k + 256, n : n + 64].T
        certified = [c for c in lengths[:-1] if norm(rows, c) * norm(columns, c) < 2**46 - 2**30]
        macs[certified[0] if certified else 2] += len(rows) * len(columns) * rows.shape[1]
    return np.array([*macs.values()]) / (a.shape[0] * b.size)


def fixed_chain(contraction, a, b, length):
    """A contraction with chains of one length: float32 of the output's shape, and the number of saturated
    chains."""
    out, saturated = np.full(contraction.out_shape, np.nan, np.float32), 0
    for position, terms in products(contraction, a, b):
        out[position], count = add_saturated_chains(terms, length)
        saturated += count
    return out, saturated
