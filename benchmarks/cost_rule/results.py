"""The measurement of a shape, the tables of all shapes, and the thresholds that they suggest."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

FORWARD, BOTH = "forward", "forward + backward"
PASSES = (FORWARD, BOTH)
FLOAT32, DFP16 = "float32", "dfp16"

TOLERATED = 1.1
"""Largest tolerated ratio of the time of the rule's choice to that of the faster choice."""


@dataclass(frozen=True)
class Row:
    """One shape: its work, what the rule says, and how many times faster DFP16 is in each pass."""

    name: str
    kind: str
    macs: int
    elements: int
    chosen: bool
    """Whether the rule has it in DFP16."""
    reason: str
    gains: dict[str, float]
    seconds: dict[str, dict[str, float]]

    @property
    def intensity(self) -> float:
        return self.macs / self.elements

    def loss(self, chosen: bool) -> float:
        """Time of this choice over that of the other one, in the pass where the ratio is largest."""
        return max(1 / gain if chosen else gain for gain in self.gains.values())

    @property
    def wrong(self) -> bool:
        """Whether the rule loses more than tolerated, and the other choice would lose less."""
        return self.loss(self.chosen) > max(TOLERATED, self.loss(not self.chosen))


def worst(rows: Iterable[Row], chosen: bool) -> tuple[float, str]:
    """The largest loss and its shape, if all rows had this choice."""
    return max(((row.loss(chosen), row.name) for row in rows), default=(1.0, "none"))


def split(rows: list[Row], least_macs: float, least_intensity: float) -> tuple[list[Row], list[Row]]:
    """Rows that these thresholds have in DFP16, and rows that they keep in float32."""
    chosen, kept = [], []
    for row in rows:
        enough = row.macs >= least_macs and row.intensity >= least_intensity
        (chosen if enough else kept).append(row)
    return chosen, kept


def suggestion(rows: list[Row], tolerated: float = math.inf) -> tuple[float, float]:
    """The thresholds (MACs, MACs per element) that lose least, in both passes together.

    Losses count by the squares of their logarithms: a large one weighs more than many that may be noise. No
    shape in DFP16 may take longer than is tolerated; where that cannot be, as little longer as can be. Every
    threshold tried lies halfway, by ratio, between two neighbouring rows, or lets all through or none.
    """

    def cuts(values):
        values = sorted({*values})
        between = [math.sqrt(low * high) for low, high in itertools.pairwise(values)]
        return [values[0], *between, 2 * values[-1]]

    def cost(thresholds):
        chosen, kept = split(rows, *thresholds)
        lost = [1 / gain for row in chosen for gain in row.gains.values()]
        given_up = [gain for row in kept for gain in row.gains.values()]
        squares = sum(math.log(max(loss, 1)) ** 2 for loss in (*lost, *given_up))
        return max(worst(chosen, True)[0], tolerated), squares

    return min(itertools.product(cuts(r.macs for r in rows), cuts(r.intensity for r in rows)), key=cost)


def table(rows: list[Row]) -> Table:
    result = Table(title="how many times faster DFP16 is, quantization of both operands included")
    columns = ("shape", "MACs", "MACs/element", *PASSES, "the rule says", "")
    for column in columns:
        result.add_column(column, justify="left" if column in ("shape", "the rule says", "") else "right")
    for row in rows:
        gains = [f"{row.gains[which]:.2f}" for which in PASSES]
        said = DFP16 if row.chosen else row.reason.split(" (")[0]
        mark = f"wrong: × {row.loss(row.chosen):.2f}" if row.wrong else ""
        cells = (row.name, f"{row.macs:,}", f"{row.intensity:.1f}", *gains, said, mark)
        result.add_row(*cells, style="red" if row.wrong else None)
    return result


def summary(kind: str, rows: list[Row]) -> str:
    """What the rule's thresholds come to, and others that would have been better."""

    def told(chosen: list[Row], kept: list[Row]) -> str:
        (slowest, slow), (largest, gaining) = worst(chosen, True), worst(kept, False)
        return (
            f"{len(chosen)} of {len(rows)} shapes in DFP16\n"
            f"    worst time of one of them: {slowest:.2f} × float32's ({slow})\n"
            f"    largest gain given up: {largest:.2f} × ({gaining})"
        )

    def suggested(tolerated: float) -> str:
        macs, intensity = thresholds = suggestion(rows, tolerated)
        values = f"macs={macs:_.0f}, macs_per_element={intensity:.3g}"
        return f"{values}: {told(*split(rows, *thresholds))}"

    now = told([row for row in rows if row.chosen], [row for row in rows if not row.chosen])
    return (
        f"{kind}: {now}\n"
        f"  loses least: {suggested(math.inf)}\n"
        f"  no shape slower by more than {TOLERATED - 1:.0%}: {suggested(TOLERATED)}\n"
    )
