"""The arithmetic of a plan in plain JAX. The native kernels must reproduce it bit for bit.

The operations lower to it on platforms without native kernels. It materializes both operands as matrices, so
it serves study, tests and portability, not speed.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.numbers.contraction.alignment import ABSENT, Aligned, align
from dfpjax.numbers.contraction.grid import Grid
from dfpjax.numbers.contraction.plan import (
    BLOCK,
    CERTIFIED_BELOW,
    CHAINS,
    COLUMN_TILE,
    NORM_SHIFT,
    ROW_TILE,
    SEGMENT,
    SEGMENTS,
    Part,
    Plan,
)
from dfpjax.numbers.contraction.running import UNSET, Running, combined
from dfpjax.numbers.format.scaling import scale_by_power_of_two


def run_plan(
    plan: Plan, a: jax.Array, b: jax.Array, exponent_a: jax.Array, exponent_b: jax.Array
) -> jax.Array:
    """Run a plan with certified chains.

    Arguments:
        plan: from `make_plan`.
        a, b: int16 mantissas of the plan's A and B: lhs and rhs, or rhs and lhs if `plan.swapped`.
        exponent_a, exponent_b: int32 exponents of A and B.

    Returns:
        float32 of shape `plan.out_shape`.
    """
    out, _ = _run(plan, a, b, exponent_a, exponent_b, 0)
    return out


def run_plan_chain_lengths(
    plan: Plan, a: jax.Array, b: jax.Array, exponent_a: jax.Array, exponent_b: jax.Array, *, examples: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Run a plan with certified chains, and report their lengths.

    Arguments:
        plan, a, b, exponent_a, exponent_b: as for `run_plan`.
        examples: number of examples in the plan's outermost index: the size of the vmap, or 1.

    Returns:
        (out, shares). `out` is float32 of shape `plan.out_shape`. `shares` is float32[examples, len(CHAINS)]:
        the share of an example's multiply-accumulates in chains of each length, in the order of `CHAINS`. An
        example's shares add up to 1, within float32's precision, or are all 0 if there is nothing to compute.
    """
    out, macs = _run(plan, a, b, exponent_a, exponent_b, 0)
    counts = jnp.zeros((examples, len(CHAINS)), jnp.float32)
    for groups in macs:
        counts += groups.reshape(examples, -1, len(CHAINS)).sum(axis=1)
    return out, counts / jnp.maximum(counts.sum(axis=1, keepdims=True), 1)


