"""Products of ordinary numbers beside very large ones: a channel of a language model, a token of padding."""

from dataclasses import dataclass

import numpy as np

from benchmarks.common.shapes import Dot
from benchmarks.fidelity.precisions import exact_passes, passes, relative_error
from benchmarks.robustness.precisions import COMPARED, products_of_tokens

FACTOR = 3000
"""How many times as large as the others the outlying channel is."""
PADDING = -1e9


@dataclass(frozen=True, kw_only=True)
class ChannelRow:
    """What an input channel of outliers does to the contribution of the others, in one precision."""

    precision: str
    alone: float
    """Relative error of the ordinary part of the product: the result, less the result of the same precision
    for the outlying channel alone (all others zero), against the other channels' product in float64."""
    exact: float
    """The same, less the outlying channel's product in float64, so with the error of that product."""
    median_channel: float
    """Relative error of the weight gradient of an ordinary channel, median."""
    worst_channel: float
    outlier_channel: float
    """That of the outlying one."""


def outlier_channel(tokens: int, channels: int, features: int, seed: int = 0) -> list[ChannelRow]:
    """A product `[tokens, channels]` · `[channels, features]` of normal numbers, one channel times `FACTOR`.

    Weights have a deviation of 1/√channels; the output's gradient is normal.
    """
    case = Dot(m=tokens, k=channels, n=features)
    rng = np.random.default_rng(seed)
    x, w, dy = (rng.standard_normal(shape).astype(np.float32) for shape in (case.lhs, case.rhs, case.out))
    w /= np.float32(np.sqrt(channels))
    outlier = channels // 3  # not at the edge of a block
    x[:, outlier] *= FACTOR
    ordinary, alone = x.copy(), np.zeros_like(x)
    ordinary[:, outlier] = 0
    alone[:, outlier] = x[:, outlier]
    truth = exact_passes(case, ordinary, w, dy)["fprop"]
    of_outlier = exact_passes(case, alone, w, dy)["fprop"]
    dw = exact_passes(case, x, w, dy)["wgrad"]
    rows = []
    for precision in COMPARED:
        results = passes(case, precision, x, w, dy)
        by_itself = passes(case, precision, alone, w, dy)["fprop"]
        errors = [relative_error(a, b) for a, b in zip(results["wgrad"], dw, strict=True)]
        others = np.delete(errors, outlier)
        rows.append(
            ChannelRow(
                precision=precision.name,
                alone=relative_error(results["fprop"] - by_itself, truth),
                exact=relative_error(results["fprop"] - of_outlier, truth),
                median_channel=float(np.median(others)),
                worst_channel=float(others.max()),
                outlier_channel=errors[outlier],
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class PaddingRow:
    """What a token of `PADDING` does to the rows of the result that belong to other tokens."""

    precision: str
    shape: tuple[int, ...]
    """Of the input."""
    median: float
    """Relative error of such a row, median."""
    worst: float
    zero: float
    """The share of such rows that are zero."""


def padding_token(texts: int, tokens: int, channels: int, features: int, seed: int = 0) -> list[PaddingRow]:
    """A product `[texts, tokens, channels]` · `[channels, features]` of normal numbers, one token of them
    `PADDING`; and the same with all texts' tokens in one axis."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in products_of_tokens(texts, tokens, channels, features):
        x, w, dy = (rng.standard_normal(shape).astype(np.float32) for shape in (case.lhs, case.rhs, case.out))
        padding = tokens // 2
        x.reshape(-1, channels)[padding] = PADDING
        truth = exact_passes(case, x, w, dy)["fprop"]
        for precision in COMPARED:
            results = passes(case, precision, x, w, dy)["fprop"]
            pairs = zip(results.reshape(-1, features), truth.reshape(-1, features), strict=True)
            errors = np.delete([relative_error(a, b) for a, b in pairs], padding)
            zero = np.delete(~results.reshape(-1, features).any(axis=1), padding)
            rows.append(
                PaddingRow(
                    precision=precision.name,
                    shape=case.lhs,
                    median=float(np.median(errors)),
                    worst=float(errors.max()),
                    zero=float(zero.mean()),
                )
            )
    return rows
