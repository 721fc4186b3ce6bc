"""The results of `benchmarks.frameworks`: errors, and a Markdown table of them."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.fidelity.precisions import relative_error


@dataclass(frozen=True, kw_only=True)
class Row:
    """The errors of one model, as shares of the norms in float32."""

    model: str
    output: float
    gradient: float
    rounded_output: float
    """Where weights and inputs are rounded to bfloat16, and all computation is in float32."""

    rounded_gradient: float
    peer: float | None = None
    """Of our float32 outputs against those of the library that the weights are from."""


def table(rows: list[Row]) -> str:
    """In Markdown."""
    head = "model", "output", "gradients", "rounded: output", "rounded: gradients", "float32 against PyTorch"
    lines = [f"| {' | '.join(head)} |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        errors = row.output, row.gradient, row.rounded_output, row.rounded_gradient, row.peer
        cells = ("" if error is None else f"{error:.1e}" for error in errors)
        lines.append(f"| {row.model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tree_error(found: Any, expected: Any) -> float:
    """The `relative_error` of all numbers of two pytrees alike."""
    return relative_error(_numbers(found), _numbers(expected))


def _numbers(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
