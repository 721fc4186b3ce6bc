"""Winograd algorithms in NumPy, by docs/explanation/numerics.md alone."""

import itertools
from typing import NamedTuple

import numpy as np

F = np.float32
POINTS = {4: [0, 1, -1], 6: [0, 5 / 8, -5 / 8, 3 / 2, -3 / 2]}
ABSENT = -(2**20)


class Tile(NamedTuple):
    """F(outputs, taps)."""

    outputs: int
    taps: int

    @property
    def points(self):
        return self.outputs + self.taps - 1


F23, F43, F25 = Tile(2, 3), Tile(4, 3), Tile(2, 5)


def cut(x):
    return (np.ascontiguousarray(x, F).view(np.uint32) & np.uint32(0xFFFFFF00)).view(F)


def _input_of_4(d):
    return [d[2] - d[0], d[1] + d[2], d[2] - d[1], d[3] - d[1]]


def _input_of_6(d):
    e1, o1 = d[4] - F(9 / 4) * d[2], F(5 / 8) * d[3] - F(45 / 32) * d[1]
    e2, o2 = d[4] - F(25 / 64) * d[2], F(3 / 2) * d[3] - F(75 / 128) * d[1]
    first, last = (F(225 / 256) * d[i] + (d[i + 4] - F(169 / 64) * d[i + 2]) for i in (0, 1))
    return [first, e1 + o1, e1 - o1, e2 + o2, e2 - o2, last]


def _kernel23(w):
    return [w[0], (w[0] + w[2]) + w[1], (w[0] + w[2]) - w[1], w[2]]


def _kernel43(w):
    s, t = w[0] + F(25 / 64) * w[2], F(5 / 8) * w[1]
    u, z = w[0] + F(9 / 4) * w[2], F(3 / 2) * w[1]
    return [w[0], s + t, s - t, u + z, u - z, w[2]]


def _kernel25(w):
    def even_and_odd(x):
        square = F(x * x)
        return w[0] + square * cut(w[2] + square * w[4]), F(x) * cut(w[1] + square * w[3])

    (s, t), (u, z) = even_and_odd(5 / 8), even_and_odd(3 / 2)
    return [w[0], s + t, s - t, u + z, u - z, w[4]]


def _cotangent23(y):
    return [y[0], y[0] + y[1], y[0] - y[1], y[1]]


def _cotangent43(y):
    s, t = y[0] + F(25 / 64) * y[2], F(5 / 8) * y[1] + F(125 / 512) * y[3]
    u, w = y[0] + F(9 / 4) * y[2], F(3 / 2) * y[1] + F(27 / 8) * y[3]
    return [y[0], s + t, s - t, u + w, u - w, y[3]]


def _cotangent25(y):
    return [y[0], *(y[0] + F(x) * y[1] for x in POINTS[6][1:]), y[1]]


def _output23(y):
    return [y[0] + (y[1] + y[2]), (y[1] - y[2]) + y[3]]


def _taps23(y):
    return [y[0] + (y[1] + y[2]), y[1] - y[2], (y[1] + y[2]) + y[3]]


def _pairs(y):
    return [cut(x) for x in (y[1] + y[2], y[1] - y[2], y[3] + y[4], y[3] - y[4])]


def _output43(y):
    s1, d1, s2, d2 = _pairs(y)
    third = F(25 / 64) * s1 + F(9 / 4) * s2
    last = (F(125 / 512) * d1 + F(27 / 8) * d2) + y[5]
    return [y[0] + (s1 + s2), F(5 / 8) * d1 + F(3 / 2) * d2, third, last]


def _output25(y):
    s1, d1, s2, d2 = _pairs(y)
    return [y[0] + (s1 + s2), (F(5 / 8) * d1 + F(3 / 2) * d2) + y[5]]


def _taps43(y):
    s1, d1, s2, d2 = _pairs(y)
    third = (F(25 / 64) * s1 + F(9 / 4) * s2) + y[5]
    return [y[0] + (s1 + s2), F(5 / 8) * d1 + F(3 / 2) * d2, third]


def _taps25(y):
    s1, d1, s2, d2 = _pairs(y)
    third, fourth = F(25 / 64) * s1 + F(9 / 4) * s2, F(125 / 512) * d1 + F(27 / 8) * d2
    last = (F(25 / 64) * cut(F(25 / 64) * s1) + F(81 / 16) * s2) + y[5]
    return [y[0] + (s1 + s2), F(5 / 8) * d1 + F(3 / 2) * d2, third, fourth, last]


INPUT = {F23: _input_of_4, F43: _input_of_6, F25: _input_of_6}
KERNEL = {F23: _kernel23, F43: _kernel43, F25: _kernel25}
COTANGENT = {F23: _cotangent23, F43: _cotangent43, F25: _cotangent25}
OUTPUT = {F23: _output23, F43: _output43, F25: _output25}
TAPS = {F23: _taps23, F43: _taps43, F25: _taps25}


def in_two_axes(transform, x, *, cuts=False):
    """Along the last axis, then along the one before it."""
    along_x = np.stack(transform(list(np.moveaxis(x, -1, 0))), -1)
    return np.stack(transform(list(np.moveaxis(cut(along_x) if cuts else along_x, -2, 0))), -2)


