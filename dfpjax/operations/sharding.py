"""Contractions, and quantization in blocks, over several devices: how XLA partitions them between the devices
of a mesh.

XLA cannot see into a native kernel and would gather its operands on every device. So a contraction in a
partitioned program is lowered with a rule that says which axes may be split. It is the rule of an einsum:

- An axis of the output outside of windows (batch, features, groups, axes of vmap) is split between the
  devices, and each computes its own part.
- A contracted axis is split as well. The devices' partial sums are then added in float32, as data-parallel
  training adds weight gradients.
- An axis of a window stays whole on every device, and so does an axis that the devices do not divide.
- Operands in blocks are split where every shard consists of whole blocks (`sharded_blocks`). Otherwise the
  axis stays whole, and what is split along it is gathered.

Every device makes a plan for its shard. The shared exponents are maxima over the whole tensor or over whole
blocks, so the mantissas have the same bits as on one device. But tiles, splits and blocks of the contracted
index start at the beginning of each shard, and a split contraction adds its parts in another order. So a
result differs from one device's by the rounding of float32 sums, and with operands in blocks, by that of
mantissas whose exponents are aligned with others'. It has the same bits if no contracted axis is split, the
output's shards begin at tiles and the plans have as many splits. The axes of vmap have independent problems,
so splitting them changes no bits.

The rule lives in this process. So an exported program runs contractions replicated, and JAX's persistent
compilation cache finds a partitioned program only in the process that compiled it. Do not set
`jax_remove_custom_partitioning_ptr_from_cache_key`: without the pointer to its rule, a convolution's cache
key does not include its padding.
"""

import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfpjax import _compat
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.operations import sharded_blocks

Compute = Callable[..., jax.Array]
"""(contraction, lhs, lhs_exponent, rhs, rhs_exponent) -> out."""

Labels = tuple[int, ...]
Shape = tuple[int, ...]

_NO_MESH = jax.sharding.AbstractMesh((), ())


def partitioned(
    compute: Compute, devices: tuple, blocks: tuple[Blocks | None, ...], contraction: Contraction, *operands
) -> jax.Array:
    """`compute(contraction, *operands)`, for XLA to partition over these devices. `blocks` is the size of
    lhs's and of rhs's blocks, or None for each."""
    labels = _labels(contraction, operands, blocks)
    units = _units(contraction, operands, blocks, len(devices))
    shapes = [x.shape for x in operands]
    counting = sharded_blocks.counting(*labels[:2], shapes[0], blocks[0])
    counting |= sharded_blocks.counting(*labels[2:], shapes[2], blocks[1])

    def partition(_, operands, out):
        # The output first: where the tensors disagree, its sharding decides.
        mesh, split = _split(devices, [contraction.out, *labels], [out, *operands], units)
        out_sharding = _sharding(mesh, contraction.out, split)
        local = replace(contraction, out_shape=out_sharding.shard_shape(out.shape))
        summed = tuple(axis for label in split if label not in contraction.out for axis in split[label])
        parts = _parts(mesh, split)
        shardings = tuple(_sharding(mesh, tensor, split, counting) for tensor in labels)

        def shard(*operands):
            # JAX traces it while XLA compiles, in whatever mesh the caller has set. That mesh is no concern
            # of one device's part: from 0.11 on psum would constrain its reducer to it, which XLA refuses.
            with jax.sharding.use_abstract_mesh(_NO_MESH):
                lhs, lhs_exponent, rhs, rhs_exponent = operands
                lhs_exponent = sharded_blocks.own(
                    lhs_exponent, contraction.lhs, shapes[0], blocks[0], split, parts
                )
                rhs_exponent = sharded_blocks.own(
                    rhs_exponent, contraction.rhs, shapes[2], blocks[1], split, parts
                )
                part = compute(local, lhs, lhs_exponent, rhs, rhs_exponent)
                return lax.psum(part, summed) if summed else part

        return mesh, shard, out_sharding, shardings

    def infer(_, operands, out):  # for the partitioner before Shardy
        mesh, split = _split(devices, labels, operands, units)
        return _sharding(mesh, contraction.out, split)

    def whole(lhs, lhs_exponent, rhs, rhs_exponent):
        return compute(contraction, lhs, lhs_exponent, rhs, rhs_exponent)

    call = custom_partitioning(whole)
    call.def_partition(
        partition,
        infer_sharding_from_operands=infer,
        decode_shardings=False,  # JAX's own fails where one axis of the mesh splits two dimensions
        sharding_rule=_rule(
            [*zip(labels, shapes, strict=True)], [(contraction.out, contraction.out_shape)], units, counting
        ),
    )
    return call(*operands)


