"""Winograd algorithms in dynamic fixed point, in plain JAX.

Both operands are transformed (`dfpjax.numbers.contraction.transformed`). At each point of a tile, the
products are those of two matrices. Their sums are transformed back.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.numbers.contraction.chains import add_chains, certified_lengths, extents, macs_by_length, tiled
from dfpjax.numbers.contraction.grid import Grid
from dfpjax.numbers.contraction.plan import CHAINS, COLUMN_TILE, ROW_TILE, SEGMENTS, Part
from dfpjax.numbers.contraction.transformed import Transformed, operands_of, transformed
from dfpjax.numbers.contraction.transforms import TRANSFORMS, along_axes


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
    transforms, axes = TRANSFORMS[part.tile, part.taps], len(part.bounds)
    back = transforms.taps if part.tiles_along_k else transforms.output
    back = functools.partial(along_axes, back, axes=axes)
    of_a, of_b = operands_of(part, grids)
    x, y = transformed(of_a, a, exponents[0]), transformed(of_b, b, exponents[1])

    g, m, k, _ = of_a.elements.shape
    n = of_b.elements.shape[1]
    of_k = extents(k, of_a.block)
    macs = np.einsum("b,m,n->bmn", of_k, extents(m, ROW_TILE), extents(n, COLUMN_TILE))
    total, counts = None, jnp.zeros((g, len(CHAINS)), jnp.float32)
    for start in range(0, len(of_k), part.blocks_per_split):
        split = slice(start, start + part.blocks_per_split)
        sums, count = _sum_of_points(x, y, split, macs[split].astype(np.float32))
        result = jnp.moveaxis(back(sums), 0, 2)
        total = result if total is None else total + result
        counts += count
    lost = x.lost[:, :, None, None] | y.lost[:, None, None, :]
    exponent = x.base[:, :, None, None] + y.base[:, None, None, :]
    return jnp.where(lost, jnp.nan, total), jnp.broadcast_to(exponent, total.shape), counts


def _sum_of_points(x: Transformed, y: Transformed, split: slice, macs: np.ndarray):
    """The sums of products at each point, float32[points, g, m, n], and their number by chain length.

    macs is float32[blocks, row tiles, column tiles], the number of products of each tile.
    """
    points, g, m = x.mantissas.shape[:3]
    n = y.mantissas.shape[2]

    def blocks(operand: Transformed, rows: int) -> tuple[jax.Array, jax.Array]:
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