def run_plan_fixed_chain(
    plan: Plan,
    a: jax.Array,
    b: jax.Array,
    exponent_a: jax.Array,
    exponent_b: jax.Array,
    *,
    length: int,
    examples: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Run a plan with chains of one length, saturated to int32.

    Arguments:
        plan, a, b, exponent_a, exponent_b: as for `run_plan`.
        length: products in a chain, one of `CHAINS`.
        examples: number of examples in the plan's outermost index: the size of the vmap, or 1.

    Returns:
        (out, saturated). `out` is float32 of shape `plan.out_shape`. `saturated` is int32[examples]: the
        number of saturated chains in each example.
    """
    out, saturated = _run(plan, a, b, exponent_a, exponent_b, length)
    counts = jnp.zeros(examples, jnp.int32)
    for groups in saturated:
        counts += groups.reshape(examples, -1).sum(axis=1, dtype=jnp.int32)
    return out, counts


def _run(plan: Plan, a, b, exponent_a, exponent_b, length: int) -> tuple[jax.Array, list[jax.Array]]:
    """The result, and for each part the number of saturated chains, int32[g]. Length 0 means certified
    chains; then each part has its number of multiply-accumulates by chain length, float32[g, len(CHAINS)]."""
    out = jnp.zeros(math.prod(plan.out_shape), jnp.float32)
    counts = []
    for part in plan.parts:
        g, m, n = (tuple(d.extent for d in dims) for dims in (part.g, part.m, part.n))
        if 0 in (*g, *m, *n):
            continue
        exponents = None if plan.grids is None else (exponent_a.ravel(), exponent_b.ravel())
        total, exponent, count = _sum(part, plan.grids, a.ravel(), b.ravel(), exponents, length)
        counts.append(count)
        free = (*part.g, *part.m, *part.n)
        exponent = exponent.reshape(*g, *m, *n)
        if plan.grids is None:
            exponent += _take(exponent_a, free, "exponent_a") + _take(exponent_b, free, "exponent_b")
        address = part.base_c + _addresses(free, "c")
        total = total.reshape(*g, *m, *n)
        scaled = jnp.where(jnp.isnan(total), total, scale_by_power_of_two(total, exponent))
        out = out.at[address.ravel()].set(scaled.ravel())
    return out.reshape(plan.out_shape), counts


def _addresses(dims, field: str, offset: int = 0) -> np.ndarray:
    """offset + Σ index · stride over nested loops: an array of the loops' shape."""
    address = np.asarray(offset)
    for position, dim in enumerate(dims):
        step = np.arange(dim.extent) * getattr(dim, field)
        address = address + step.reshape((-1,) + (1,) * (len(dims) - 1 - position))
    return np.broadcast_to(address, tuple(d.extent for d in dims))


def _take(exponent: jax.Array, dims, field: str) -> jax.Array:
    return jnp.ravel(exponent)[_addresses(dims, field)]


def _coordinates(dims, window: int, offset: int) -> np.ndarray:
    """Coordinate in a windowed axis over nested loops: an array of the loops' shape."""
    coordinate = np.asarray(offset)
    for position, dim in enumerate(dims):
        step = np.arange(dim.extent) * (dim.coef if dim.window == window else 0)
        coordinate = coordinate + step.reshape((-1,) + (1,) * (len(dims) - 1 - position))
    return np.broadcast_to(coordinate, tuple(d.extent for d in dims))


@dataclass(frozen=True)
class _Elements:
    """The elements of an operand as a matrix [outer, rows, columns], by their addresses."""

    address: np.ndarray
    inside: np.ndarray
    """False for padding."""

    @classmethod
    def of(cls, outer, rows, columns, field: str, base: int, bounds=()):
        dims = (*outer, *rows, *columns)
        address, inside = _addresses(dims, field, base), np.asarray(True)
        for window, bound in enumerate(bounds):
            coordinate = _coordinates(dims, window, bound.offset)
            address = address + coordinate * bound.a
            inside = inside & (coordinate >= 0) & (coordinate < bound.size)
        shape = tuple(math.prod(d.extent for d in group) for group in (outer, rows, columns))
        inside = np.broadcast_to(inside, address.shape)
        return cls(np.where(inside, address, 0).reshape(shape), inside.reshape(shape))

    def take(self, flat: jax.Array, absent: int = 0, index=None) -> jax.Array:
        """The elements as int32, with `absent` for the padding. `index` maps addresses to those in `flat`."""
        if 0 in self.address.shape:
            return jnp.zeros(self.address.shape, jnp.int32)
        address = self.address if index is None else index(self.address)
        return jnp.where(self.inside, flat[address].astype(jnp.int32), absent)


def _tiled(x: jax.Array, rows: int, padding: int = 0) -> jax.Array:
    """A matrix [g, rows, k] as tiles [g, tiles, rows, blocks, 256]."""
    g, m, k = x.shape
    x = jnp.pad(x, ((0, 0), (0, -m % rows), (0, -k % BLOCK)), constant_values=padding)
    return x.reshape(g, -1, rows, -(-k // BLOCK), BLOCK)


def _aligned(elements: _Elements, values, grid: Grid | None, exponent, *, rows: int) -> Aligned:
    """The tiles of an operand, with exponents that are zero unless it is in blocks."""
    mantissas = _tiled(elements.take(values), rows)
    panels = rows == COLUMN_TILE
    if grid is not None:
        exponent = _tiled(elements.take(exponent, ABSENT, grid.index), rows, ABSENT)
        return align(mantissas, exponent, panels=panels, dithered=grid.dithered)
    g, tiles, _, blocks, _ = mantissas.shape
    return Aligned(
        mantissas,
        jnp.zeros((g, tiles, 1 if panels else rows, blocks, SEGMENTS), jnp.int32),
        jnp.zeros((g, tiles, blocks), bool),
        jnp.zeros((g, tiles, rows, blocks), bool),
    )


def _sum(
    part: Part, grids, a: jax.Array, b: jax.Array, exponents, length: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Σ_k A · B as float32[g, m, n] and the power of two that it is to be multiplied by, int32 of the same
    shape; and the counts for each g as in `_run`."""
    elements_a = _Elements.of(part.g, part.m, part.k, "a", part.base_a, part.bounds)
    elements_b = _Elements.of(part.g, part.n, part.k, "b", part.base_b)
    g, m, k = elements_a.address.shape
    n = elements_b.address.shape[1]
    counts = jnp.zeros(g, jnp.int32) if length else jnp.zeros((g, len(CHAINS)), jnp.float32)
    if k == 0:
        return jnp.zeros((g, m, n), jnp.float32), jnp.zeros((g, m, n), jnp.int32), counts
    macs = np.einsum("k,m,n->kmn", _extents(k, BLOCK), _extents(m, ROW_TILE), _extents(n, COLUMN_TILE))
    grid_a, grid_b = grids or (None, None)
    of_a, of_b = exponents or (None, None)
    tiles_a = _aligned(elements_a, a, grid_a, of_a, rows=ROW_TILE)
    tiles_b = _aligned(elements_b, b, grid_b, of_b, rows=COLUMN_TILE)

    shape = (g, -(-m // ROW_TILE) * ROW_TILE, -(-n // COLUMN_TILE) * COLUMN_TILE)
    nothing = Running(
        jnp.zeros(shape, jnp.float32), jnp.full((*shape[:2], shape[2] // COLUMN_TILE), UNSET, jnp.int32)
    )
    blocks = jax.tree.map(lambda x: jnp.moveaxis(x, -2 if x.ndim == 5 else -1, 0), (tiles_a, tiles_b))
    partials = []
    for start in range(0, -(-k // BLOCK), part.blocks_per_split):
        split = slice(start, start + part.blocks_per_split)
        (partial, counts), _ = lax.scan(
            lambda sums, block: (_add_block(part, length, sums, *block), None),
            (nothing, counts),
            (*jax.tree.map(lambda x, split=split: x[split], blocks), macs[split].astype(np.float32)),
        )
        partials.append(partial)
    total, exponent = combined(partials)
    exponent = jnp.repeat(exponent, COLUMN_TILE, axis=2)
    return total[:, :m, :n], exponent[:, :m, :n], counts


def _extents(size: int, step: int) -> np.ndarray:
    """Extents of the tiles or blocks that divide an axis."""
    starts = np.arange(0, size, step)
    return np.minimum(starts + step, size) - starts


def _add_block(part: Part, length: int, sums, a: Aligned, b: Aligned, macs: jax.Array):
    """Add one block's chain sums to the running sums, and to the counts its products, or with chains of a
    given length its saturated chains.

    The mantissas of a are int32[g, row tiles, 6, 256], those of b int32[g, column tiles, 64, 256]. macs is
    float32[row tiles, column tiles], the number of multiply-accumulates in each tile.
    """
    running, counts = sums
    g = a.mantissas.shape[0]
    wide = a.wide[:, :, None] | b.wide[:, None]
    if length:
        chain, sum_chains = jnp.full(wide.shape, length), _saturated
    else:
        chain, sum_chains = _chain_length(a.mantissas, b.mantissas), _exact
        chain = jnp.full_like(chain, CHAINS[-1]) if part.lanes else chain
    chain = jnp.where(wide, jnp.minimum(chain, SEGMENT), chain)
    if not length:
        counts = counts + jnp.where(chain[..., None] == np.array(CHAINS), macs[..., None], 0).sum(axis=(1, 2))

    def of_tiles(x):
        return jnp.repeat(jnp.repeat(x, ROW_TILE, axis=1), COLUMN_TILE, axis=2)

    chain, wide = of_tiles(chain), of_tiles(wide)
    pairs = [
        jnp.moveaxis(x.mantissas.reshape(g, -1, SEGMENTS, SEGMENT // 2, 2), (2, 3), (0, 1)) for x in (a, b)
    ]
    exponents = [jnp.moveaxis(x.exponent.reshape(g, -1, SEGMENTS), 2, 0) for x in (a, b)]

    def add_segment(sums, segment):
        running, total, saturated, chains = sums
        index, a, b, exponent_a, exponent_b = segment

        def add_pair(sums, pair):
            total, saturated, chains = sums
            position, a, b = pair
            ends = (index * SEGMENT + position) % chain == 0
            total, saturated, chains = sum_chains(total, saturated, chains, ends, a, b)
            return (total, saturated, chains), None

        positions = jnp.arange(2, SEGMENT + 1, 2)
        (total, saturated, chains), _ = lax.scan(add_pair, (total, saturated, chains), (positions, a, b))
        ends = wide | (index == SEGMENTS - 1)
        exponent = exponent_a[:, :, None] + exponent_b[:, None, :]
        exponent = jnp.where(
            (exponent_a == ABSENT)[:, :, None] | (exponent_b == ABSENT)[:, None], ABSENT, exponent
        )
        running = running.plus(total, exponent, ends)
        return (running, jnp.where(ends, 0, total), saturated, chains), None

    zero = jnp.zeros(running.total.shape, jnp.float32)
    total = zero
    if part.lanes and not length:  # these sums do not begin anew with each block
        running, total = Running(zero, running.base), running.total
    start = (running, total, jnp.zeros(g, jnp.int32), _no_chain(zero))
    (running, _, saturated, _), _ = lax.scan(add_segment, start, (jnp.arange(SEGMENTS), *pairs, *exponents))
    lost = b.lost.reshape(g, 1, -1)
    running = Running(jnp.where(lost, jnp.nan, running.total), running.base)
    return running, counts + saturated if length else counts


def _no_chain(zero: jax.Array):
    return jnp.zeros(zero.shape, jnp.int32), jnp.zeros(zero.shape, jnp.int32)


def _pair_sums(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("gmk,gnk->gmn", a, b, preferred_element_type=jnp.int32)


def _exact(total, saturated, chains, ends, a, b):
    """Add a pair of products to the chains, and the chains that end to the total."""
    exact = chains[0] + _pair_sums(a, b)
    # If all four mantissas of a chain of 2 are −32768 (which `quantize` never gives), the sum 2³¹ wraps to
    # −2³¹. No other chain sums to −2³¹.
    value = jnp.where(exact == np.iinfo(np.int32).min, 2.0**31, exact.astype(jnp.float32))
    total = jnp.where(ends, total + value, total)
    return total, saturated, (jnp.where(ends, 0, exact), chains[1])


def _saturated(total, saturated, chains, ends, a, b):
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
    total = jnp.where(ends, total + exact.astype(jnp.float32), total)
    return total, saturated, (jnp.where(ends, 0, low), jnp.where(ends, 0, high))


def _chain_length(a: jax.Array, b: jax.Array) -> jax.Array:
    """The longest certified chain of each tile: int32[g, row tiles, column tiles]."""
    product = _norms(a)[:, :, None, :] * _norms(b)[:, None, :, :]
    certified = (product < np.float32(CERTIFIED_BELOW)).at[..., -1].set(True)  # chains of 2 cannot overflow
    return jnp.asarray(CHAINS)[jnp.argmax(certified, axis=-1)]  # the first is the longest


def _norms(x: jax.Array) -> jax.Array:
    """Norm of each tile for every chain length, as defined at `CHAINS`: float32[g, tiles, len(CHAINS)]."""
    pairs = (x * x).astype(jnp.uint32).reshape(*x.shape[:3], -1, 2).sum(axis=-1, dtype=jnp.uint32)
    squares = (pairs >> NORM_SHIFT).astype(jnp.int32) + 1
    return jnp.stack([_largest_sum(squares, n // 2) for n in CHAINS], axis=-1).astype(jnp.float32)


def _largest_sum(squares: jax.Array, length: int) -> jax.Array:
    sums = squares.reshape(*squares.shape[:3], -1, length).sum(axis=-1, dtype=jnp.int32)
    return sums.max(axis=(2, 3))
