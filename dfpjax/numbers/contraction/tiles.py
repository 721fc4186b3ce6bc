"""`Tiles`: which elements the tiles of a Winograd algorithm read and write.

Along each transformed axis a tile of t outputs of r taps reads a patch of t + r − 1 points of A, at unit
steps. Point u contributes to output o by the tap u − o. Where a part's loops run against each other, the taps
are reversed.
"""

from dataclasses import dataclass, replace

from dfpjax.numbers.contraction.algorithm import unwindowed
from dfpjax.numbers.contraction.elements import Nest
from dfpjax.numbers.contraction.loops import Bounds, Dim
from dfpjax.numbers.contraction.plan import Part


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The elements of a part with tiles. Points, taps and outputs of two axes are in row-major order."""

    patches: Nest
    """Of A: [g, rows, k, points]. Rows and k are tiles and channels, or in wgrad channels and tiles."""
    taps: Nest
    """Of B: [g, columns, k, taps]; in wgrad [g, columns, k, outputs of a tile]."""
    outputs: Nest
    """Of C: [g, rows, outputs of a tile, columns]; in wgrad [g, rows, taps, columns]."""

    @classmethod
    def of(cls, part: Part) -> "Tiles":
        """Those of a part."""
        # Tiles count the outputs, along m, and the taps are k's, or the other way round.
        outer, inner = (part.k, part.m) if part.tiles_along_k else (part.m, part.k)
        outer_field, inner_field = ("b", "c") if part.tiles_along_k else ("c", "b")
        base = {"b": part.base_b, "c": part.base_c}
        of_outputs = sorted((d for d in outer if d.window >= 0), key=lambda d: d.window)
        of_taps = sorted((d for d in inner if d.window >= 0), key=lambda d: d.window)

        points, taps, bounds_a, bounds_outputs = [], [], [], []
        for window, (output, tap) in enumerate(zip(of_outputs, of_taps, strict=True)):
            bound, stride = part.bounds[window], getattr(tap, inner_field)
            if output.coef != tap.coef:  # at a tile's first point, its first output meets the last tap
                bound = replace(bound, offset=bound.offset - (part.taps - 1) * output.coef)
                base[inner_field] += (part.taps - 1) * stride
                stride = -stride
            points.append(Dim(part.points, window=window, coef=output.coef))
            taps.append(Dim(part.taps, **{inner_field: stride}))
            bounds_a.append(bound)
            bounds_outputs.append(Bounds(output.extent, getattr(output, outer_field), 0))
        outputs = [Dim(part.tile, window=window, coef=1) for window in range(len(part.bounds))]

        def in_tiles(coefs: list[int]) -> tuple[Dim, ...]:
            """The loops along which there are tiles; those that move a window count tiles."""
            return tuple(
                d if d.window < 0 else Dim(-(-d.extent // part.tile), window=d.window, coef=coefs[d.window])
                for d in outer
            )

        of_patches = in_tiles([part.tile * d.coef for d in of_outputs])
        along, across = in_tiles([part.tile] * len(outputs)), unwindowed(inner)
        groups = (across, of_patches) if part.tiles_along_k else (of_patches, across)
        patches = Nest((part.g, *groups, tuple(points)), "a", part.base_a, tuple(bounds_a))
        taps, outputs, bounds = tuple(taps), tuple(outputs), tuple(bounds_outputs)
        if part.tiles_along_k:
            of_b = Nest((part.g, part.n, along, outputs), "b", base["b"], bounds)
            of_c = Nest((part.g, across, taps, part.n), "c", base["c"])
        else:
            of_b = Nest((part.g, part.n, across, taps), "b", base["b"])
            of_c = Nest((part.g, along, outputs, part.n), "c", base["c"], bounds)
        return cls(patches=patches, taps=of_b, outputs=of_c)
