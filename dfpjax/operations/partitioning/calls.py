"""How the operands and results of a call are split, which XLA partitions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding

from dfpjax._compat import Placed
from dfpjax.operations.partitioning import meshes
from dfpjax.operations.partitioning.layout import Axes, Layout
from dfpjax.operations.partitioning.meshes import Dimensions, Split
from dfpjax.operations.partitioning.per_shard import computations
from dfpjax.operations.partitioning.warnings import warn_once


class Scattering(NamedTuple):
    """Which part of a sum each device gets, where it is to have a part alone."""

    dimension: int
    names: tuple[str, ...]
    """The axes of the mesh that split this dimension. The devices along them add."""


class Call:
    """A call of a computation.

    Arguments:
        operands, results: the whole tensors. Without their shardings, results do not matter for the split.
        described: what the call's text says.

    Attributes:
        mesh: all devices.
        split: how the mesh's axes split each label.
        scatterings: of the results.
    """

    def __init__(self, operands: Sequence[Placed], results: Sequence[Placed], described: dict):
        self.computation = computations[described["computation"]]
        self.params, self.platform = described["params"], described["platform"]
        structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
        self.layout: Layout = self.computation.layout(*structs, **self.params)
        devices = described["devices"]
        self._units = self.layout.units([x.shape for x in (*operands, *results)], devices)
        self._results = results if all(x.sharding is not None for x in results) else []
        self._tensors = [*self._results, *operands]
        self._axes = [*self.layout.results[: len(self._results)], *self.layout.operands]
        self.mesh: AbstractMesh
        self.mesh, self._given = meshes.mesh_of(devices, self._tensors)
        self.split = min(map(self._split_by, range(len(self._tensors))), key=self._cost)
        self.scatterings = [
            _scattered(*of, self.mesh, self.split)
            for of in zip(self.layout.results, self._results, self._given, strict=False)
        ] or [None] * len(results)
        self._mention_whole()

    def _split_by(self, first: int) -> Split:
        """The split in which one tensor, by its number, decides where others disagree."""
        order = sorted(range(len(self._tensors)), key=lambda i: i != first)
        labels = [self._axes[i].labels for i in order]
        in_order = ([of[i] for i in order] for of in (self._tensors, self._given))
        return meshes.split(self.mesh, labels, *in_order, self._units)

    def _cost(self, split: Split) -> tuple[int, float]:
        """How many tensors do not stay where they are, and about how many bytes each device gets."""
        moved, total = 0, 0.0
        for i, axes in enumerate(self._axes):
            is_result = i < len(self._results)
            size, stays = self._exchanged(split, axes, self._tensors[i], self._given[i], is_result=is_result)
            moved += axes.exponents is None and not stays
            total += size
        return moved, total

    def _exchanged(
        self, split: Split, axes: Axes, tensor: Placed, given: Dimensions, *, is_result: bool
    ) -> tuple[float, bool]:
        """The bytes because of one tensor, and whether it stays as it is given."""
        counting = self.layout.counting
        made = [split.get(counting.get(label, label), ()) for label in axes.labels]
        before, after = (made, given) if is_result else (given, made)
        moved = meshes.resharded(self.mesh, tensor, before, after)
        if not (is_result and axes.total and lacking(axes, split)):
            return moved, not moved
        summed = meshes.local_bytes(self.mesh, tensor, [name for names in made for name in names])
        if _scattered(axes, tensor, given, self.mesh, split) is not None:
            return summed, False  # half of what an all-reduce sends
        return 2 * summed + moved, not moved

    def _mention_whole(self) -> None:
        """Log which axes of operands are split but have to be whole."""
        for axes, tensor, given in zip(self._axes, self._tensors, self._given, strict=True):
            if not any(axes is operand for operand in self.layout.operands):
                continue
            for axis, (label, size, names) in enumerate(zip(axes.labels, tensor.shape, given, strict=True)):
                parts = math.prod(self.mesh.shape[name] for name in names)
                unit = self._units.get(label, 0)
                if label < 0 or parts == 1 or (unit and size % (parts * unit) == 0):
                    continue
                if label in self.layout.whole:
                    why = "an axis of windows, or of neighbours, has to be whole"
                elif tensor.dtype == np.float32:  # mantissas are mentioned as what they come from
                    why = "a part would not consist of whole blocks with an exponent each"
                else:
                    continue
                shape = f"{tensor.dtype.name}[{','.join(map(str, tensor.shape))}]"
                warn_once(
                    f"{self.computation.name}: {shape} is split over {parts} devices along axis {axis}, "
                    f"where {why}. Each device gets all of it, which costs time; results are right. To avoid "
                    "this, split another axis."
                )

    def shardings(self) -> tuple[list[NamedSharding], list[NamedSharding]]:
        """Those of the operands, and of the results before they are scattered."""
        counting = self.layout.counting
        return tuple(
            [meshes.sharding(self.mesh, axes.labels, self.split, counting) for axes in tensors]
            for tensors in (self.layout.operands, self.layout.results)
        )


def lacking(axes: Axes, split: Split) -> list[int]:
    """The split labels that a result lacks."""
    return [label for label in split if label not in axes.labels]


def _scattered(axes: Axes, tensor: Placed, wanted: Dimensions, mesh, split: Split) -> Scattering | None:
    """How a sum is scattered, if the devices that add are to have parts of it."""
    summed = {name for label in lacking(axes, split) for name in split[label]}
    for dimension, names in enumerate(wanted if axes.total == "sum" else ()):
        parts = math.prod(mesh.shape[name] for name in names)
        whole = axes.labels[dimension] not in split and tensor.shape[dimension] % parts == 0
        if names and whole and summed >= {*names}:
            return Scattering(dimension, names)
    return None
