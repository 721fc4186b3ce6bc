"""XLA's shardings, which number the devices, as axes of a mesh."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from dfpjax import _compat
from dfpjax._compat import Placed

Labels = tuple[int, ...]
Split = Mapping[int, tuple[str, ...]]
"""The axes of a mesh that each label is split over."""


Dimensions = Sequence[tuple[str, ...]]
"""The axes of a mesh that each dimension of a tensor is split over."""


def split(
    mesh: AbstractMesh,
    labels: Sequence[Labels],
    tensors: Sequence[Placed],
    dimensions: Sequence[Dimensions],
    units: Mapping[int, int],
) -> Split:
    """The axes of the mesh that each label is split over.

    A label and an axis of the mesh are settled by the first tensor that uses them; XLA reshards those that
    say otherwise, and those split along an axis that must be whole or that the devices do not divide.

    Arguments:
        labels: of the tensors' axes.
        tensors, dimensions: what there is, and how it is split.
        units: what the extent of each label's shard must be a multiple of; 0 if the axis must be whole.
    """
    found: dict[int, tuple[str, ...]] = {}
    used: set[str] = set()
    for tensor_labels, tensor, tensor_dimensions in zip(labels, tensors, dimensions, strict=True):
        for label, size, axes in zip(tensor_labels, tensor.shape, tensor_dimensions, strict=True):
            parts = math.prod(mesh.shape[axis] for axis in axes)
            unit = units.get(label, 0)  # an exponent's axis that has no label stays whole
            if axes and unit and label not in found and not used & {*axes} and size % (parts * unit) == 0:
                found[label] = axes
                used |= {*axes}
    return found


def resharded(mesh: AbstractMesh, tensor: Placed, before: Dimensions, after: Dimensions) -> float:
    """About how many bytes each device gets where a tensor that is split in one way is split in another."""
    given, wanted = ({(d, axis) for d, axes in enumerate(of) for axis in axes} for of in (before, after))
    if not given - wanted:  # every device has what it needs
        return 0
    moved = {axis for _, axis in wanted - given} & {axis for _, axis in given - wanted}
    kept = [axis for _, axis in given & wanted] + [*moved]
    return local_bytes(mesh, tensor, kept)


def local_bytes(mesh: AbstractMesh, tensor: Placed, axes: Sequence[str]) -> float:
    """Bytes of a shard of a tensor that is split over these axes."""
    size = math.prod(tensor.shape) * tensor.dtype.itemsize
    return size / math.prod(mesh.shape[axis] for axis in axes)


def sharding(mesh: AbstractMesh, labels: Labels, split: Split, counting: Mapping[int, int]) -> NamedSharding:
    """The sharding of a tensor whose labels are split like this. `counting` is `Layout.counting`."""
    entries = (split.get(counting.get(label, label)) for label in labels)
    return NamedSharding(mesh, PartitionSpec(*entries))


def split_further(sharding: NamedSharding, dimension: int, names: tuple[str, ...]) -> NamedSharding:
    """A sharding with one more dimension split, over these axes of the mesh."""
    entries = [*_compat.partitions(sharding)]
    entries[dimension] = names
    return NamedSharding(sharding.mesh, PartitionSpec(*entries))


def parts(mesh: AbstractMesh, split: Split) -> dict[int, int]:
    """Over how many devices each label is split."""
    return {label: math.prod(mesh.shape[axis] for axis in axes) for label, axes in split.items()}


def mesh_of(devices: int, tensors: Sequence[Placed]) -> tuple[AbstractMesh, list[Dimensions]]:
    """A mesh, and for each tensor the axes of it that each dimension is split over.

    XLA's shardings know no axes; they number the devices. Every axis of this mesh has a prime size, for
    Shardy may split a dimension over a part of an axis. Where primes differ, their order matters: the one by
    which most dimensions can be told is taken.
    """
    best, most = None, -1
    for sizes in sorted(set(itertools.permutations(_primes(devices)))):
        mesh = AbstractMesh(sizes, tuple(f"axis_{i}" for i in range(len(sizes))))
        dimensions = [_dimensions(mesh, tensor) for tensor in tensors]
        told = sum(bool(axes) for tensor in dimensions for axes in tensor)
        if told > most:
            best, most = (mesh, dimensions), told
    return best


def _dimensions(mesh: AbstractMesh, tensor: Placed) -> Dimensions:
    """The axes of the mesh that each dimension of a sharded tensor is split over."""
    rank = len(tensor.shape)
    tiles = _compat.tile_assignment(tensor.sharding, rank, mesh.size)
    place = np.argsort(tiles, axis=None).reshape(mesh.axis_sizes)  # of each device among the tiles
    return [_axes(mesh, coordinate) for coordinate in np.unravel_index(place, tiles.shape)[:rank]]


def _axes(mesh: AbstractMesh, coordinate: np.ndarray) -> tuple[str, ...]:
    """The axes of the mesh, major first, that count up a coordinate given for each of its devices; none if
    no axes do."""
    steps = {
        axis: coordinate.take(1, axis).flat[0] for axis in range(coordinate.ndim)
    }  # from the first device to its neighbour
    axes = sorted((axis for axis in steps if steps[axis]), key=steps.__getitem__, reverse=True)
    counted = np.zeros_like(coordinate)
    for axis in axes:
        counted = counted * mesh.axis_sizes[axis] + np.indices(mesh.axis_sizes)[axis]
    return tuple(mesh.axis_names[axis] for axis in axes) if np.array_equal(counted, coordinate) else ()


def _primes(n: int) -> list[int]:
    """Prime factors."""
    primes, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            primes.append(divisor)
            n //= divisor
        divisor += 1
    return primes
