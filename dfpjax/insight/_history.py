"""`History`: the statistics of many steps."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

from dfpjax import _checks
from dfpjax.insight._figures import finished, in_natural_order, new_figure
from dfpjax.insight._statistics import LayerStatistics, OperandStatistics
from dfpjax.numbers.contraction.plan import CHAINS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPERANDS = {"input": "input", "weight": "weight", "output_gradient": "output gradient"}
_MEASURES = {"exponent": "exponent", "sqnr_db": "SQNR (dB)"}
_VALUES = ("exponent", "rms_over_max", "sqnr_db", "zeros", "clamped")
_KEYS = {"step", "layer", "operand", *_VALUES}
_ERRORS = ("error", "dgrad_error", "wgrad_error")


class History:
    """Collects what `with_statistics` gives, step by step: `history.add(step, statistics)`.

    Arguments:
        records: records of an earlier history, as `to_dicts` returns them, to continue from. A value that was
            not finite may be None.

    Raises:
        TypeError: if `records` is anything else.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()):
        wanted = "records as History.to_dicts gives them"
        _checks.instance("History", "records", records, Iterable, wanted)
        self._records: list[dict[str, Any]] = []
        for record in records:
            if not isinstance(record, Mapping) or not record.keys() >= _KEYS:
                raise _checks.wrong_type("History", "records", wanted, record)
            self._records.append(dict(record))

    def add(self, step: int, statistics: Mapping[str, LayerStatistics]) -> list[dict[str, Any]]:
        """Wait for the statistics of a step and add them.

        Arguments:
            step: any number.
            statistics: what `with_statistics` returned with the function's output.

        Returns:
            The records added, as `to_dicts` has them.

        Raises:
            TypeError: if the step is no number, or the statistics are something else or not computed yet, as
                under `jax.jit`.
        """
        _checks.number("History.add", "step", step)
        if not isinstance(statistics, Mapping) or not all(
            isinstance(layer, LayerStatistics) for layer in statistics.values()
        ):
            raise TypeError(
                f"History.add: statistics must be the dict that with_statistics gives, got {statistics!r}"
            )
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(statistics)):
            raise TypeError(
                "History.add: the statistics are being traced; return them from the jitted function first"
            )
        added = [
            record for name, layer in jax.device_get(statistics).items() for record in _records(name, layer)
        ]
        self._records += [{"step": step} | record for record in added]
        return self._records[len(self._records) - len(added) :]

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary of plain values for each step, layer and operand, for a data frame or JSON.

        Keys: step, layer, operand ("input", "weight" or "output_gradient"), bits, and the fields of
        `OperandStatistics`. Of the operand in the passes that transform it: "fprop transformed_sqnr_db", ….
        For the layer: its errors, the shares of chains ("fprop chain 256", …, "wgrad
        chain 2") and the counts of saturated chains ("fprop saturated", …), None where not measured. The
        iterations of a `scan` are separate layers, `layer[0]`, `layer[1]`, ….
        """
        return [dict(record) for record in self._records]

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Draw exponent and SQNR of every layer's operands over the steps. Operands that are all zero or not
        finite are left out.

        Arguments:
            path: file to write the picture to, if any; its suffix is the format.

        Raises:
            TypeError: if the path is none.
            ValueError: if nothing has been added.
            ImportError: if matplotlib is not installed.
        """
        _checks.path("History.plot", "path", path)
        if not self._records:
            raise ValueError("History.plot: nothing has been added")
        layers = in_natural_order(record["layer"] for record in self._records)
        operands = [name for name in _OPERANDS if any(r["operand"] == name for r in self._records)]
        figure = new_figure("History.plot", 10, 1.2 + 2.4 * len(operands))
        from matplotlib import colormaps
        from matplotlib.ticker import MaxNLocator

        colours = colormaps["viridis"](np.linspace(0, 0.95, len(layers)))
        grid = figure.subplots(len(operands), len(_MEASURES), sharex=True, squeeze=False)
        for row, operand in zip(grid, operands, strict=True):
            for axes, (measure, label) in zip(row, _MEASURES.items(), strict=True):
                for layer, colour in zip(layers, colours, strict=True):
                    points = [
                        (r["step"], r[measure])
                        for r in self._records
                        if (r["layer"], r["operand"]) == (layer, operand) and _can_be_shown(r, measure)
                    ]
                    marker = "o" if len(points) == 1 else None
                    axes.plot(*np.reshape(points, (-1, 2)).T, color=colour, lw=1, marker=marker, label=layer)
                if measure == "exponent":
                    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
                axes.set(ylabel=label, title=_OPERANDS[operand])
                axes.grid(alpha=0.3)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        columns = -(-len(layers) // 40)
        figure.legend(handles, labels, loc="outside right upper", fontsize=7, ncols=columns)
        return finished(figure, path)


def _records(name: str, layer: LayerStatistics) -> Iterator[dict[str, Any]]:
    for operand in _OPERANDS:
        statistics: OperandStatistics | None = getattr(layer, operand)
        if statistics is None:
            continue
        for index in np.ndindex(np.shape(statistics.exponent)):
            yield {
                "layer": name + "".join(f"[{i}]" for i in index),
                "operand": operand,
                "bits": statistics.bits,
                **{value: np.asarray(getattr(statistics, value))[index].item() for value in _VALUES},
                **{error: _at(getattr(layer, error), index) for error in _ERRORS},
                **_chains(layer, index),
                **{
                    f"{name} transformed_sqnr_db": _at((of_pass or {}).get(operand), index)
                    for name, of_pass in layer.transformed_sqnr_db._asdict().items()
                },
            }


def _chains(layer: LayerStatistics, index: tuple[int, ...]) -> dict[str, float | int | None]:
    shares = {
        f"{name} chain {length}": _at(of_pass, (*index, place))
        for name, of_pass in layer.chains._asdict().items()
        for place, length in enumerate(CHAINS)
    }
    counts = {f"{name} saturated": _at(n, index) for name, n in layer.saturated._asdict().items()}
    return shares | counts


def _can_be_shown(record: dict[str, Any], measure: str) -> bool:
    """Whether a tensor is finite and not all zero; the exponent of zeros means nothing."""
    values = (record["rms_over_max"], record[measure])
    return all(value is not None and np.isfinite(value) for value in values) and values[0] > 0


def _at(measure: np.ndarray | None, index: tuple[int, ...]) -> float | int | None:
    return None if measure is None else np.asarray(measure)[index].item()