def partitioned_quantization(
    compute: Callable, devices: tuple, blocks: Blocks, mapped: int, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`compute(x)`, for XLA to partition over these devices: the mantissas of a tensor in blocks as integers,
    and the exponents. `compute` must not depend on the place of an element.

    Arguments:
        mapped: number of x's leading axes that vmap added.
    """
    labels = tuple(range(x.ndim))
    outer = labels[mapped : mapped + 1] if x.ndim - mapped > 1 else (-1,)
    of_exponent = (*labels[:mapped], *outer, -2, -3)
    units = dict.fromkeys(labels, 1) | sharded_blocks.units(labels, x.shape, mapped, blocks)
    units = _possible(units, dict(enumerate(x.shape)), len(devices))
    counting = sharded_blocks.counting(labels, of_exponent, x.shape, blocks)

    def shardings(mesh: Mesh, split):
        return _sharding(mesh, labels, split), _sharding(mesh, of_exponent, split, counting)

    def partition(_, operands, out):
        mesh, split = _split(devices, [labels], operands, units)

        def shard(part):
            with jax.sharding.use_abstract_mesh(_NO_MESH):
                mantissa, exponent = compute(part)
                parts = _parts(mesh, split)
                return mantissa, sharded_blocks.together(exponent, labels, x.shape, blocks, split, parts)

        return mesh, shard, shardings(mesh, split), (_sharding(mesh, labels, split),)

    def infer(_, operands, out):
        return shardings(*_split(devices, [labels], operands, units))

    call = custom_partitioning(compute)
    exponent_shape = x.shape[:mapped] + blocks.counts(x.shape[mapped:])
    call.def_partition(
        partition,
        infer_sharding_from_operands=infer,
        decode_shardings=False,
        sharding_rule=_rule(
            [(labels, x.shape)], [(labels, x.shape), (of_exponent, exponent_shape)], units, counting
        ),
    )
    return call(x)


def _sharding(
    mesh: Mesh, labels: Labels, split, counting: Mapping[int, int] = types.MappingProxyType({})
) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*(split.get(counting.get(label, label)) for label in labels)))


def _parts(mesh: Mesh, split) -> dict[int, int]:
    """Over how many devices each label is split."""
    return {label: math.prod(mesh.shape[axis] for axis in axes) for label, axes in split.items()}


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
    return _possible({**units, **dict.fromkeys(_windowed(contraction), 0)}, sizes, devices)


def _possible(units: dict[int, int], sizes: dict[int, int], devices: int) -> dict[int, int]:
    """Units that are 0 for axes of these sizes that cannot be split."""
    return {
        label: unit
        if unit and sizes[label] % unit == 0 and math.gcd(sizes[label] // unit, devices) > 1
        else 0
        for label, unit in units.items()
    }


def _rule(
    operands: Sequence[tuple[Labels, Shape]],
    results: Sequence[tuple[Labels, Shape]],
    units: Mapping[int, int],
    counting: Mapping[int, int],
) -> SdyShardingRule:
    """What Shardy propagates shardings by.

    Arguments:
        operands, results: labels and shape of each tensor.
        units: from `_possible`.
        counting: from `sharded_blocks.counting`, the label by which an exponent's axis of blocks is split.
    """
    sizes = {label: size for tensor in (*operands, *results) for label, size in zip(*tensor, strict=True)}
    kept = {label for labels, _ in results for label in labels}
    alone = itertools.count()
    inferred: set[str] = set()  # factors that are a whole axis somewhere
    given: dict[str, int] = {}
    whole: dict[str, None] = {}
    reduced: dict[str, None] = {}

    def factors(label: int, size: int):
        """An axis as one factor or as two. The second one is what is inside a unit, of which a shard has a
        whole number."""
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

    mappings = [[tuple(map(factors, *tensor)) for tensor in tensors] for tensors in (operands, results)]
    return SdyShardingRule(
        *(tuple(ArrayMapping(*axes) for axes in tensors) for tensors in mappings),
        reduction_factors=tuple(reduced),
        need_replication_factors=tuple(whole),
        **{name: size for name, size in given.items() if name not in inferred},
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
