"""Contractions over several devices: how XLA partitions one between the devices of a mesh.

XLA cannot see into a native kernel and would gather its operands on every device. So a contraction in a
partitioned program is lowered with a rule that says which axes may be split. It is the rule of an einsum:

- An axis of the output outside of windows (batch, features, groups, axes of vmap) is split between the
  devices, and each computes its own part.
- A contracted axis is split as well. The devices' partial sums are then added in float32, as data-parallel
  training adds weight gradients.
- An axis of a window stays whole on every device, and so does an axis that the devices do not divide.

Every device makes a plan for its shard. A result differs from one device's only by the rounding of float32
sums. The shared exponents are maxima over the whole tensor, and the mantissas have the same bits. But tiles
and splits start at the beginning of each shard, and a split contraction adds its parts in another order. The
axes of vmap have independent problems, so splitting them changes no bits.

The rule lives in this process. So an exported program runs contractions replicated, and JAX's persistent
compilation cache finds a partitioned program only in the process that compiled it. Do not set
`jax_remove_custom_partitioning_ptr_from_cache_key`: without the pointer to its rule, a convolution's cache
key does not include its padding.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfpjax import _compat
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.operations import sharded_blocks

Compute = Callable[..., jax.Array]
"""(contraction, lhs, lhs_exponent, rhs, rhs_exponent) -> out."""

Labels = tuple[int, ...]

_NO_MESH = jax.sharding.AbstractMesh((), ())


def partitioned(
    compute: Compute, devices: tuple, blocks: tuple[Blocks | None, ...], contraction: Contraction, *operands
) -> jax.Array:
    """`compute(contraction, *operands)`, for XLA to partition over these devices. `blocks` is the size of
    lhs's and of rhs's blocks, or None for each."""
    labels = _labels(contraction, operands, blocks)
    units = _units(contraction, operands, blocks, len(devices))
    whole_labels = {label for label, unit in units.items() if unit == 0}

    def sharding(mesh: Mesh, labels: Labels, split) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(split.get(label) for label in labels)))

    def partition(_, operands, out):
        # The output first: where the tensors disagree, its sharding decides.
        mesh, split = _split(devices, [contraction.out, *labels], [out, *operands], units)
        out_sharding = sharding(mesh, contraction.out, split)
        local = replace(contraction, out_shape=out_sharding.shard_shape(out.shape))
        summed = tuple(axis for label in split if label not in contraction.out for axis in split[label])
        parts = {label: math.prod(mesh.shape[axis] for axis in axes) for label, axes in split.items()}
        whole_lhs, whole_rhs = operands[0].shape, operands[2].shape
        of_exponents = {
            **split,
            **sharded_blocks.exponent_splits(*labels[:2], whole_lhs, blocks[0], split),
            **sharded_blocks.exponent_splits(*labels[2:], whole_rhs, blocks[1], split),
        }
        shardings = tuple(sharding(mesh, tensor, of_exponents) for tensor in labels)

        def shard(*operands):
            # JAX traces it while XLA compiles, in whatever mesh the caller has set. That mesh is no concern
            # of one device's part: from 0.11 on psum would constrain its reducer to it, which XLA refuses.
            with jax.sharding.use_abstract_mesh(_NO_MESH):
                lhs, lhs_exponent, rhs, rhs_exponent = operands
                lhs_exponent = sharded_blocks.own(
                    lhs_exponent, contraction.lhs, whole_lhs, blocks[0], split, parts
                )
                rhs_exponent = sharded_blocks.own(
                    rhs_exponent, contraction.rhs, whole_rhs, blocks[1], split, parts
                )
                part = compute(local, lhs, lhs_exponent, rhs, rhs_exponent)
                return lax.psum(part, summed) if summed else part

        return mesh, shard, out_sharding, shardings

    def infer(_, operands, out):  # for the partitioner before Shardy
        mesh, split = _split(devices, labels, operands, units)
        return sharding(mesh, contraction.out, split)

    def whole(lhs, lhs_exponent, rhs, rhs_exponent):
        return compute(contraction, lhs, lhs_exponent, rhs, rhs_exponent)

    call = custom_partitioning(whole)
    call.def_partition(
        partition,
        infer_sharding_from_operands=infer,
        decode_shardings=False,  # JAX's own fails where one axis of the mesh splits two dimensions
        sharding_rule=_rule(contraction, labels, whole_labels),
    )
    return call(*operands)


def _labels(contraction: Contraction, operands, blocks) -> list[Labels]:
    """Labels of each operand's axes. An exponent's axis of size 1 has a negative one of its own: it does not
    have the label's size. So have an exponent's two axes of blocks."""
    fresh = itertools.count(-1, -1)
    found = []
    for position, x in enumerate(operands):
        labels = (contraction.lhs, contraction.rhs)[position // 2]
        if position % 2 and blocks[position // 2]:
            has_outer = len(labels) - x.ndim + 3 > 1  # of several axes that vmap has not added
            labels = (*labels[: x.ndim - 2],) if has_outer else (*labels[: x.ndim - 3], None)
            labels += (None, None)
        found.append(
            tuple(
                label if size > 1 and label is not None else next(fresh)
                for label, size in zip(labels, x.shape, strict=True)
            )
        )
    return found


def _windowed(contraction: Contraction) -> set[int]:
    return {label for w in contraction.windows for label in (w.lhs, w.rhs, w.out)}


def _units(contraction: Contraction, operands, blocks, devices: int) -> dict[int, int]:
    """For each label, what the extent of a shard must be a multiple of; 0 if the axis must stay whole.

    Axes of windows stay whole. Along the axes that count a block's rows or columns, shards consist of whole
    blocks. An axis that no number of these devices divides this way stays whole, too.
    """
    units = dict.fromkeys((*contraction.lhs, *contraction.rhs, *contraction.out), 1)
    sizes = dict(zip(contraction.out, contraction.out_shape, strict=True))
    for labels, x, size in (
        (contraction.lhs, operands[0], blocks[0]),
        (contraction.rhs, operands[2], blocks[1]),
    ):
        sizes |= zip(labels, x.shape, strict=True)
        mapped = len(contraction.mapped_axes(labels))
        for label, unit in sharded_blocks.units(labels, x.shape, mapped, size).items():
            units[label] = math.lcm(units[label], unit)
    indivisible = {
        label
        for label, unit in units.items()
        if sizes[label] % unit or math.gcd(sizes[label] // unit, devices) == 1
    }
    return {**units, **dict.fromkeys(_windowed(contraction) | indivisible, 0)}


def _rule(contraction: Contraction, labels: Sequence[Labels], whole: set[int]) -> SdyShardingRule:
    """What Shardy propagates shardings by."""

    def name(label: int) -> str:
        return f"label_{label}" if label >= 0 else f"one_{-label}"

    tensors = [*labels, contraction.out]
    order = list(dict.fromkeys(itertools.chain.from_iterable(tensors)))  # Shardy insists on it
    contracted = {label for label in order if label >= 0} - whole - {*contraction.out}
    *operands, out = (tuple(map(name, tensor)) for tensor in tensors)
    return SdyShardingRule(
        tuple(operands),
        (out,),
        reduction_factors=tuple(name(label) for label in order if label in contracted),
        need_replication_factors=tuple(name(label) for label in order if label in whole),
    )


# --- shardings as axes of a mesh ------------------------------------------------------------------


def _split(devices: tuple, labels: Sequence[Labels], tensors, units: dict[int, int]):
    """A mesh of the devices, and the axes of it that each label is split over.

    A label and an axis of the mesh are settled by the first tensor that uses them; XLA reshards those that
    say otherwise, and those split along an axis that must be whole or that the devices do not divide.
    """
    mesh, dimensions = _mesh(devices, tensors)
    split: dict[int, tuple[str, ...]] = {}
    used: set[str] = set()
    for tensor_labels, tensor, tensor_dimensions in zip(labels, tensors, dimensions, strict=True):
        for label, size, axes in zip(tensor_labels, tensor.shape, tensor_dimensions, strict=True):
            parts = math.prod(mesh.shape[axis] for axis in axes)
            unit = units.get(label, 0)  # an exponent's axis that has no label stays whole
            if axes and unit and label not in split and not used & {*axes} and size % (parts * unit) == 0:
                split[label] = axes
                used |= {*axes}
    return mesh, split


def _mesh(devices: tuple, tensors):
    """A mesh, and for each tensor the axes of it that each dimension is split over.

    XLA's shardings know no axes; they number the devices. Every axis of this mesh has a prime size, for
    Shardy may split a dimension over a part of an axis. Where primes differ, their order matters: the one by
    which most dimensions can be told is taken.
    """
    best, most = None, -1
    for sizes in sorted(set(itertools.permutations(_primes(len(devices))))):
        mesh = Mesh(np.array(devices).reshape(sizes), tuple(f"axis_{i}" for i in range(len(sizes))))
        dimensions = [_dimensions(mesh, tensor) for tensor in tensors]
        told = sum(bool(axes) for tensor in dimensions for axes in tensor)
        if told > most:
            best, most = (mesh, dimensions), told
    return best


def _dimensions(mesh: Mesh, tensor) -> list[tuple[str, ...]]:
    """The axes of the mesh that each dimension of a sharded tensor is split over."""
    rank = len(tensor.shape)
    tiles = _compat.tile_assignment(tensor.sharding, rank)
    place = np.argsort(tiles, axis=None).reshape(mesh.axis_sizes)  # of each device among the tiles
    return [_axes(mesh, coordinate) for coordinate in np.unravel_index(place, tiles.shape)[:rank]]


def _axes(mesh: Mesh, coordinate: np.ndarray) -> tuple[str, ...]:
    """The axes of the mesh, major first, that count up a coordinate given for each of its devices; none if
    no axes do."""
    steps = {
        axis: coordinate.take(1, axis).flat[0] for axis in range(mesh.devices.ndim)
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
