"""`Plan`: a contraction as nested loops with strides, ready to run.

C[g, m, n] = 2^(ea + eb) · Σ_k A[g, m, k] · B[g, k, n], where each of g, m, n and k stands for several
nested loops and every operand is addressed by strides. Strides express overlapping windows, and a bounds
check on A expresses padding. `dfpjax.numbers.contraction.reference` and the native kernels in `cpp_ops` run
the same plan. A plan fixes everything that the result's bits depend on:

- the order of the contracted index, which follows A's axes in memory;
- the elements of each tile (m and n follow the order of the output's axes in memory);
- the number of splits of the contraction, which depends only on the shapes of one example, never on the
  number of threads;
- the algorithm: the products themselves, or those of a Winograd algorithm.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace

from dfpjax.numbers.contraction.algorithm import (
    TILES,
    Algorithm,
    has_tiles_along_k,
    objection,
    tiles_along,
    unwindowed,
)
from dfpjax.numbers.contraction.contraction import Contraction, Shape
from dfpjax.numbers.contraction.grid import Grid, make_grid
from dfpjax.numbers.contraction.loops import Loops, extent, gathers_rhs, loops_of
from dfpjax.numbers.format.blocks import Blocks

ENCODING_VERSION = 3

ROW_TILE = 6
"""Rows of a tile, the unit for which the chain length is certified."""
COLUMN_TILE = 64
"""Columns of a panel, unless an operand is in blocks."""
BLOCKS_COLUMN_TILE = 32
"""Columns of a panel if an operand is in blocks."""
BLOCK = 256
"""Contracted elements of a block. Chains do not cross blocks."""
TILES_BLOCK = 128
"""Winograd tiles of a block, where the contracted elements are tiles."""
CHAINS = (256, 128, 64, 32, 16, 8, 4, 2)
"""Chain lengths in descending order; a tile takes the first certified one. Length 2 is safe for any data. A
tile's norm for a length is the largest sum of squares over its rows and the aligned chains of that length. If
an operand is in blocks, this holds for each segment, with lengths up to `SEGMENT`."""
NORM_SHIFT = 8
"""A norm sums floor((x² + y²) / 2^NORM_SHIFT) + 1 over pairs of neighbours. The norm of a whole block fits an
int32."""
CERTIFIED_BELOW = float(2**46 - 2**30)
"""A chain is certified if the product of its two norms is below this bound: (2^31 / 2^NORM_SHIFT)² minus a
margin for float32."""

SEGMENT = 32
"""Contracted elements of a segment of a block. If an operand is in blocks, mantissas are aligned within
segments, and each segment has a chain length of its own."""
SEGMENTS = BLOCK // SEGMENT

_SPLIT_UNITS = 32
_SPLITS_MULTIPLE = 16
_MIN_BLOCKS_PER_SPLIT = 4
_ROWS_PER_UNIT = 96
_LANES_PER_UNIT = 256
_ROWS_PER_RANGE = 264
_COLUMNS_PER_RANGE = 256
_MIN_TILE_BLOCKS = 2


@dataclass(frozen=True, kw_only=True)
class Part(Loops):
    """One strided contraction. A plan has several if a stride divides the output into phases."""

    blocks_per_split: int
    """Blocks of k in each split; of the transformed index if there are tiles of a Winograd algorithm."""
    tile: int = 0
    """Outputs per axis of a Winograd tile; 0 if the part is computed directly."""
    tiles_along_k: bool = False
    """Whether the loops that count tiles are those of k, as in wgrad, rather than those of m."""

    @property
    def taps(self) -> int:
        """Taps per axis of a part with tiles."""
        return next(d.extent for d in (self.m if self.tiles_along_k else self.k) if d.window >= 0)

    @property
    def points(self) -> int:
        """Points per axis of a Winograd tile."""
        return self.tile + self.taps - 1

    def encode(self) -> tuple[int, ...]:
        mode = 2 + self.tiles_along_k if self.tile else int(self.lanes)
        dims = [d.encode() for d in (*self.g, *self.m, *self.n, *self.k)]
        return (
            mode, self.base_a, self.base_b, self.base_c, self.blocks_per_split, self.tile,
            len(self.g), len(self.m), len(self.n), len(self.k), len(self.bounds),
            *itertools.chain.from_iterable(dims),
            *itertools.chain.from_iterable((w.size, w.a, w.offset) for w in self.bounds),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A contraction's loops. The parts write disjoint pieces of the output and together cover all of it."""

    swapped: bool
    """Whether A is the contraction's rhs and B its lhs, rather than the reverse."""
    out_shape: Shape
    grids: tuple[Grid, Grid] | None
    """The exponents of A and of B, if one of them is in blocks or the algorithm is Winograd's. Otherwise
    loops address the exponents."""
    parts: tuple[Part, ...]

    def encode(self) -> tuple[int, ...]:
        """The integers that the native kernel takes (see `cpp_ops/plan/plan.h`)."""
        return (
            ENCODING_VERSION,
            len(self.grids or ()),
            *itertools.chain.from_iterable(grid.encode() for grid in self.grids or ()),
            len(self.parts),
            *itertools.chain.from_iterable(p.encode() for p in self.parts),
        )


