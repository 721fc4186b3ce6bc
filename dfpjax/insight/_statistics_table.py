"""Statistics as text: one table of the quantized tensors, one of the passes."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

from dfpjax.insight._figures import in_natural_order
from dfpjax.insight._report import table
from dfpjax.numbers.contraction.plan import CHAINS

if TYPE_CHECKING:
    from dfpjax.insight._statistics import LayerStatistics

_OPERANDS = ("input", "weight", "output_gradient")
_OPERAND_COLUMNS = ("layer", "tensor", "bits", "exponent", "rms/max", "SQNR (dB)", "to zero", "clamped")
_TRANSFORMED = "SQNR of transformed tensors (dB)"
_PASS_COLUMNS = ("layer", "pass", "error", _TRANSFORMED, "MACs by length of chain", "saturated chains")
_WORDS = ("layer", "tensor", "pass", _TRANSFORMED, "MACs by length of chain")
"""The columns that are not numbers."""

_ERRORS = {"fprop": "error", "dgrad": "dgrad_error", "wgrad": "wgrad_error"}


def statistics_tables(layers: Mapping[str, "LayerStatistics"]) -> str:
    """The tables, layers in the natural order of their names.

    A value with leading axes, as `scan` and `vmap` give it, is shown as its range; the shares of chains as
    their mean. A value that is not computed yet, as under `jit`, is shown as its type.
    """
    layers = {name: layers[name] for name in in_natural_order(layers)}
    operands = [
        (name, operand.replace("_", " "), *_operand_cells(statistics))
        for name, layer in layers.items()
        for operand in _OPERANDS
        if (statistics := getattr(layer, operand)) is not None
    ]
    passes = [
        (name, which, *cells)
        for name, layer in layers.items()
        for which in _ERRORS
        if any(cells := _pass_cells(layer, which))
    ]
    tables = (_table(_OPERAND_COLUMNS, operands), _table(_PASS_COLUMNS, passes))
    return "\n\n".join(filter(None, tables)) or "nothing was measured"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns that are empty."""
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    if not used:
        return ""
    right = [place for place, i in enumerate(used) if columns[i] not in _WORDS]
    return "\n".join(table([columns[i] for i in used], [[row[i] for i in used] for row in rows], right))


def _operand_cells(statistics: Any) -> tuple[str, ...]:
    return (
        str(statistics.bits),
        _value(statistics.exponent, "{:d}"),
        _value(statistics.rms_over_max, "{:.3g}"),
        _value(statistics.sqnr_db, "{:.1f}"),
        _value(statistics.zeros, "{:.2%}"),
        _value(statistics.clamped, "{:.2%}"),
    )


def _pass_cells(layer: "LayerStatistics", which: str) -> tuple[str, ...]:
    chains = getattr(layer.chains, which)
    transformed = getattr(layer.transformed_sqnr_db, which) or {}
    return (
        _value(getattr(layer, _ERRORS[which]), "{:.2e}"),
        ", ".join(
            f"{operand.replace('_', ' ')}: {_value(transformed[operand], '{:.1f}')}"
            for operand in _OPERANDS
            if operand in transformed
        ),
        "" if chains is None else _concrete(chains, _shares),
        _value(getattr(layer.saturated, which), "{:d}"),
    )


def _value(measure: Any, form: str) -> str:
    """A number, or the range of several; nothing for None."""
    return "" if measure is None else _concrete(measure, lambda array: _range(array, form))


def _range(array: np.ndarray, form: str) -> str:
    ends = dict.fromkeys(form.format(end(array).item()) for end in (np.fmin.reduce, np.fmax.reduce))
    return " to ".join(ends)


def _shares(array: np.ndarray) -> str:
    means = np.reshape(array, (-1, len(CHAINS))).mean(axis=0)
    if np.isnan(means).any():
        return "nan"
    return ", ".join(
        f"{length}: {share:.0%}" for length, share in zip(CHAINS, means, strict=True) if share >= 0.005
    )


def _concrete(measure: Any, show: Callable[[np.ndarray], str]) -> str:
    """What is shown of an array; its type if there are no values."""
    if isinstance(measure, np.ndarray | np.generic | jax.Array | int | float) and not isinstance(
        measure, Tracer
    ):
        array = np.asarray(measure)
        return show(array) if array.size else "none"
    aval: Any = jax.typeof(measure) if isinstance(measure, Tracer) else measure
    return f"{aval.dtype}{list(aval.shape)}" if hasattr(aval, "dtype") else type(measure).__name__