def transformed(m, e, transform, tile):
    """Of a row's (column's) block [k, side, side]: transformed values [k, points, points], E."""
    there = (e > -163) & (e < 2**19)
    largest = e[there].max() if there.any() else ABSENT
    d = np.where(there & (largest - e <= 100), np.ldexp(m.astype(float), np.clip(e - largest, -200, 0)), 0)
    return in_two_axes(transform, d.astype(F), cuts=tile.points == 6), largest


def quantized(m, e, transform, c, tile):
    """Of a row's (column's) block [k, side, side]: mantissas [k, points, points], their exponents, E."""
    v, largest = transformed(m, e, transform, tile)
    mantissas, exponents = np.zeros(v.shape, np.int64), np.full(v.shape[1:], ABSENT)
    for p in np.ndindex(v.shape[1:]):
        of_point = v[(slice(None), *p)]
        length = F(np.abs(of_point).max()) * np.abs(c[p])
        exponent = (int(length.view(np.uint32)) + 256 >> 23) - 127 - 14
        if length > 0 and exponent >= -48:
            scaled = np.rint(of_point * np.ldexp(c[p], -exponent))
            mantissas[(slice(None), *p)] = np.clip(scaled, -32767, 32767)
            exponents[p] = largest + exponent
    return mantissas, exponents, largest


def normalizations(tile):
    points = POINTS[tile.points]
    n = [np.prod([x - y for y in points if y != x]) for x in points] + [1]
    return (1 / np.outer(n, n)).astype(F)


def norm(x, length):
    padded = np.zeros((len(x), 256), np.int64)
    padded[:, : x.shape[1]] = x
    pairs = (padded**2).reshape(len(x), -1, 2).sum(-1) // 256 + 1
    return F(pairs.reshape(len(x), -1, length // 2).sum(-1).max())


def cell(a, b):
    lengths = (256, 128, 64, 32, 16, 8, 4, 2)
    chain = next(n for n in lengths if n == 2 or norm(a, n) * norm(b, n) < 2.0**46 - 2.0**30)
    total = np.zeros((len(a), len(b)), F)
    for k in range(0, a.shape[1], chain):
        total += F(a[:, k : k + chain] @ b[:, k : k + chain].T)
    return total


def winograd(a, b, tile, *, of_b, back, block, blocks_per_split):
    """The products of two operands in two dimensions.

    Arguments:
        a: mantissas and exponents [rows, k, points, points]; an exponent of `ABSENT` where there is nothing.
        b: the same, [columns, k, taps or outputs of a tile, …].
        of_b, back: the transforms of B and of the sums.

    Returns:
        float32[rows, columns, outputs or taps, …].
    """
    c = normalizations(tile)
    count = -(-a[0].shape[1] // block)

    def operand(x, transform, c):
        m, e = x
        parts = [
            [
                quantized(m[i, k : k + block], e[i, k : k + block], transform, c, tile)
                for k in range(0, m.shape[1], block)
            ]
            for i in range(len(m))
        ]
        largest = np.array([[part[2] for part in row] for row in parts])
        base = largest.max(1)
        base[base == ABSENT] = 0
        exponents = np.array([[part[1] for part in row] for row in parts])  # [rows, blocks, points, points]
        below = base[:, None, None, None] - exponents
        scales = np.where(below > 48, 0, np.ldexp(1.0, -np.minimum(below, 200))).astype(F)
        mantissas = [np.stack([row[i][0] for row in parts]) for i in range(count)]
        return mantissas, scales, base, (e >= 2**19).any((1, 2, 3))

    of_a, scale_a, base_a, lost_a = operand(a, INPUT[tile], np.ones_like(c))
    of_b, scale_b, base_b, lost_b = operand(b, of_b, c)
    result = None
    for split in range(0, count, blocks_per_split):
        total = np.zeros((len(lost_a), len(lost_b), *c.shape), F)
        for i in range(split, min(split + blocks_per_split, count)):
            for p in np.ndindex(c.shape):
                x, y = of_a[i][(..., *p)], of_b[i][(..., *p)]
                for m, n in itertools.product(range(0, len(x), 6), range(0, len(y), 64)):
                    rows, columns = slice(m, m + 6), slice(n, n + 64)
                    scale = scale_a[(rows, i, *p)][:, None] * scale_b[(columns, i, *p)]
                    total[(rows, columns, *p)] += cell(x[rows], y[columns]) * scale
        transformed = in_two_axes(back, total)
        result = transformed if result is None else result + transformed
    exponent = (base_a[:, None] + base_b)[:, :, None, None]
    with np.errstate(over="ignore", under="ignore"):
        result = np.ldexp(result.astype(np.float64), exponent).astype(F)
    result[lost_a] = np.nan
    result[:, lost_b] = np.nan
    return result


def in_patches(x, low, shape, tile, fill):
    """The patches [tiles, channels, points, points] of images that are padded by `low` before each axis."""
    step, side = tile.outputs, tile.points
    counts = [-(-size // step) for size in shape]
    high = [n * step + tile.taps - 1 - low - size for n, size in zip(counts, x.shape[1:3], strict=True)]
    x = np.pad(x, ((0, 0), *((low, max(h, 0)) for h in high), (0, 0)), constant_values=fill)
    found = [
        x[n, i * step : i * step + side, j * step : j * step + side]
        for n in range(len(x)) for i in range(counts[0]) for j in range(counts[1])
    ]  # fmt: skip
    return np.moveaxis(np.stack(found), 3, 1)
