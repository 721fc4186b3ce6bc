"""Winograd algorithms in dynamic fixed point, in plain JAX.

Both operands are transformed in float32. Each transformed row (column) gets an exponent for each block of the
contracted index and each point of the tile, and 16-bit mantissas. At each point, the products are those of
two matrices. Their sums are transformed back.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.numbers.contraction.alignment import ABSENT, present
from dfpjax.numbers.contraction.chains import add_chains, certified_lengths, extents, macs_by_length, tiled
from dfpjax.numbers.contraction.elements import Elements
from dfpjax.numbers.contraction.grid import Grid
from dfpjax.numbers.contraction.plan import (
    BLOCK,
    CHAINS,
    COLUMN_TILE,
    ROW_TILE,
    SEGMENTS,
    TILES_BLOCK,
    Part,
)
from dfpjax.numbers.contraction.running import MOST_BELOW
from dfpjax.numbers.contraction.tiles import Tiles
from dfpjax.numbers.contraction.transforms import TRANSFORMS, along_axes, normalizations
from dfpjax.numbers.format.scaling import float_bits, power_of_two

LEAST_SCALE = 48
"""Terms whose exponent is more than this below the one of their row (column) count as zero."""

_MOST = 32767


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Transformed:
    """An operand after its transform. Rows are columns in B."""

    mantissas: jax.Array
    """int32[points, g, rows, blocks, 256]."""
    scale: jax.Array
    """float32[points, g, rows, blocks]: the mantissas' unit, as a multiple of 2^base."""
    base: jax.Array
    """int32[g, rows]."""
    lost: jax.Array
    """bool[g, rows]: whether an element is not finite."""


