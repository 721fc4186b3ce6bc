"""Chains of products in the tiles of two matrices, in plain JAX: their lengths, and their sums."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.numbers.contraction.plan import (
    BLOCK,
    CERTIFIED_BELOW,
    CHAINS,
    NORM_SHIFT,
    ROW_TILE,
    SEGMENT,
    SEGMENTS,
)


def tiled(x: jax.Array, rows: int, padding: int = 0) -> jax.Array:
    """A matrix [g, rows, k] as tiles [g, tiles, rows, blocks, 256]."""
    g, m, k = x.shape
    x = jnp.pad(x, ((0, 0), (0, -m % rows), (0, -k % BLOCK)), constant_values=padding)
    return x.reshape(g, -1, rows, -(-k // BLOCK), BLOCK)


def extents(size: int, step: int, whole: int = 1) -> np.ndarray:
    """Extents of the pieces of an axis that is filled up to a multiple of `whole`. The last may be empty."""
    starts = np.arange(0, -(-size // whole) * whole, step)
    return np.clip(size - starts, 0, step)


def certified_lengths(a: jax.Array, b: jax.Array, stretches: int) -> jax.Array:
    """The longest certified chain of each tile: int32[stretches, g, row tiles, column tiles].

    Arguments:
        a, b: a block's mantissas, int32[g, row tiles, 6, 256] and int32[g, column tiles, columns, 256].
        stretches: into how many stretches with chain lengths of their own the block is divided.
    """
    lengths = [n for n in CHAINS if n <= BLOCK // stretches]
    norms_a, norms_b = (
        jnp.stack([_norms(x, n, stretches) for n in lengths], axis=-1).astype(jnp.float32)
        for x in (_squares(a), _squares(b))
    )
    product = norms_a[:, :, :, None] * norms_b[:, :, None]
    certified = (product < np.float32(CERTIFIED_BELOW)).at[..., -1].set(True)  # chains of 2 cannot overflow
    return jnp.asarray(lengths)[jnp.argmax(certified, axis=-1)]  # the first is the longest


def macs_by_length(chain: jax.Array, macs: jax.Array) -> jax.Array:
    """The number of multiply-accumulates in chains of each length: float32[g, len(CHAINS)].

    Arguments:
        chain: int32[stretches, g, row tiles, column tiles].
        macs: float32[stretches, row tiles, column tiles].
    """
    of_length = chain[..., None] == np.array(CHAINS)
    return jnp.where(of_length, macs[:, None, ..., None], 0).sum(axis=(0, 2, 3))


def add_chains(
    start: jax.Array, a: jax.Array, b: jax.Array, chain: jax.Array, factors: jax.Array, *, saturate: bool
) -> tuple[jax.Array, jax.Array]:
    """Add a block's chain sums, each multiplied by its segment's factor, in ascending order.

    Arguments:
        start: float32[g, m, n], to which they are added.
        a, b: mantissas, as for `certified_lengths`.
        chain: length of the chains, int32[stretches, g, row tiles, column tiles].
        factors: float32[segments, g, m, column tiles].
        saturate: whether sums are saturated to int32 at the end of a chain. Otherwise none may overflow.

    Returns:
        (total, saturated): float32[g, m, n], and the number of saturated chains, int32[g].
    """
    g, _, columns, _ = b.shape
    pairs = [jnp.moveaxis(x.reshape(g, -1, SEGMENTS, SEGMENT // 2, 2), (2, 3), (0, 1)) for x in (a, b)]
    sum_chains = _saturated if saturate else _exact

    def add_segment(sums, segment):
        index, a, b, chain, factor = segment
        chain = jnp.repeat(jnp.repeat(chain, ROW_TILE, axis=1), columns, axis=2)
        factor = jnp.repeat(factor, columns, axis=2)

        def add_pair(sums, pair):
            total, saturated, chains = sums
            position, a, b = pair
            ends = (index * SEGMENT + position) % chain == 0
            value, saturated, chains = sum_chains(saturated, chains, ends, a, b)
            return (jnp.where(ends, total + value * factor, total), saturated, chains), None

        sums, _ = lax.scan(add_pair, sums, (jnp.arange(2, SEGMENT + 1, 2), a, b))
        return sums, None

    no_chain = jnp.zeros(start.shape, jnp.int32)
    start = (start, jnp.zeros(g, jnp.int32), (no_chain, no_chain))
    chain = jnp.repeat(chain, SEGMENTS // chain.shape[0], axis=0)
    (total, saturated, _), _ = lax.scan(add_segment, start, (jnp.arange(SEGMENTS), *pairs, chain, factors))
    return total, saturated


def _pair_sums(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("gmk,gnk->gmn", a, b, preferred_element_type=jnp.int32)


def _exact(saturated, chains, ends, a, b):
    """Add a pair of products to the chains. Returns their sums as float32, the number of saturated ones, and
    the chains that go on."""
    exact = chains[0] + _pair_sums(a, b)
    # If all four mantissas of a chain of 2 are −32768 (which `quantize` never gives), the sum 2³¹ wraps to
    # −2³¹. No other chain sums to −2³¹.
    value = jnp.where(exact == np.iinfo(np.int32).min, 2.0**31, exact.astype(jnp.float32))
    return value, saturated, (jnp.where(ends, 0, exact), chains[1])


def _saturated(saturated, chains, ends, a, b):
    """The same with sums that are saturated to int32 at the end of a chain, which is counted.

    A's mantissas are split into two bytes, high · 2^8 + low, so that the sums of 256 products with either
    byte fit an int32.
    """
    low, high = chains[0] + _pair_sums(a & 255, b), chains[1] + _pair_sums(a >> 8, b)
    carried = high + (low >> 8)
    exact = jnp.left_shift(carried, 8) | (low & 255)
    above, below = carried >= 1 << 23, carried < -(1 << 23)
    limits = np.iinfo(np.int32)
    exact = jnp.where(above, limits.max, jnp.where(below, limits.min, exact))
    saturated = saturated + (ends & (above | below)).sum(axis=(1, 2), dtype=jnp.int32)
    chains = jnp.where(ends, 0, low), jnp.where(ends, 0, high)
    return exact.astype(jnp.float32), saturated, chains


def _squares(x: jax.Array) -> jax.Array:
    """The terms of a norm, as defined at `NORM_SHIFT`: int32[g, tiles, rows, pairs]."""
    pairs = (x * x).astype(jnp.uint32).reshape(*x.shape[:3], -1, 2).sum(axis=-1, dtype=jnp.uint32)
    return (pairs >> NORM_SHIFT).astype(jnp.int32) + 1


def _norms(squares: jax.Array, length: int, stretches: int) -> jax.Array:
    """The norm of each tile for a chain length, as defined at `CHAINS`: int32[stretches, g, tiles]."""
    sums = squares.reshape(*squares.shape[:3], stretches, -1, length // 2).sum(axis=-1, dtype=jnp.int32)
    return jnp.moveaxis(sums.max(axis=(2, 4)), -1, 0)
