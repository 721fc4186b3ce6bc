"""Figures with matplotlib, which is imported only when one is drawn."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jax.core import Tracer

from dfpjax import _checks
from dfpjax.numbers import DFPArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(caller: str, width: float, height: float) -> "Figure":
    """A figure of that size in inches, without the global state of `matplotlib.pyplot`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            f"{caller} draws with matplotlib, which is not installed: pip install 'dfpjax[bench]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def finished(figure: "Figure", path: str | Path | None) -> "Figure":
    """The figure, saved to `path` if that is given."""
    if path is not None:
        figure.savefig(path, dpi=100)
    return figure


def in_natural_order(names) -> list[str]:
    """Distinct names in natural order: `Conv_2` before `Conv_10`."""

    def key(name: str):
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

    return sorted(set(names), key=key)


def plot_mantissas(q: DFPArray, path: str | Path | None = None, *, bits: int = 16) -> "Figure":
    """Histogram of the mantissas of a tensor: how much of its range it uses.

    Arguments:
        q: a concrete array, not a tracer.
        path: file to write the picture to, if any; its suffix is the format.
        bits: bits of a mantissa, which give the range.

    Raises:
        TypeError: if `q` is not a `DFPArray`, or is being traced, or another argument is of a wrong type.
        ValueError: if bits is out of range.
        ImportError: if matplotlib is not installed.
    """
    _checks.instance("plot_mantissas", "q", q, DFPArray, "a DFPArray, as dfpjax.quantize gives it")
    if isinstance(q.values, Tracer):
        raise TypeError("plot_mantissas: q is being traced; return it from the jitted function first")
    _checks.path("plot_mantissas", "path", path)
    if not 2 <= _checks.integer("plot_mantissas", "bits", bits) <= 16:
        raise _checks.wrong_value("plot_mantissas", "bits", "an integer from 2 to 16", bits)
    figure = new_figure("plot_mantissas", 7, 3.5)
    axes = figure.add_subplot()
    limit = 2 ** (bits - 1) - 1
    edges = np.linspace(-limit - 0.5, limit + 0.5, min(2 * limit + 1, 255) + 1)
    axes.hist(np.asarray(q.mantissa).ravel(), bins=edges, log=True)
    exponent = np.asarray(q.exponent if q.blocks is None else q.block_exponent)
    parts = "slices" if q.blocks is None else "blocks"
    of_parts = "" if exponent.size == 1 else f", the largest of its {parts}"
    largest = exponent.max() if exponent.size else "none"
    axes.set(xlabel=f"mantissa (exponent {largest}{of_parts})", ylabel="elements")
    return finished(figure, path)