@dataclass(frozen=True, kw_only=True)
class DeferredPlan:
    """Stands for the plan of operands with symbolic extents. It is made when the program runs, for the
    extents that its operands have then (`dfpjax.operations.shaped`)."""

    out_shape: Shape
    """With symbolic extents."""
    text: str
    """What there is to know beside the shapes."""


@functools.lru_cache(maxsize=4096)
def make_plan(
    contraction: Contraction,
    lhs_shape: Shape,
    rhs_shape: Shape,
    lhs_exponent: Shape,
    rhs_exponent: Shape,
    blocks: tuple[Blocks | None, Blocks | None] = (None, None),
    algorithm: Algorithm = "direct",
) -> Plan:
    """Plan a contraction.

    Arguments:
        contraction: the contraction to plan.
        lhs_shape, rhs_shape: the operands' shapes.
        lhs_exponent, rhs_exponent: shapes of the operands' exponents. Without blocks, they have the operands'
            ranks and extent 1 along axes that share an exponent, which contracted axes must. With blocks,
            they are (*axes that vmap added, *blocks.counts(the operand's other axes)).
        blocks: the size of lhs's and of rhs's blocks, or None for each.
        algorithm: how to compute it. `objection` says what the Winograd algorithms do not take.

    Raises:
        ValueError: if an exponent varies along a contracted axis, has not the shape of the blocks, or varies
            along an axis that vmap has not added while the other operand is in blocks; or if the algorithm
            does not take the contraction.
    """
    operands = (lhs_shape, rhs_shape, lhs_exponent, rhs_exponent)
    tile = TILES.get(algorithm, 0)
    if tile and (reason := objection(contraction, *operands, blocks, algorithm=algorithm)) is not None:
        raise ValueError(f"{algorithm} is not possible: {reason}")
    if gathers_rhs(contraction, lhs_shape, rhs_shape):
        swapped = (rhs_shape, lhs_shape, rhs_exponent, lhs_exponent)
        plan = make_plan(contraction.swap(), *swapped, blocks[::-1], algorithm)
        return replace(plan, swapped=not plan.swapped)
    grids = None
    if any(blocks) or tile:
        grids = (
            make_grid(contraction, lhs_shape, lhs_exponent, blocks[0]),
            make_grid(contraction.swap(), rhs_shape, rhs_exponent, blocks[1]),
        )
        operands = (lhs_shape, rhs_shape, (1,) * len(lhs_shape), (1,) * len(rhs_shape))
    make_part = functools.partial(_winograd_part, tile) if tile else _direct_part
    loops = loops_of(contraction, *operands, keep_windows=bool(tile))
    parts = tuple(make_part(contraction, of_phase) for of_phase in loops)
    return Plan(swapped=False, out_shape=contraction.out_shape, grids=grids, parts=parts)


def _direct_part(c: Contraction, loops: Loops) -> Part:
    groups = _groups(c, loops)
    if loops.lanes:  # the groups in the lanes share a task
        groups = -(-groups // _LANES_PER_UNIT)
    blocks_per_split = _blocks_per_split(groups, extent(loops.m), extent(loops.n), extent(loops.k), BLOCK)
    return Part(**vars(loops.merged()), blocks_per_split=blocks_per_split)


def _winograd_part(tile: int, c: Contraction, loops: Loops) -> Part:
    loops = loops.merged(keep_windows=True)
    along_k = has_tiles_along_k(loops)
    if along_k:
        channels, tiles = extent(unwindowed(loops.m)), tiles_along(loops.k, tile)
        ranges = (
            _groups(c, loops) * -(-channels // _ROWS_PER_RANGE) * -(-extent(loops.n) // _COLUMNS_PER_RANGE)
        )
        blocks = -(-tiles // TILES_BLOCK)
        of_split = -(-blocks // min(-(-_SPLITS_MULTIPLE // ranges), -(-blocks // _MIN_TILE_BLOCKS)))
    else:  # the transformed sums of all blocks are transformed back together
        of_split = max(1, -(-extent(unwindowed(loops.k)) // BLOCK))
    return Part(**vars(loops), blocks_per_split=of_split, tile=tile, tiles_along_k=along_k)


def _groups(c: Contraction, loops: Loops) -> int:
    """The extent of g in one example of vmap."""
    sizes = dict(zip(c.out, c.out_shape, strict=True))
    return extent(loops.g) // max(1, math.prod(sizes[label] for label in c.mapped))


def _blocks_per_split(g: int, m: int, n: int, k: int, block: int) -> int:
    """Blocks in each split. A long contraction with a small output is split so that every core has work. The
    result depends only on the shapes of one example."""
    blocks = max(1, -(-k // block))
    units = max(1, g * -(-m // _ROWS_PER_UNIT) * -(-n // COLUMN_TILE))
    splits = -(-_SPLIT_UNITS // units)
    # A multiple of _SPLITS_MULTIPLE splits distributes evenly over the threads by itself, so each split packs
    # its part of the operands once.
    if splits > 2:
        splits = -(-splits // _SPLITS_MULTIPLE) * _SPLITS_MULTIPLE
    splits = min(splits, max(1, blocks // _MIN_BLOCKS_PER_SPLIT))
    return -(-blocks // splits)
