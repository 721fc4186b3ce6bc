"""Which rows of a product and of its gradients a NaN reaches."""

from dataclasses import dataclass

import numpy as np

from benchmarks.common.operations import PASSES
from benchmarks.fidelity.precisions import passes
from benchmarks.robustness.precisions import COMPARED, products_of_tokens

POISONED = ("x", "dy")


@dataclass(frozen=True, kw_only=True)
class NonfiniteRow:
    """Where the results are NaN if one number of an operand is."""

    precision: str
    shape: tuple[int, ...]
    """Of the input."""
    operand: str
    """The one with a NaN: input `x`, or the output's gradient `dy`."""
    rows: dict[str, tuple[int, int]]
    """Of each pass, rows that have a NaN, and all rows: of the output, of the input's gradient, of the
    kernel's gradient (of which each belongs to an input channel)."""
    own: bool
    """Whether the row of the NaN itself is NaN wherever the output or the input's gradient depends on it."""


def one_nan(texts: int, tokens: int, channels: int, features: int, seed: int = 0) -> list[NonfiniteRow]:
    """`[texts, tokens, channels]` · `[channels, features]` with a NaN in the input or in the output's
    gradient; and the same with all texts' tokens in one axis."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in products_of_tokens(texts, tokens, channels, features):
        for operand in POISONED:
            x, w, dy = (rng.standard_normal(s).astype(np.float32) for s in (case.lhs, case.rhs, case.out))
            token = tokens // 2
            poisoned = x if operand == "x" else dy
            poisoned.reshape(-1, poisoned.shape[-1])[token, poisoned.shape[-1] // 2] = np.nan
            for precision in COMPARED:
                found = passes(case, precision, x, w, dy)
                lost = {
                    which: np.isnan(found[which].reshape(-1, found[which].shape[-1])).any(axis=1)
                    for which in PASSES
                }
                rows.append(
                    NonfiniteRow(
                        precision=precision.name,
                        shape=case.lhs,
                        operand=operand,
                        rows={which: (int(rows.sum()), rows.size) for which, rows in lost.items()},
                        own=bool(lost["fprop" if operand == "x" else "dgrad"][token]),
                    )
                )
    return rows
