"""The arithmetic of a plan in plain JAX. The native kernels must reproduce it bit for bit.

The operations lower to it on platforms without native kernels. It materializes both operands as matrices, so
it serves study, tests and portability, not speed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.numbers.contraction.alignment import ABSENT, Aligned, align, product_exponents
from dfpjax.numbers.contraction.chains import (
    add_chains,
    certified_lengths,
    extents,
    macs_by_length,
    tiled,
)
from dfpjax.numbers.contraction.elements import Elements, addresses
from dfpjax.numbers.contraction.grid import Grid
from dfpjax.numbers.contraction.lanes import sum_in_lanes
from dfpjax.numbers.contraction.plan import (
    BLOCK,
    BLOCKS_COLUMN_TILE,
    CHAINS,
    COLUMN_TILE,
    ROW_TILE,
    SEGMENT,
    SEGMENTS,
    Part,
    Plan,
)
from dfpjax.numbers.contraction.running import UNSET, Running, combined
from dfpjax.numbers.contraction.tiles import Tiles
from dfpjax.numbers.contraction.winograd import sum_in_tiles
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
        length: products in a chain, one of `CHAINS`. Chains of operands in blocks have at most `SEGMENT`.
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
        free = (*part.g, *part.m, *part.n)
        if part.tile:
            total, exponent, count = sum_in_tiles(part, plan.grids, a.ravel(), b.ravel(), exponents)
            address = Tiles.of(part).outputs.elements().places(beyond=out.size)
        elif part.lanes and plan.grids is not None and not length:
            total, exponent, count = sum_in_lanes(part, plan.grids, a.ravel(), b.ravel(), exponents)
            address = part.base_c + addresses(free, "c")
        else:
            total, exponent, count = _sum(part, plan.grids, a.ravel(), b.ravel(), exponents, length)
            address = part.base_c + addresses(free, "c")
        counts.append(count)
        total, exponent = total.reshape(address.shape), exponent.reshape(address.shape)
        if plan.grids is None:
            exponent += _take(exponent_a, free, "exponent_a") + _take(exponent_b, free, "exponent_b")
        scaled = jnp.where(jnp.isnan(total), total, scale_by_power_of_two(total, exponent))
        out = out.at[address.ravel()].set(scaled.ravel(), mode="drop")
    return out.reshape(plan.out_shape), counts


def _take(exponent: jax.Array, dims, field: str) -> jax.Array:
    return jnp.ravel(exponent)[addresses(dims, field)]


def _aligned(elements: Elements, values, grid: Grid | None, exponent, *, rows: int, panels: bool) -> Aligned:
    """The tiles of an operand, with exponents that are zero unless it is in blocks."""
    mantissas = tiled(elements.take(values), rows)
    if grid is not None:
        exponent = tiled(elements.take(exponent, ABSENT, grid.index), rows, ABSENT)
        return align(mantissas, exponent, panels=panels, dithered=grid.dithered)
    g, tiles, _, blocks, _ = mantissas.shape
    return Aligned(
        mantissas,
        jnp.zeros((g, tiles, 1 if panels else rows, blocks, SEGMENTS), jnp.int32),
        jnp.zeros((g, tiles, rows, blocks), bool),
    )


def _sum(
    part: Part, grids, a: jax.Array, b: jax.Array, exponents, length: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Σ_k A · B as float32[g, m, n] and the power of two that it is to be multiplied by, int32 of the same
    shape; and the counts for each g as in `_run`."""
    elements_a, elements_b = Elements.of_operands(part)
    g, m, k = elements_a.address.shape
    n = elements_b.address.shape[1]
    counts = jnp.zeros(g, jnp.int32) if length else jnp.zeros((g, len(CHAINS)), jnp.float32)
    if k == 0:
        return jnp.zeros((g, m, n), jnp.float32), jnp.zeros((g, m, n), jnp.int32), counts
    columns, stretch = (COLUMN_TILE, BLOCK) if grids is None else (BLOCKS_COLUMN_TILE, SEGMENT)
    of_k = extents(k, stretch, BLOCK).reshape(-1, BLOCK // stretch)
    macs = np.einsum("bk,m,n->bkmn", of_k, extents(m, ROW_TILE), extents(n, columns))
    grid_a, grid_b = grids or (None, None)
    of_a, of_b = exponents or (None, None)
    tiles_a = _aligned(elements_a, a, grid_a, of_a, rows=ROW_TILE, panels=False)
    tiles_b = _aligned(elements_b, b, grid_b, of_b, rows=columns, panels=True)

    rows, panels = -(-m // ROW_TILE) * ROW_TILE, -(-n // columns)
    nothing = Running(
        jnp.zeros((g, rows, panels * columns), jnp.float32), jnp.full((g, rows, panels), UNSET, jnp.int32)
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
    exponent = jnp.repeat(exponent, columns, axis=2)
    return total[:, :m, :n], exponent[:, :m, :n], counts


def _add_block(part: Part, length: int, sums, a: Aligned, b: Aligned, macs: jax.Array):
    """Add one block's chain sums to the running sums, and to the counts its products, or with chains of a
    given length its saturated chains.

    The mantissas of a are int32[g, row tiles, 6, 256], those of b int32[g, column tiles, columns, 256]. macs
    is float32[stretches, row tiles, column tiles], the number of multiply-accumulates in each tile, for each
    stretch of the block. Stretches have chain lengths of their own.
    """
    running, counts = sums
    g = b.mantissas.shape[0]
    stretches = macs.shape[0]
    if length or part.lanes:
        chain = jnp.full((stretches, g, *macs.shape[1:]), min(length or CHAINS[-1], BLOCK // stretches))
    else:
        chain = certified_lengths(a.mantissas, b.mantissas, stretches)
    of_a, of_b = (jnp.moveaxis(x.exponent.reshape(g, -1, SEGMENTS), 2, 0) for x in (a, b))
    of_a, of_b = of_a[:, :, :, None], of_b[:, :, None]
    running, factors = running.rebased(product_exponents(of_a, of_b))

    goes_on = part.lanes and not length  # these sums do not begin anew with each block
    start = running.total if goes_on else jnp.zeros(running.total.shape, jnp.float32)
    total, saturated = add_chains(start, a.mantissas, b.mantissas, chain, factors, saturate=bool(length))
    total = total if goes_on else running.total + total
    lost = a.lost.reshape(g, -1, 1) | b.lost.reshape(g, 1, -1)
    running = Running(jnp.where(lost, jnp.nan, total), running.base)
    return running, counts + (saturated if length else macs_by_length(chain, macs))
