"""What `sensitivity` returns: the errors that each layer causes, and the policy that follows from them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfpjax import _checks
from dfpjax.insight._figures import finished, new_figure
from dfpjax.insight._report import table
from dfpjax.policy import OpConfig, Policy, Rule
from dfpjax.policy._rules import Position

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """How loss and gradient change when one layer alone runs in dynamic fixed point."""

    layer: str
    """The layer's name, else the path of its parameter, else its position."""

    pattern: str | Position
    """The pattern of a `Rule` that matches this layer alone."""

    config: OpConfig
    """The policy's configuration of the layer."""

    bits: tuple[int, ...]
    """The numbers of mantissa bits that were measured, in descending order; the errors are in this order."""

    gradient_errors: tuple[float, ...]
    """Relative error of the loss's gradient: ‖gradient − float32 gradient‖ / ‖float32 gradient‖."""

    loss_errors: tuple[float, ...]
    """Relative error of the loss."""

    def rule(self, bits: int | None) -> Rule:
        """The rule that gives this layer so many bits, or keeps it in float32 for None.

        Raises:
            ValueError: if bits is neither an integer from 2 to 16 nor None.
        """
        return Rule(self.pattern, None if bits is None else replace(self.config, bits=bits, force=True))


@dataclass(frozen=True, kw_only=True)
class SensitivityReport:
    """The layers of a program, ranked by the error that each causes. Prints as a table."""

    layers: tuple[LayerSensitivity, ...]
    """The layers in descending order of the gradient's error at the fewest bits."""

    base: Policy
    """The policy that was given."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary of plain values for each layer and number of bits, for a data frame or JSON."""
        return [
            {"layer": layer.layer, "bits": bits, "gradient_error": gradient, "loss_error": loss}
            for layer in self.layers
            for bits, gradient, loss in zip(layer.bits, layer.gradient_errors, layer.loss_errors, strict=True)
        ]

    def policy(self, budget: float) -> Policy:
        """A policy that gives each layer few bits, within a bound on the gradient's error.

        The layers' errors count as independent: the square root of the sum of their squares stays within the
        budget. Every layer starts in float32. In each step the layer whose error grows least gets fewer bits,
        as long as the budget allows it. Other layers stay as in the policy given to `sensitivity`.

        Arguments:
            budget: relative error of the gradient, at least 0; with 0 all layers stay in float32.

        Raises:
            TypeError: if the budget is not a number.
            ValueError: if it is negative or NaN.
        """
        budget = _checks.not_negative("SensitivityReport.policy", "budget", budget)
        levels = dict.fromkeys(self.layers, -1)  # an index of `bits`; −1 for float32

        def square(layer: LayerSensitivity, level: int) -> float:
            return layer.gradient_errors[level] ** 2 if level >= 0 else 0.0

        def total(levels: dict[LayerSensitivity, int]) -> float:
            return math.sqrt(sum(square(layer, level) for layer, level in levels.items()))

        while True:
            lower = [
                (square(layer, level + 1) - square(layer, level), index, layer)
                for index, (layer, level) in enumerate(levels.items())
                if level + 1 < len(layer.bits) and total({**levels, layer: level + 1}) <= budget
            ]
            if not lower:
                break
            _, _, layer = min(lower, key=lambda entry: entry[:2])
            levels[layer] += 1
        rules = [layer.rule(layer.bits[level] if level >= 0 else None) for layer, level in levels.items()]
        return replace(self.base, rules=(*rules, *self.base.rules))

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Draw a heat map of the gradient's error by layer and bits.

        Arguments:
            path: file to write the picture to, if any; its suffix is the format.

        Raises:
            TypeError: if the path is none.
            ImportError: if matplotlib is not installed.
        """
        _checks.path("SensitivityReport.plot", "path", path)
        bits = self.layers[0].bits
        errors = np.array([layer.gradient_errors for layer in self.layers])
        figure = new_figure("SensitivityReport.plot", 3.5 + 0.9 * len(bits), 1.5 + 0.28 * len(self.layers))
        from matplotlib.colors import LogNorm

        axes = figure.add_subplot()
        smallest = errors[errors > 0].min(initial=1.0)
        shown = np.maximum(errors, smallest)
        image = axes.imshow(shown, norm=LogNorm(smallest, max(shown.max(), 2 * smallest)), aspect="auto")
        axes.set_xticks(range(len(bits)), [str(count) for count in bits])
        axes.set_yticks(range(len(self.layers)), [layer.layer for layer in self.layers], fontsize=7)
        axes.set_xlabel("bits of a mantissa")
        figure.colorbar(image, label="relative error of the gradient")
        return finished(figure, path)

    def __str__(self) -> str:
        bits = self.layers[0].bits
        header = ("layer", *(f"{count} bits" for count in bits), f"loss, {bits[-1]} bits")
        rows = [
            (layer.layer, *(f"{error:.1e}" for error in (*layer.gradient_errors, layer.loss_errors[-1])))
            for layer in self.layers
        ]
        lines = table(header, rows, right=range(1, len(header)))
        return "\n".join(["relative error of the gradient, each layer alone in dynamic fixed point", *lines])
