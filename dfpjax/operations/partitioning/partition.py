"""What XLA asks for while it partitions a program: each device's part of a call."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax import _compat
from dfpjax._compat import Placed
from dfpjax.kernels.export import PER_SHARD
from dfpjax.operations.partitioning import blocks, descriptions, meshes
from dfpjax.operations.partitioning.calls import Call, Scattering, lacking
from dfpjax.operations.partitioning.layout import Axes
from dfpjax.operations.partitioning.meshes import Split

_NO_MESH = jax.sharding.AbstractMesh((), ())


def _partition(operands: Sequence[Placed], results: Sequence[Placed], text: bytes):
    """The program of one device, and the shardings of the operands and of the results."""
    call = Call(operands, results, descriptions.read(text))
    mesh, split, scatterings = call.mesh, call.split, call.scatterings
    of_operands, computed = call.shardings()
    parts = meshes.parts(mesh, split)
    of_results = [
        s if scattering is None else meshes.split_further(s, *scattering)
        for s, scattering in zip(computed, scatterings, strict=True)
    ]
    local_operands, local_results, local_computed = (
        [jax.ShapeDtypeStruct(s.shard_shape(x.shape), x.dtype) for s, x in zip(found, whole, strict=True)]
        for found, whole in ((of_operands, operands), (of_results, results), (computed, results))
    )
    params, layout = call.params, call.layout
    if call.computation.of_shard is not None:
        params = call.computation.of_shard(params, local_computed)

    def shard(*given):
        given = [
            _of_blocks(blocks.own, x, axes, split, parts)
            for x, axes in zip(given, layout.operands, strict=True)
        ]
        made = call.computation.run(*given, **params)
        return [
            _total(_of_blocks(blocks.together, x, axes, split, parts), axes, split, parts, scattering)
            for x, axes, scattering in zip(made, layout.results, scatterings, strict=True)
        ]

    # JAX traces it while XLA compiles, in whatever mesh the caller has set. That mesh is no concern of one
    # device's part: from 0.11 on psum would constrain its reducer to it, which XLA refuses.
    with jax.sharding.use_abstract_mesh(_NO_MESH):
        program = _compat.shard_program(shard, local_operands, local_results, mesh, call.platform)
    return program, of_operands, of_results


def _infer(operands: Sequence[Placed], results: Sequence[Placed], text: bytes):
    """The shardings of the results. Only the partitioner before Shardy asks."""
    return Call(operands, results, descriptions.read(text)).shardings()[1]


_compat.register_partitioner(PER_SHARD, _partition, _infer)


def _of_blocks(cut_or_join: Callable, x: jax.Array, axes: Axes, split: Split, parts) -> jax.Array:
    """A device's exponents from those that a split by `counting` leaves it, or the other way round."""
    if (of := axes.exponents) is None:
        return x
    return cut_or_join(x, of.labels, of.shape, of.size, split, parts)


def _total(
    x: jax.Array, axes: Axes, split: Split, parts: Mapping[int, int], scattering: Scattering | None
) -> jax.Array:
    """What the devices' results make together."""
    summed = lacking(axes, split)
    names = tuple(name for label in summed for name in split[label])
    if axes.total is None or not names:
        return x
    if scattering is not None:
        dimension, own = scattering
        x = lax.psum_scatter(x, own, scatter_dimension=dimension, tiled=True)
        others = tuple(name for name in names if name not in own)
        return lax.psum(x, others) if others else x
    match axes.total:
        case "sum":
            return lax.psum(x, names)
        case "mean":
            return lax.psum(x, names) / np.prod([parts[label] for label in summed]).astype(x.dtype)
        case "count":
            return _saturated_sum(x, names)
        case "greatest":
            return _greatest(x, names)
        case "least":
            return -_greatest(-x, names)


def _saturated_sum(x: jax.Array, names) -> jax.Array:
    """The sum of counts, at most 2³¹ − 1. No half of their bits overflows."""
    low, high = lax.psum(x & 0xFFFF, names), lax.psum(x >> 16, names)
    high = high + (low >> 16)
    return jnp.where(high > 0x7FFF, np.int32(2**31 - 1), (high << 16) | (low & 0xFFFF))


def _greatest(x: jax.Array, names) -> jax.Array:
    """The greatest of each number, NaN if one is. Of floats, whose NaNs a maximum may lose, it is that of
    integers in the same order."""
    if x.dtype != jnp.float32:
        return lax.pmax(x, names)
    bits = lax.bitcast_convert_type(x, jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ordered = lax.pmax(jnp.where(jnp.isnan(x), np.int32(2**31 - 1), ordered), names)
    return lax.bitcast_convert_type(jnp.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered), jnp.float32)
