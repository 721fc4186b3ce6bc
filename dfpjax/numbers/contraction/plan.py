"""`Plan`: a contraction as nested loops with strides, ready to run.

C[g, m, n] = 2^(ea + eb) · Σ_k A[g, m, k] · B[g, k, n], where each of g, m, n and k stands for several
nested loops and every operand is addressed by strides. Strides express overlapping windows, and a bounds
check on A expresses padding. `dfpjax.numbers.contraction.reference` and the native kernels in `cpp_ops` run
the same plan. A plan fixes everything that the result's bits depend on:

- the order of the contracted index, which follows A's axes in memory;
- the elements of each tile (m and n follow the order of the output's axes in memory);
- the number of splits of the contraction, which depends only on the shapes of one example, never on the
  number of threads.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace

from dfpjax.numbers.contraction.contraction import Contraction, Shape
from dfpjax.numbers.contraction.grid import Grid, make_grid
from dfpjax.numbers.format.blocks import Blocks

ENCODING_VERSION = 2

ROW_TILE = 6
"""Rows of a tile, the unit for which the chain length is certified."""
COLUMN_TILE = 64
"""Columns of a panel, unless an operand is in blocks."""
BLOCKS_COLUMN_TILE = 32
"""Columns of a panel if an operand is in blocks."""
BLOCK = 256
"""Contracted elements of a block. Chains do not cross blocks."""
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
_MIN_LANES = 8
_LANES_PER_UNIT = 256


@dataclass(frozen=True)
class Dim:
    """One loop of a plan: its extent and the stride of each tensor."""

    extent: int
    a: int = 0
    b: int = 0
    c: int = 0
    exponent_a: int = 0
    exponent_b: int = 0
    window: int = -1
    coef: int = 0

    def _encode(self) -> tuple[int, ...]:
        return (
            self.extent, self.a, self.b, self.c, self.exponent_a, self.exponent_b, self.window, self.coef
        )  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """A windowed axis of A. Its coordinate is offset + Σ coef · index; outside [0, size) it is padding."""

    size: int
    a: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """One strided contraction. A plan has several if a stride divides the output into phases."""

    lanes: bool
    """Depthwise: the innermost loop of g runs along SIMD lanes. Every certified chain has length 2 or, if an
    operand is in blocks, is one product. Fixed chains have the length that is wanted."""
    base_a: int
    base_b: int
    base_c: int
    blocks_per_split: int
    g: tuple[Dim, ...]
    m: tuple[Dim, ...]
    n: tuple[Dim, ...]
    k: tuple[Dim, ...]
    bounds: tuple[Bounds, ...]

    def _encode(self) -> tuple[int, ...]:
        dims = [d._encode() for d in (*self.g, *self.m, *self.n, *self.k)]
        return (
            int(self.lanes), self.base_a, self.base_b, self.base_c, self.blocks_per_split,
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
    """The exponents of A and of B, if one of them is in blocks. Otherwise loops address the exponents."""
    parts: tuple[Part, ...]

    def encode(self) -> tuple[int, ...]:
        """The integers that the native kernel takes (see `cpp_ops/plan/plan.h`)."""
        return (
            ENCODING_VERSION,
            len(self.grids or ()),
            *itertools.chain.from_iterable(grid.encode() for grid in self.grids or ()),
            len(self.parts),
            *itertools.chain.from_iterable(p._encode() for p in self.parts),
        )


@functools.lru_cache(maxsize=4096)
def make_plan(
    contraction: Contraction,
    lhs_shape: Shape,
    rhs_shape: Shape,
    lhs_exponent: Shape,
    rhs_exponent: Shape,
    blocks: tuple[Blocks | None, Blocks | None] = (None, None),
) -> Plan:
    """Plan a contraction.

    Arguments:
        contraction: the contraction to plan.
        lhs_shape, rhs_shape: the operands' shapes.
        lhs_exponent, rhs_exponent: shapes of the operands' exponents. Without blocks, they have the operands'
            ranks and extent 1 along axes that share an exponent, which contracted axes must. With blocks,
            they are (*axes that vmap added, *blocks.counts(the operand's other axes)).
        blocks: the size of lhs's and of rhs's blocks, or None for each.

    Raises:
        ValueError: if an exponent varies along a contracted axis, has not the shape of the blocks, or varies
            along an axis that vmap has not added while the other operand is in blocks.
    """
    if _gathers_rhs(contraction, lhs_shape, rhs_shape):
        plan = make_plan(contraction.swap(), rhs_shape, lhs_shape, rhs_exponent, lhs_exponent, blocks[::-1])
        return replace(plan, swapped=not plan.swapped)
    grids = None
    if any(blocks):
        swapped = contraction.swap()
        grids = (
            make_grid(contraction, lhs_shape, lhs_exponent, blocks[0]),
            make_grid(swapped, rhs_shape, rhs_exponent, blocks[1]),
        )
        lhs_exponent, rhs_exponent = (1,) * len(lhs_shape), (1,) * len(rhs_shape)
    windows = contraction.windows
    phases = [_phases(w, contraction, lhs_shape, rhs_shape) for w in windows]
    operands = (lhs_shape, rhs_shape, lhs_exponent, rhs_exponent)
    parts = tuple(_part(contraction, *operands, phase) for phase in itertools.product(*phases))
    return Plan(swapped=False, out_shape=contraction.out_shape, grids=grids, parts=parts)


def _gathers_rhs(c: Contraction, lhs_shape: Shape, rhs_shape: Shape) -> bool:
    """Whether rhs should be A, the operand that is gathered: the indices of the output and of B determine
    A's position in a window.

    The windows of B are contracted, so B should have the smaller ones. If they are equal, B should have the
    output's innermost axis, along which the kernel writes vectors.
    """
    lhs_window = math.prod(lhs_shape[c.lhs.index(w.lhs)] for w in c.windows)
    rhs_window = math.prod(rhs_shape[c.rhs.index(w.rhs)] for w in c.windows)
    if lhs_window != rhs_window:
        return rhs_window > lhs_window
    owned = [
        label for label, size in zip(c.out, c.out_shape, strict=True) if size > 1 and label not in c.mapped
    ]
    innermost = owned[-1] if owned else None
    windowed = {w.out for w in c.windows}
    return innermost in c.lhs and innermost not in c.rhs and innermost not in windowed


@dataclass(frozen=True)
class _Phase:
    """A phase of one window: output out_start + out_step·i and tap tap_start + tap_step·j meet at A's
    coordinate offset + out_coef·i + tap_coef·j."""

    out_start: int
    out_step: int
    out_extent: int
    tap_start: int
    tap_step: int
    tap_extent: int
    offset: int
    out_coef: int
    tap_coef: int


def _phases(w, c: Contraction, lhs_shape: Shape, rhs_shape: Shape) -> list[_Phase]:
    """Solve lhs_coef · h = offset − out_coef · i − rhs_coef · r for integer h.

    If |lhs_coef| > 1 (dgrad of a strided convolution), only some taps meet an output. Which taps they are
    repeats periodically along the outputs, and each phase of the period is a dense contraction. So the kernel
    never multiplies an inserted zero.
    """
    sign = 1 if w.lhs_coef > 0 else -1
    alpha, beta, gamma, offset = abs(w.lhs_coef), -sign * w.out_coef, -sign * w.rhs_coef, sign * w.offset
    outs, taps = c.out_shape[c.out.index(w.out)], rhs_shape[c.rhs.index(w.rhs)]
    out_step, tap_step = alpha // math.gcd(alpha, beta), alpha // math.gcd(alpha, gamma)
    phases = []
    for p in range(min(out_step, outs)):
        hits = [q for q in range(tap_step) if (beta * p + gamma * q + offset) % alpha == 0]
        q = hits[0] if hits else taps  # no tap meets these outputs: an empty sum
        phases.append(
            _Phase(
                out_start=p,
                out_step=out_step,
                out_extent=-(-(outs - p) // out_step),
                tap_start=min(q, taps),
                tap_step=tap_step,
                tap_extent=max(0, -(-(taps - q) // tap_step)),
                offset=(beta * p + gamma * q + offset) // alpha,
                out_coef=beta * out_step // alpha,
                tap_coef=gamma * tap_step // alpha,
            )
        )
    return phases


def _strides(shape: Shape) -> list[int]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def _exponent_strides(exponent: Shape) -> list[int]:
    return [stride if size > 1 else 0 for stride, size in zip(_strides(exponent), exponent, strict=True)]


def _part(
    c: Contraction,
    lhs_shape,
    rhs_shape,
    lhs_exponent,
    rhs_exponent,
    phases: tuple[_Phase, ...],
) -> Part:
    sizes = dict(zip((*c.lhs, *c.rhs, *c.out), (*lhs_shape, *rhs_shape, *c.out_shape), strict=True))
    a = dict(zip(c.lhs, _strides(lhs_shape), strict=True))
    b = dict(zip(c.rhs, _strides(rhs_shape), strict=True))
    out = dict(zip(c.out, _strides(c.out_shape), strict=True))
    exponent_a = dict(zip(c.lhs, _exponent_strides(lhs_exponent), strict=True))
    exponent_b = dict(zip(c.rhs, _exponent_strides(rhs_exponent), strict=True))
    base = {"a": 0, "b": 0, "c": 0}

    # Windowed loops: the output's belongs to the rows (m), the tap's to the contracted index (k).
    bounds: list[Bounds] = []
    row_dims, tap_dims = {}, {}
    for w, phase in zip(c.windows, phases, strict=True):
        base["b"] += phase.tap_start * b[w.rhs] if phase.tap_extent else 0
        base["c"] += phase.out_start * out[w.out]
        row = Dim(phase.out_extent, c=out[w.out] * phase.out_step)
        tap = Dim(phase.tap_extent, b=b[w.rhs] * phase.tap_step)
        reach_row = phase.out_coef * max(0, phase.out_extent - 1)
        reach_tap = phase.tap_coef * max(0, phase.tap_extent - 1)
        lowest = phase.offset + min(0, reach_row) + min(0, reach_tap)
        highest = phase.offset + max(0, reach_row) + max(0, reach_tap)
        if phase.tap_extent == 0:
            pass  # nothing of A is read
        elif lowest >= 0 and highest < sizes[w.lhs]:  # never in the padding: plain strides
            base["a"] += phase.offset * a[w.lhs]
            row, tap = replace(row, a=phase.out_coef * a[w.lhs]), replace(tap, a=phase.tap_coef * a[w.lhs])
        else:
            row = replace(row, window=len(bounds), coef=phase.out_coef)
            tap = replace(tap, window=len(bounds), coef=phase.tap_coef)
            bounds.append(Bounds(size=sizes[w.lhs], a=a[w.lhs], offset=phase.offset))
        row_dims[w.out], tap_dims[w.lhs] = row, tap

    g, m, n, k = [], [], [], []
    innermost_g = None
    for label in c.out:
        if label in row_dims:
            m.append(row_dims[label])
            continue
        dim = Dim(
            sizes[label], a.get(label, 0), b.get(label, 0), out[label],
            exponent_a.get(label, 0), exponent_b.get(label, 0),
        )  # fmt: skip
        if label in c.mapped or (label in a and label in b):
            g.append(dim)
            innermost_g = label if dim.extent > 1 else innermost_g
        elif label in a:
            m.append(dim)
        else:
            n.append(dim)
    for label in c.lhs:
        if label not in out and (exponent_a[label] or exponent_b.get(label)):
            raise ValueError("an operand's exponent varies along a contracted axis")
        if label in tap_dims:
            k.append(tap_dims[label])
        elif label not in out:
            k.append(Dim(sizes[label], a[label], b[label]))

    lanes = _runs_in_lanes(g, n, innermost_g in c.mapped)
    examples = math.prod(sizes[label] for label in c.mapped)
    groups = _extent(g) // max(1, examples)
    if lanes:  # the groups in the lanes share a task
        groups = -(-groups // _LANES_PER_UNIT)
    return Part(
        lanes=lanes,
        base_a=base["a"], base_b=base["b"], base_c=base["c"],
        blocks_per_split=_blocks_per_split(groups, _extent(m), _extent(n), _extent(k)),
        g=_merge(g), m=_merge(m), n=_merge(n), k=_merge(k),
        bounds=tuple(bounds),
    )  # fmt: skip


def _runs_in_lanes(g: list[Dim], n: list[Dim], innermost_is_mapped: bool) -> bool:
    innermost = next((d for d in reversed(g) if d.extent > 1), None)
    return (
        innermost is not None
        and not innermost_is_mapped  # an example must be computed the same way with and without vmap
        and _extent(n) == 1
        and innermost.extent >= _MIN_LANES
        and (innermost.a, innermost.b, innermost.c) == (1, 1, 1)
    )


def _extent(dims) -> int:
    return math.prod(d.extent for d in dims)


def _blocks_per_split(g: int, m: int, n: int, k: int) -> int:
    """Blocks in each split. A long contraction with a small output is split so that every core has work. The
    result depends only on the shapes of one example."""
    blocks = max(1, -(-k // BLOCK))
    units = max(1, g * -(-m // _ROWS_PER_UNIT) * -(-n // COLUMN_TILE))
    splits = -(-_SPLIT_UNITS // units)
    # A multiple of _SPLITS_MULTIPLE splits distributes evenly over the threads by itself, so each split packs
    # its part of the operands once.
    if splits > 2:
        splits = -(-splits // _SPLITS_MULTIPLE) * _SPLITS_MULTIPLE
    splits = min(splits, max(1, blocks // _MIN_BLOCKS_PER_SPLIT))
    return -(-blocks // splits)


def _merge(dims: list[Dim]) -> tuple[Dim, ...]:
    """Join neighbouring loops whose strides in every tensor are those of one longer loop. The order of the
    elements does not change."""

    def continues(outer: Dim, inner: Dim) -> bool:
        strides = ("a", "b", "c", "exponent_a", "exponent_b")
        unbounded = outer.window < 0 and inner.window < 0
        return unbounded and all(getattr(outer, s) == getattr(inner, s) * inner.extent for s in strides)

    merged: list[Dim] = []
    for inner in dims:
        if inner.extent == 1:
            continue
        if merged and continues(merged[-1], inner):
            merged[-1] = replace(inner, extent=merged[-1].extent * inner.extent)
        else:
            merged.append(inner)
    return tuple(merged)
