"""`Loops`: a contraction as nested loops, in which every operand is addressed by strides.

The relation of a window decides at which of A's coordinates an output and a tap meet. If its coefficients
divide the output into phases, each phase has loops of its own.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dfpjax.numbers.contraction.contraction import Contraction, Shape, Window

_MIN_LANES = 8


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

    def encode(self) -> tuple[int, ...]:
        return (
            self.extent, self.a, self.b, self.c, self.exponent_a, self.exponent_b, self.window, self.coef
        )  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """A windowed axis of A with stride a. Its coordinate is offset + Σ coef · index; outside [0, size) it is
    padding."""

    size: int
    a: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class Loops:
    """The loops of one strided contraction."""

    base_a: int
    base_b: int
    base_c: int
    g: tuple[Dim, ...]
    m: tuple[Dim, ...]
    n: tuple[Dim, ...]
    k: tuple[Dim, ...]
    bounds: tuple[Bounds, ...]
    """Of the windowed axes, the outermost one of A first."""
    lanes: bool
    """Depthwise: the innermost loop of g runs along SIMD lanes. Every certified chain has length 2 or, if an
    operand is in blocks, is one product. Fixed chains have the length that is wanted."""

    def merged(self, *, keep_windows: bool = False) -> "Loops":
        """The same elements in the same order with as few loops as possible.

        Arguments:
            keep_windows: whether a loop that moves a window remains even if it runs once.
        """
        groups = {name: _merge(getattr(self, name), keep_windows) for name in ("g", "m", "n", "k")}
        return replace(self, **groups)


def extent(dims) -> int:
    """How many times the innermost of these loops runs."""
    return math.prod(d.extent for d in dims)


def gathers_rhs(c: Contraction, lhs_shape: Shape, rhs_shape: Shape) -> bool:
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


def loops_of(
    c: Contraction,
    lhs_shape: Shape,
    rhs_shape: Shape,
    lhs_exponent: Shape,
    rhs_exponent: Shape,
    *,
    keep_windows: bool = False,
) -> Iterator[Loops]:
    """The loops of each phase of a contraction whose lhs is A, not merged.

    Arguments:
        c, lhs_shape, rhs_shape, lhs_exponent, rhs_exponent: as for `make_plan`, without blocks.
        keep_windows: whether a window that never reaches the padding remains one. Otherwise it becomes plain
            strides. One with a single tap, or a single output, always does.
    """
    strides = dict(zip(c.lhs, _strides(lhs_shape), strict=True))
    windows = sorted(c.windows, key=lambda w: -strides[w.lhs])
    phases = [_phases(w, c, lhs_shape, rhs_shape) for w in windows]
    for phase in itertools.product(*phases):
        pairs = [*zip(windows, phase, strict=True)]
        yield _loops(c, lhs_shape, rhs_shape, lhs_exponent, rhs_exponent, pairs, keep_windows)


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


def _phases(w: Window, c: Contraction, lhs_shape: Shape, rhs_shape: Shape) -> list[_Phase]:
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


def _loops(
    c: Contraction,
    lhs_shape: Shape,
    rhs_shape: Shape,
    lhs_exponent: Shape,
    rhs_exponent: Shape,
    windows: list[tuple[Window, _Phase]],
    keep_windows: bool,
) -> Loops:
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
    for w, phase in windows:
        base["b"] += phase.tap_start * b[w.rhs] if phase.tap_extent else 0
        base["c"] += phase.out_start * out[w.out]
        row = Dim(phase.out_extent, c=out[w.out] * phase.out_step)
        tap = Dim(phase.tap_extent, b=b[w.rhs] * phase.tap_step)
        reach_row = phase.out_coef * max(0, phase.out_extent - 1)
        reach_tap = phase.tap_coef * max(0, phase.tap_extent - 1)
        lowest = phase.offset + min(0, reach_row) + min(0, reach_tap)
        highest = phase.offset + max(0, reach_row) + max(0, reach_tap)
        kept = keep_windows and min(phase.out_extent, phase.tap_extent) > 1
        if phase.tap_extent == 0:
            pass  # nothing of A is read
        elif lowest >= 0 and highest < sizes[w.lhs] and not kept:  # never in the padding
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
    return Loops(
        base_a=base["a"], base_b=base["b"], base_c=base["c"],
        g=tuple(g), m=tuple(m), n=tuple(n), k=tuple(k),
        bounds=tuple(bounds),
        lanes=_run_in_lanes(g, n, innermost_g in c.mapped),
    )  # fmt: skip


def _run_in_lanes(g: list[Dim], n: list[Dim], innermost_is_mapped: bool) -> bool:
    innermost = next((d for d in reversed(g) if d.extent > 1), None)
    return (
        innermost is not None
        and not innermost_is_mapped  # an example must be computed the same way with and without vmap
        and extent(n) == 1
        and innermost.extent >= _MIN_LANES
        and (innermost.a, innermost.b, innermost.c) == (1, 1, 1)
    )


def _merge(dims: tuple[Dim, ...], keep_windows: bool) -> tuple[Dim, ...]:
    """Join neighbouring loops whose strides in every tensor are those of one longer loop. The order of the
    elements does not change."""

    def continues(outer: Dim, inner: Dim) -> bool:
        strides = ("a", "b", "c", "exponent_a", "exponent_b")
        unbounded = outer.window < 0 and inner.window < 0
        return unbounded and all(getattr(outer, s) == getattr(inner, s) * inner.extent for s in strides)

    merged: list[Dim] = []
    for inner in dims:
        if inner.extent == 1 and not (keep_windows and inner.window >= 0):
            continue
        if merged and continues(merged[-1], inner):
            merged[-1] = replace(inner, extent=merged[-1].extent * inner.extent)
        else:
            merged.append(inner)
    return tuple(merged)
