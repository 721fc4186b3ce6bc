"""Which algorithm computes a contraction: its products themselves, or a Winograd algorithm with fewer.

A Winograd algorithm F(t × t, r × r) transforms tiles of t + r − 1 points per axis, so that t outputs of r
taps take t + r − 1 products instead of r·t. Tiles lie along the outputs (in fprop and dgrad) or along the
contracted index (in wgrad, where the outputs are the taps). "auto" takes what is expected to be fastest. That
is a function of shapes alone, those of one example of the whole contraction: a choice by the machine, its
threads or a shard would change the bits of results.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dfpjax.numbers.contraction.contraction import Contraction, Shape
from dfpjax.numbers.contraction.grid import make_grid
from dfpjax.numbers.contraction.loops import Dim, Loops, extent, gathers_rhs, loops_of
from dfpjax.numbers.format.blocks import Blocks

Algorithm = Literal["direct", "winograd2", "winograd4"]
RequestedAlgorithm = Literal["auto", "direct", "winograd2", "winograd4"]

TILES: dict[str, int] = {"winograd2": 2, "winograd4": 4}
"""Outputs per axis of each algorithm's tiles."""

TAPS = {"winograd2": (3, 5), "winograd4": (3,)}
"""Taps per axis of the windows that each algorithm takes."""
ALL_TAPS = tuple(sorted({taps for of_algorithm in TAPS.values() for taps in of_algorithm}))


class Choice(NamedTuple):
    """An algorithm, and why it is that one."""

    algorithm: Algorithm
    reason: str

    def __str__(self) -> str:
        return f"{self.algorithm}{':' if self.algorithm == 'direct' else ','} {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a Winograd algorithm takes, where each of its products counts as `product`, and the time of a
    direct one is 1."""

    product: float
    """The products themselves."""
    per_channel: float
    """Divided by the channels of either operand: the transforms of the other one and of the sums."""
    per_tile: float
    """Divided by the number of tiles: the transform of the kernel, or in wgrad that of the result."""


# Fitted to times of shapes from 16 to 512 channels and from 1 to 30000 tiles, on two cores of a Zen 4 with
# AVX-512 VNNI.
COSTS: dict[tuple[int, int, int, bool], Cost] = {
    (2, 3, 2, False): Cost(product=1.15, per_channel=27, per_tile=25),
    (2, 5, 1, False): Cost(product=1.15, per_channel=14, per_tile=46),
    (2, 5, 2, False): Cost(product=1.05, per_channel=22, per_tile=30),
    (2, 5, 1, True): Cost(product=1.25, per_channel=8, per_tile=46),
    (2, 5, 2, True): Cost(product=1.35, per_channel=25, per_tile=100),
    (4, 3, 1, False): Cost(product=1.25, per_channel=17, per_tile=46),
    (4, 3, 2, False): Cost(product=1.3, per_channel=30, per_tile=46),
    (4, 3, 1, True): Cost(product=1.4, per_channel=15, per_tile=46),
    (4, 3, 2, True): Cost(product=1.6, per_channel=40, per_tile=46),
}
"""Those that "auto" takes into account: for the outputs of a tile and the taps along an axis, the number of
axes, and whether tiles lie along the contracted index, as in wgrad. The others are never the fastest."""

MOST_OF_DIRECT = 0.95
"""The relative time up to which "auto" takes a Winograd algorithm."""


@functools.lru_cache(maxsize=4096)
def choose_algorithm(
    contraction: Contraction,
    lhs_shape: Shape,
    rhs_shape: Shape,
    lhs_exponent: Shape,
    rhs_exponent: Shape,
    blocks: tuple[Blocks | None, Blocks | None] = (None, None),
    *,
    certified: bool = True,
    requested: RequestedAlgorithm = "auto",
) -> Choice:
    """The algorithm of a contraction: the requested one, or direct if it cannot be had; with "auto", the one
    of the least `relative_time`, if that is less than 1 by a margin.

    Arguments:
        contraction, lhs_shape, rhs_shape, lhs_exponent, rhs_exponent, blocks: as for `make_plan`.
        certified: whether the accumulation is certified rather than a `FixedChain`.
        requested: an algorithm, or "auto".
    """
    operands = (contraction, lhs_shape, rhs_shape, lhs_exponent, rhs_exponent, blocks)
    if requested == "direct":
        return Choice("direct", "asked for")
    named = None if requested == "auto" else requested
    if (reason := objection(*operands, certified=certified, algorithm=named)) is not None:
        return Choice("direct", reason)
    loops = _loops(contraction, lhs_shape, rhs_shape)
    algorithm = named
    if named is None:
        times = {name: time for name in TILES if (time := relative_time(loops, TILES[name])) is not None}
        if not times:
            return Choice("direct", "no Winograd algorithm is ever faster")
        algorithm = min(times, key=times.get)
        if times[algorithm] > MOST_OF_DIRECT:
            return Choice("direct", f"{algorithm} is expected to take {times[algorithm]:.2f}x its time")
    return Choice(algorithm, f"{_saving(loops, TILES[algorithm]):.1f}x fewer products")


@functools.lru_cache(maxsize=4096)
def objection(
    contraction: Contraction,
    lhs_shape: Shape,
    rhs_shape: Shape,
    lhs_exponent: Shape,
    rhs_exponent: Shape,
    blocks: tuple[Blocks | None, Blocks | None] = (None, None),
    *,
    certified: bool = True,
    algorithm: Algorithm | None = None,
) -> str | None:
    """Why a Winograd algorithm cannot compute a contraction, or None if it can. Without `algorithm`, why none
    of them can. The other arguments are those of `choose_algorithm`."""
    if not contraction.windows:
        return "there is no window"
    if not certified:
        return "its accumulation is a FixedChain"
    sides = (contraction, lhs_shape, lhs_exponent), (contraction.swap(), rhs_shape, rhs_exponent)
    for side, size in zip(sides, blocks, strict=True):
        try:
            make_grid(*side, size)
        except ValueError:
            return 'the exponents of an operand are those of granularity "channel"'
    loops = _loops(contraction, lhs_shape, rhs_shape)
    if loops is None:
        coefs = [abs(coef) for w in contraction.windows for coef in (w.lhs_coef, w.rhs_coef, w.out_coef)]
        return f"a stride or dilation of {max(coefs)}"
    return _objection_to_loops(loops, algorithm)


def _objection_to_loops(loops: Loops, algorithm: Algorithm | None) -> str | None:
    if extent((*loops.g, *loops.m, *loops.n, *loops.k)) == 0:
        return "there is nothing to compute"
    windowed = [d for d in (*loops.m, *loops.k) if d.window >= 0]
    steps = max((abs(d.coef) for d in windowed), default=1)
    if steps > 1:
        return f"a stride or dilation of {steps}"
    if not loops.bounds:
        return "its window has a single tap"
    if len(loops.bounds) > 2:
        return f"{len(loops.bounds)} axes have windows of several taps, not 1 or 2"
    possible = ALL_TAPS if algorithm is None else TAPS[algorithm]
    if (taps := taps_of(loops)) not in possible:
        return _objection_to_taps(loops, taps, possible)
    along_k = has_tiles_along_k(loops)
    if len(loops.n) != 1 or loops.n[0].c != 1:
        return "the innermost axis of the result is not one of channels"
    channels = unwindowed(loops.m if along_k else loops.k)
    if len(channels) > 1:  # such as the taps of a window that has a single output
        return "the larger operand has several axes of channels or of taps"
    if not channels or channels[0].a != 1:
        return "the innermost axis of the larger operand is not one of channels"
    if loops.n[0].b != 1 and (along_k or channels[0].b != 1):
        return "the innermost axis of the smaller operand is not one of channels"
    return None


def _objection_to_taps(loops: Loops, taps: int | None, possible: Sequence[int]) -> str:
    fewer = min(_windowed(loops.m), _windowed(loops.k), key=extent)

    def each(taps: int) -> str:
        return "x".join([str(taps)] * len(fewer))

    of_all = " or ".join(map(each, possible))
    if taps is None:
        return f"its window has {'x'.join(str(d.extent) for d in fewer)} taps, not {of_all}"
    other = next(name for name in TAPS if taps in TAPS[name])
    return f"its window has {each(taps)} taps, not {of_all} ({other} takes {each(taps)})"


def taps_of(loops: Loops) -> int | None:
    """Taps per axis of the window, or None if a Winograd algorithm has no tiles for it."""
    return _taps_and_place(loops)[0]


def has_tiles_along_k(loops: Loops) -> bool:
    """Whether tiles lie along the contracted index, as in wgrad."""
    return _taps_and_place(loops)[1]


def _taps_and_place(loops: Loops) -> tuple[int | None, bool]:
    # Both loops of a window can have as many steps as an algorithm has taps. The channels tell them apart.
    has_channels_in_m = any(d.a == 1 for d in unwindowed(loops.m))
    for along_k in (has_channels_in_m, not has_channels_in_m):
        extents = {d.extent for d in _windowed(loops.m if along_k else loops.k)}
        if len(extents) == 1 and extents <= {*ALL_TAPS}:
            return extents.pop(), along_k
    return None, False


def unwindowed(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The loops that move no window."""
    return tuple(d for d in dims if d.window < 0)


