"""The arithmetic of a plan in plain JAX. The native kernels must reproduce it bit for bit.

The operations lower to it on platforms without native kernels. It materializes both operands as matrices, so
it serves study, tests and portability, not speed.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.numbers.contraction.plan import (
    BLOCK,
    CERTIFIED_BELOW,
    CHAINS,
    COLUMN_TILE,
    NORM_SHIFT,
    ROW_TILE,
    Part,
    Plan,
)
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
        total, count = _sum(part, a.ravel(), b.ravel(), length)
        counts.append(count)
        free = (*part.g, *part.m, *part.n)
        exponent = _take(exponent_a, free, "exponent_a") + _take(exponent_b, free, "exponent_b")
        address = part.base_c + _addresses(free, "c")
        out = out.at[address.ravel()].set(scale_by_power_of_two(total.reshape(*g, *m, *n), exponent).ravel())
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


def _matrix(flat: jax.Array, outer, rows, columns, field: str, base: int, bounds=()) -> jax.Array:
    """Elements of an operand as int32[outer, rows, columns], with zeros for the padding."""
    dims = (*outer, *rows, *columns)
    address, inside = _addresses(dims, field, base), np.asarray(True)
    for window, bound in enumerate(bounds):
        coordinate = _coordinates(dims, window, bound.offset)
        address = address + coordinate * bound.a
        inside = inside & (coordinate >= 0) & (coordinate < bound.size)
    shape = tuple(math.prod(d.extent for d in group) for group in (outer, rows, columns))
    if 0 in shape:
        return jnp.zeros(shape, jnp.int32)
    elements = jnp.where(inside, flat[np.where(inside, address, 0)].astype(jnp.int32), 0)
    return elements.reshape(shape)


def _pad_to_multiple(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)


def _sum(part: Part, a: jax.Array, b: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Σ_k A · B as float32[g, m, n], not yet scaled, and the counts for each g as in `_run`."""
    a = _matrix(a, part.g, part.m, part.k, "a", part.base_a, part.bounds)
    b = _matrix(b, part.g, part.n, part.k, "b", part.base_b)
    g, m, k = a.shape
    n = b.shape[1]
    counts = jnp.zeros(g, jnp.int32) if length else jnp.zeros((g, len(CHAINS)), jnp.float32)
    if k == 0:
        return jnp.zeros((g, m, n), jnp.float32), counts
    macs = np.einsum("k,m,n->kmn", _extents(k, BLOCK), _extents(m, ROW_TILE), _extents(n, COLUMN_TILE))
    a = _pad_to_multiple(_pad_to_multiple(a, 1, ROW_TILE), 2, BLOCK).reshape(
        g, -1, ROW_TILE, -(-k // BLOCK), BLOCK
    )
    b = _pad_to_multiple(_pad_to_multiple(b, 1, COLUMN_TILE), 2, BLOCK)
    b = b.reshape(g, -1, COLUMN_TILE, -(-k // BLOCK), BLOCK)
    a, b = jnp.moveaxis(a, 3, 0), jnp.moveaxis(b, 3, 0)  # blocks first

    zero = jnp.zeros((g, a.shape[2] * ROW_TILE, b.shape[2] * COLUMN_TILE), jnp.float32)
    total = None
    add_block = functools.partial(_add_block_fixed_chain, length) if length else _add_block
    for start in range(0, a.shape[0], part.blocks_per_split):
        stop = start + part.blocks_per_split
        (partial, counts), _ = lax.scan(
            lambda sums, block: (add_block(part, sums, *block), None),
            (zero, counts),
            (a[start:stop], b[start:stop], macs[start:stop].astype(np.float32)),
        )
        total = partial if total is None else total + partial
    return total[:, :m, :n], counts


def _extents(size: int, step: int) -> np.ndarray:
    """Extents of the tiles or blocks that divide an axis."""
    starts = np.arange(0, size, step)
    return np.minimum(starts + step, size) - starts


def _add_block(part: Part, sums, a: jax.Array, b: jax.Array, macs: jax.Array):
    """Add one block's certified chain sums to the running sums, and its products to the counts.

    a is int32[g, row tiles, 6, 256], b int32[g, column tiles, 64, 256]. macs is float32[row tiles, column
    tiles], the number of multiply-accumulates in each tile.
    """
    running, counts = sums
    g = a.shape[0]
    tiles = (g, *macs.shape)
    chain = jnp.full(tiles, CHAINS[-1]) if part.lanes else _chain_length(a, b)
    counts = counts + jnp.where(chain[..., None] == np.array(CHAINS), macs[..., None], 0).sum(axis=(1, 2))
    chain = jnp.repeat(jnp.repeat(chain, ROW_TILE, axis=1), COLUMN_TILE, axis=2)
    a_pairs = jnp.moveaxis(a.reshape(g, -1, BLOCK // 2, 2), 2, 0)
    b_pairs = jnp.moveaxis(b.reshape(g, -1, BLOCK // 2, 2), 2, 0)

    def add_pair(sums, pair):
        running, exact = sums
        end, a, b = pair
        exact = exact + jnp.einsum("gmk,gnk->gmn", a, b, preferred_element_type=jnp.int32)
        ends = end % chain == 0
        # If all four mantissas of a chain of 2 are −32768 (which `quantize` never gives), the sum 2³¹ wraps
        # to −2³¹. No other chain sums to −2³¹.
        total = jnp.where(exact == np.iinfo(np.int32).min, 2.0**31, exact.astype(jnp.float32))
        running = jnp.where(ends, running + total, running)
        return (running, jnp.where(ends, 0, exact)), None

    ends = jnp.arange(2, BLOCK + 1, 2)
    sums = (running, jnp.zeros(running.shape, jnp.int32))
    (running, _), _ = lax.scan(add_pair, sums, (ends, a_pairs, b_pairs))
    return running, counts


def _add_block_fixed_chain(length: int, part: Part, sums, a: jax.Array, b: jax.Array, macs: jax.Array):
    """Add one block's saturated chain sums to the running sums, and the number of saturated chains to the
    counts.

    a, b and macs are as for `_add_block`. A's mantissas are split into two bytes, high · 2^8 + low, so that
    the sums of 256 products with either byte fit an int32.
    """
    g = a.shape[0]
    chains = [jnp.moveaxis(x.reshape(g, -1, BLOCK // length, length), 2, 0) for x in (a, b)]
    dot = functools.partial(jnp.einsum, "gmk,gnk->gmn", preferred_element_type=jnp.int32)

    def add_chain(sums, chain):
        running, saturated = sums
        a, b = chain
        low = dot(a & 255, b)
        high = dot(a >> 8, b) + (low >> 8)
        exact = jnp.left_shift(high, 8) | (low & 255)
        above, below = high >= 1 << 23, high < -(1 << 23)
        limits = np.iinfo(np.int32)
        exact = jnp.where(above, limits.max, jnp.where(below, limits.min, exact))
        saturated = saturated + (above | below).sum(axis=(1, 2), dtype=jnp.int32)
        return (running + exact.astype(jnp.float32), saturated), None

    sums, _ = lax.scan(add_chain, sums, tuple(chains))
    return sums


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
