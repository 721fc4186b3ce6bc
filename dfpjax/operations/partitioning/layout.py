"""What the axes of a computation's operands and results have in common, and how each may be split.

Axes are labelled as in an einsum. Axes with the same label, a number from 0 on, are split in the same way; an
axis with a negative label, which no other has, stays whole.
"""

import itertools
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jax.experimental.custom_partitioning import ArrayMapping, CompoundFactor, SdyShardingRule

from dfpjax.numbers.format.blocks import Blocks
from dfpjax.operations.partitioning import blocks as of_blocks

Labels = tuple[int, ...]
Shape = tuple[int, ...]
Total = Literal["sum", "mean", "count", "least", "greatest"]


@dataclass(frozen=True, kw_only=True)
class OfBlocks:
    """A tensor whose blocks have an exponent each."""

    labels: Labels
    shape: Shape
    size: Blocks


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The axes of an operand or a result."""

    labels: Labels

    total: Total | None = None
    """What the devices' results make together, over the split labels that a result lacks."""

    exponents: OfBlocks | None = None
    """The tensor whose exponents these are: the last two axes count its blocks."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The axes of a computation."""

    operands: tuple[Axes, ...]
    results: tuple[Axes, ...]

    whole: frozenset[int] = frozenset()
    """Labels of axes that stay whole on every device."""

    @property
    def tensors(self) -> tuple[Axes, ...]:
        return (*self.operands, *self.results)

    @property
    def counting(self) -> Mapping[int, int]:
        """The label by which each axis of blocks of an exponent is split."""
        found: dict[int, int] = {}
        for axes in self.tensors:
            if (of := axes.exponents) is not None:
                found |= of_blocks.counting(of.labels, axes.labels, of.shape, of.size)
        return types.MappingProxyType(found)

    def units(self, shapes: Sequence[Shape], devices: int) -> dict[int, int]:
        """For each label, what the extent of a shard must be a multiple of; 0 if the axis must stay whole.

        Along the axes that count a block's rows or columns, shards consist of whole blocks. An axis that no
        number of these devices divides this way stays whole, too.

        Arguments:
            shapes: of the whole tensors, operands first.
            devices: their number.
        """
        sizes = self.sizes(shapes)
        units = dict.fromkeys(sizes, 1)
        for axes in self.tensors:
            if (of := axes.exponents) is not None:
                mapped = len(axes.labels) - 3
                for label, unit in of_blocks.units(of.labels, of.shape, mapped, of.size).items():
                    units[label] = math.lcm(units[label], unit)
        return {
            label: unit if label not in self.whole and _divides(sizes[label], unit, devices) else 0
            for label, unit in units.items()
        }

    def sizes(self, shapes: Sequence[Shape]) -> dict[int, int]:
        """The extent of each label's axes but those that stay whole by a negative label."""
        return {
            label: size
            for axes, shape in zip(self.tensors, shapes, strict=True)
            for label, size in zip(axes.labels, shape, strict=True)
            if label >= 0
        }

    def rule(self, shapes: Sequence[Shape], devices: int) -> SdyShardingRule:
        """What Shardy propagates shardings by. The arguments are those of `units`."""
        units, counting, sizes = self.units(shapes, devices), self.counting, self.sizes(shapes)
        kept = {label for axes in self.results for label in axes.labels}
        alone = itertools.count()
        inferred: set[str] = set()  # factors that are a whole axis somewhere
        given: dict[str, int] = {}
        whole: dict[str, None] = {}
        reduced: dict[str, None] = {}

        def factors(label: int, size: int):
            """An axis as one factor or as two. The second one is what is inside a unit, of which a shard has
            a whole number."""
            of = counting.get(label, label)
            unit = units.get(of, 0)
            if unit == 0:  # whole in this tensor, and no reason for others to be split or not
                name = f"alone_{next(alone)}"
                whole[name] = None
                return name
            name = f"label_{of}"
            if of not in kept:
                reduced[name] = None
            steps = sizes[of] // unit
            if steps == size:
                inferred.add(name)
                return name
            inside = f"inside_{name}" if of == label else f"inside_one_{-label}"
            whole[inside] = None
            given.update({name: steps, inside: size // steps})
            return CompoundFactor(name, inside)

        mappings = [
            ArrayMapping(*map(factors, axes.labels, shape))
            for axes, shape in zip(self.tensors, shapes, strict=True)
        ]
        count = len(self.operands)
        return SdyShardingRule(
            tuple(mappings[:count]),
            tuple(mappings[count:]),
            reduction_factors=tuple(reduced),
            need_replication_factors=tuple(whole),
            **{name: size for name, size in given.items() if name not in inferred},
        )


def _divides(size: int, unit: int, devices: int) -> bool:
    return size % unit == 0 and math.gcd(size // unit, devices) > 1