def sum_in_tiles(
    part: Part, grids: tuple[Grid, Grid], a: jax.Array, b: jax.Array, exponents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Σ_k A · B of a part with tiles.

    Arguments:
        part: the part.
        grids: where the exponents of A and of B lie.
        a, b: mantissas, one-dimensional.
        exponents: exponents of A and of B, one-dimensional.

    Returns:
        (total, exponent, macs). `total` is float32 of the shape of `Tiles.outputs`, to be multiplied by
        2^exponent, which is int32 of the same shape. `macs` is float32[g, len(CHAINS)], the
        multiply-accumulates of transformed elements by chain length.
    """
    tiles, axes = Tiles.of(part), len(part.bounds)
    transforms, c = TRANSFORMS[part.tile, part.taps], normalizations(part.points, axes)
    block = TILES_BLOCK if part.tiles_along_k else BLOCK
    of_b, back = (
        (transforms.cotangent, transforms.taps)
        if part.tiles_along_k
        else (transforms.kernel, transforms.output)
    )
    of_a, of_b = (
        functools.partial(along_axes, transform, axes=axes, cuts=part.points == 6)
        for transform in (transforms.input, of_b)
    )
    back = functools.partial(along_axes, back, axes=axes)
    x = _transformed(tiles.patches, a, exponents[0], grids[0], of_a, np.ones_like(c), block)
    y = _transformed(tiles.taps, b, exponents[1], grids[1], of_b, c, block)

    g, m, n = tiles.patches.address.shape[0], x.base.shape[1], y.base.shape[1]
    of_k = extents(tiles.patches.address.shape[2], block)
    macs = np.einsum("b,m,n->bmn", of_k, extents(m, ROW_TILE), extents(n, COLUMN_TILE))
    total, counts = None, jnp.zeros((g, len(CHAINS)), jnp.float32)
    for start in range(0, len(of_k), part.blocks_per_split):
        split = slice(start, start + part.blocks_per_split)
        sums, count = _sum_of_points(x, y, split, macs[split].astype(np.float32))
        # The points innermost: [points, g, m, n] becomes [g, m, n, points].
        result = jnp.moveaxis(back(jnp.moveaxis(sums, 0, -1)), -1, 2)
        total = result if total is None else total + result
        counts += count
    lost = x.lost[:, :, None, None] | y.lost[:, None, None, :]
    exponent = x.base[:, :, None, None] + y.base[:, None, None, :]
    return jnp.where(lost, jnp.nan, total), jnp.broadcast_to(exponent, total.shape), counts


def _transformed(
    elements: Elements,
    values: jax.Array,
    exponent: jax.Array,
    grid: Grid,
    transform: Callable[[jax.Array], jax.Array],
    c: np.ndarray,
    block: int,
) -> _Transformed:
    """Transform the elements of an operand, [g, rows, k, points], and quantize c times the results."""
    g, rows, k, points = elements.address.shape

    def in_blocks(x: jax.Array, padding: int) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -k % block), (0, 0)), constant_values=padding)
        return x.reshape(g, rows, -1, block, points)

    exponent, not_finite = present(in_blocks(elements.take(exponent, ABSENT, grid.index), ABSENT))
    unit = exponent.max(axis=(3, 4), keepdims=True)
    below = unit - exponent
    takes_part = (exponent > ABSENT) & (below <= MOST_BELOW)
    power = jnp.where(takes_part, power_of_two(-jnp.clip(below, 0, MOST_BELOW)), 0.0)
    mantissas = in_blocks(elements.take(values), 0).astype(jnp.float32)
    transformed = transform(mantissas * power)  # [g, rows, blocks, block, points]

    largest = jnp.abs(transformed).max(axis=3) * c
    shift = ((float_bits(jnp.abs(largest)) + 256) >> 23) - 127 - 14
    takes_part = (largest != 0) & (shift >= -LEAST_SCALE)
    factor = c * power_of_two(-jnp.maximum(shift, -LEAST_SCALE))
    scaled = jnp.where(takes_part[:, :, :, None], transformed * factor[:, :, :, None], 0.0)
    quantized = jnp.clip(jnp.rint(scaled), -_MOST, _MOST).astype(jnp.int32)
    quantized = jnp.pad(jnp.moveaxis(quantized, (4, 3), (0, 4)), [(0, 0)] * 4 + [(0, BLOCK - block)])

    base = unit[..., 0, 0].max(axis=2)
    base = jnp.where(base == ABSENT, 0, base)
    below = base[:, :, None, None] - (unit[..., 0] + shift)
    takes_part = takes_part & (below <= LEAST_SCALE)
    scale = jnp.where(takes_part, power_of_two(-jnp.clip(below, -LEAST_SCALE, LEAST_SCALE)), 0.0)
    return _Transformed(quantized, jnp.moveaxis(scale, 3, 0), base, not_finite.any(axis=(2, 3, 4)))


def _sum_of_points(x: _Transformed, y: _Transformed, split: slice, macs: np.ndarray):
    """The sums of products at each point, float32[points, g, m, n], and their number by chain length.

    macs is float32[blocks, row tiles, column tiles], the number of products of each tile.
    """
    points, g, m = x.mantissas.shape[:3]
    n = y.mantissas.shape[2]

    def blocks(operand: _Transformed, rows: int) -> tuple[jax.Array, jax.Array]:
        mantissas = operand.mantissas[:, :, :, split].reshape(points * g, operand.base.shape[1], -1)
        scale = operand.scale[..., split].reshape(points * g, operand.base.shape[1], -1)
        scale = jnp.pad(scale, ((0, 0), (0, -scale.shape[1] % rows), (0, 0)))
        return jnp.moveaxis(tiled(mantissas, rows), 3, 0), jnp.moveaxis(scale, 2, 0)

    (a, scale_a), (b, scale_b) = blocks(x, ROW_TILE), blocks(y, COLUMN_TILE)

    def add_block(sums, block):
        total, counts = sums
        a, b, scale_a, scale_b, macs = block
        chain = certified_lengths(a, b, 1)
        ones = jnp.ones((SEGMENTS, points * g, scale_a.shape[1], chain.shape[-1]), jnp.float32)
        cell, _ = add_chains(jnp.zeros_like(total), a, b, chain, ones, saturate=False)
        total = total + cell * (scale_a[:, :, None] * scale_b[:, None])
        return (total, counts + macs_by_length(chain, macs[None])), None

    start = (
        jnp.zeros((points * g, scale_a.shape[2], scale_b.shape[2]), jnp.float32),
        jnp.zeros((points * g, len(CHAINS)), jnp.float32),
    )
    (total, counts), _ = lax.scan(add_block, start, (a, b, scale_a, scale_b, macs))
    return total[:, :m, :n].reshape(points, g, m, n), counts.reshape(points, g, -1).sum(axis=0)