def tiles_along(dims: tuple[Dim, ...], tile: int) -> int:
    """How often these loops run if those that move a window count tiles."""
    tiles = [Dim(-(-d.extent // tile)) for d in _windowed(dims)]
    return extent((*unwindowed(dims), *tiles))


def _windowed(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(d for d in dims if d.window >= 0)


def _loops(contraction: Contraction, lhs_shape: Shape, rhs_shape: Shape) -> Loops | None:
    """The loops of a contraction with windows kept as such, or None if it has several phases."""
    if gathers_rhs(contraction, lhs_shape, rhs_shape):
        contraction, lhs_shape, rhs_shape = contraction.swap(), rhs_shape, lhs_shape
    exponents = (1,) * len(lhs_shape), (1,) * len(rhs_shape)
    phases = [*loops_of(contraction, lhs_shape, rhs_shape, *exponents, keep_windows=True)]
    return phases[0].merged(keep_windows=True) if len(phases) == 1 else None


def relative_time(loops: Loops, tile: int) -> float | None:
    """The time that a Winograd algorithm is expected to take, as a multiple of the direct products' time;
    None if it is never the fastest."""
    along_k = has_tiles_along_k(loops)
    cost = COSTS.get((tile, taps_of(loops), len(loops.bounds), along_k))
    if cost is None:
        return None
    channels = extent(unwindowed(loops.m if along_k else loops.k))
    columns, tiles = extent(loops.n), tiles_along(loops.k if along_k else loops.m, tile)
    of_channels = cost.per_channel * (1 / channels + 1 / columns)
    return (cost.product + of_channels + cost.per_tile / tiles) / _saving(loops, tile)


def _saving(loops: Loops, tile: int) -> float:
    """By what factor a Winograd algorithm has fewer products."""
    points = (tile + taps_of(loops) - 1) ** len(loops.bounds)
    if has_tiles_along_k(loops):
        tiles = extent(unwindowed(loops.m)) * tiles_along(loops.k, tile)
    else:
        tiles = tiles_along(loops.m, tile) * extent(unwindowed(loops.k))
    return extent(loops.m) * extent(loops.k) / (points * tiles)
