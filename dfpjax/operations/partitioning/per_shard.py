"""Computations that every device runs on its own shards.

XLA cannot see into a native kernel and would gather its operands on every device. So in a partitioned program
a computation is a custom call, whose text (`descriptions`) names the computation and its
parameters. XLA asks `_partition` for the program of one device's shards. This works for a program from
another process, too: one that was exported, or found in JAX's persistent compilation cache. The target's name
has a version, because an exported program may outlive this one.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from dfpjax import _compat
from dfpjax._compat import Placed
from dfpjax.kernels.export import PER_SHARD
from dfpjax.operations.partitioning import blocks, descriptions, meshes
from dfpjax.operations.partitioning.layout import Axes, Layout

_NO_MESH = jax.sharding.AbstractMesh((), ())


@dataclass(frozen=True, kw_only=True)
class Computation:
    """What `per_shard` decorates."""

    name: str
    run: Callable[..., tuple[jax.Array, ...]]
    layout: Callable[..., Layout]
    of_shard: Callable[[dict, Sequence[jax.ShapeDtypeStruct]], dict] | None


_computations: dict[str, Computation] = {}


def per_shard(
    name: str, layout: Callable[..., Layout], *, of_shard: Callable[[dict, Sequence], dict] | None = None
) -> Callable:
    """Have a function run on each device's shards where XLA partitions a program, and as it is elsewhere.

    Arguments:
        name: that of the computation, for good: exported programs have it.
        layout: called with the operands' shapes and dtypes and the parameters.
        of_shard: gives a shard's parameters, from those of the whole and the types of the shard's results.

    Returns:
        a decorator for functions of arrays and keyword parameters that `descriptions` can write. They return
        a tuple of arrays, and must do for a shard what they do for the whole. The decorated function is for
        use in lowerings: it has no derivative and cannot be batched.
    """

    def decorate(run: Callable[..., tuple[jax.Array, ...]]) -> Callable[..., tuple[jax.Array, ...]]:
        computation = Computation(name=name, run=run, layout=layout, of_shard=of_shard)
        assert name not in _computations
        _computations[name] = computation

        @functools.wraps(run)
        def bound(*operands, **params):
            return tuple(_per_shard_p.bind(*operands, computation=computation, params=tuple(params.items())))

        return bound

    return decorate


_per_shard_p = Primitive("dfp_per_shard")
_per_shard_p.multiple_results = True


@_per_shard_p.def_abstract_eval
def _abstract_eval(*operands, computation: Computation, params):
    results = _types(computation, params, tuple(map(_struct, operands)))
    return [_compat.result_aval(operands[0], x.shape, x.dtype) for x in results]


@functools.lru_cache(maxsize=1024)
def _types(computation: Computation, params, operands) -> tuple[jax.ShapeDtypeStruct, ...]:
    return jax.eval_shape(functools.partial(computation.run, **dict(params)), *operands)


def _struct(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _lower(ctx, *operands, computation: Computation, params):
    devices = _compat.devices_of_partitions(ctx)
    if not devices:
        run = functools.partial(computation.run, **dict(params))
        return mlir.lower_fun(run, multiple_results=True)(ctx, *operands)
    types = [*map(_struct, ctx.avals_in)]
    layout = computation.layout(*types, **dict(params))
    description = descriptions.write(
        {
            "computation": computation.name,
            "params": dict(params),
            "devices": devices,
            "platform": _compat.platform_of(ctx),
        }
    )
    rule = layout.rule([x.shape for x in (*types, *ctx.avals_out)], devices)
    return _compat.partitioned_call(ctx, PER_SHARD, description, rule, operands)


def described(text: str) -> tuple[str, dict]:
    """The name and the parameters of the computation that a call to `PER_SHARD` names by this text."""
    found = descriptions.read(text)
    return found["computation"], found["params"]


# What quantizes a result looks at what computes it (`dfpjax.operations.producers`), so it must stand beside.
mlir.register_lowering(_per_shard_p, _lower, cacheable=False)


# --- what XLA asks for while it partitions a program ---------------------------------------------------


class Scattering(NamedTuple):
    """Which part of a sum each device gets, where it is to have a part alone."""

    dimension: int
    names: tuple[str, ...]
    """The axes of the mesh that split this dimension. The devices along them add."""


def _lacking(axes: Axes, split: meshes.Split) -> list[int]:
    """The split labels that a result lacks."""
    return [label for label in split if label not in axes.labels]


def _scattered(
    axes: Axes, tensor: Placed, wanted: meshes.Dimensions, mesh, split: meshes.Split
) -> Scattering | None:
    """How a sum is scattered, if the devices that add are to have parts of it."""
    summed = {name for label in _lacking(axes, split) for name in split[label]}
    for dimension, names in enumerate(wanted if axes.total == "sum" else ()):
        parts = math.prod(mesh.shape[name] for name in names)
        whole = axes.labels[dimension] not in split and tensor.shape[dimension] % parts == 0
        if names and whole and summed >= {*names}:
            return Scattering(dimension, names)
    return None


class _Whole:
    """A call, with the types and shardings of its whole operands and results."""

    def __init__(self, operands: Sequence[Placed], results: Sequence[Placed], described: dict):
        self.computation = _computations[described["computation"]]
        self.params, self.devices, self.platform = (
            described[name] for name in ("params", "devices", "platform")
        )
        self.operands, self.results = operands, results
        structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
        self.layout: Layout = self.computation.layout(*structs, **self.params)

    def split(self, *, with_results: bool) -> tuple[Any, meshes.Split]:
        """The mesh, and how its axes split each label.

        Where tensors disagree, each is tried as the one that decides, and the split by which the devices
        exchange the least is taken.
        """
        axes, tensors = [*self.layout.operands], [*self.operands]
        if with_results:
            axes, tensors = [*self.layout.results, *axes], [*self.results, *tensors]
        mesh, dimensions = meshes.mesh_of(self.devices, tensors)
        self._wanted = dimensions[: len(self.results)] if with_results else [()] * len(self.results)
        units = self.layout.units([x.shape for x in (*self.operands, *self.results)], self.devices)
        for of in zip(self.layout.operands, self.operands, dimensions[-len(self.operands) :], strict=True):
            self._mention_whole(mesh, units, *of)

        def split_by(first: int) -> meshes.Split:
            order = sorted(range(len(tensors)), key=lambda i: i != first)
            labels = [axes[i].labels for i in order]
            return meshes.split(
                mesh, labels, *([of[i] for i in order] for of in (tensors, dimensions)), units
            )

        def cost(split: meshes.Split) -> float:
            results = len(self.results) if with_results else 0
            return sum(
                self._exchanged(mesh, split, *of, is_result=i < results)
                for i, of in enumerate(zip(axes, tensors, dimensions, strict=True))
            )

        return mesh, min(map(split_by, range(len(tensors))), key=cost)

    def _mention_whole(self, mesh, units, axes: Axes, tensor: Placed, given: meshes.Dimensions) -> None:
        """Log which axes of an operand are split but have to be whole."""
        for axis, (label, size, names) in enumerate(zip(axes.labels, tensor.shape, given, strict=True)):
            parts = math.prod(mesh.shape[name] for name in names)
            if label < 0 or parts == 1 or (units[label] and size % (parts * units[label]) == 0):
                continue
            if label in self.layout.whole:
                why = "an axis of windows, or of neighbours, has to be whole"
            elif tensor.dtype == np.float32:  # mantissas have been mentioned as what they come from
                why = "a part would not consist of whole blocks with an exponent each"
            else:
                continue
            shape = f"{tensor.dtype.name}[{','.join(map(str, tensor.shape))}]"
            _warn_once(
                f"{self.computation.name}: {shape} is split over {parts} devices along axis {axis}, where "
                f"{why}. Each device gets all of it, which costs time; results are right. Split another axis."
            )

    def _exchanged(
        self,
        mesh,
        split: meshes.Split,
        axes: Axes,
        tensor: Placed,
        given: meshes.Dimensions,
        *,
        is_result: bool,
    ) -> float:
        """About how many bytes each device gets because of this tensor."""
        counting = self.layout.counting
        made = [split.get(counting.get(label, label), ()) for label in axes.labels]
        if not is_result:
            return meshes.resharded(mesh, tensor, given, made)
        if not (axes.total and _lacking(axes, split)):
            return meshes.resharded(mesh, tensor, made, given)
        whole = meshes.local_bytes(mesh, tensor, [axis for names in made for axis in names])
        if _scattered(axes, tensor, given, mesh, split):  # sends half of what an all-reduce does
            return whole
        return 2 * whole + meshes.resharded(mesh, tensor, made, given)

    def scatterings(self, mesh, split: meshes.Split) -> list[Scattering | None]:
        """Of the results."""
        wanted = zip(self.layout.results, self.results, self._wanted, strict=True)
        return [_scattered(axes, tensor, given, mesh, split) for axes, tensor, given in wanted]

    def shardings(self, mesh, split: meshes.Split) -> tuple[list, list]:
        """Those of the operands, and of the results as they are computed."""
        counting = self.layout.counting
        return tuple(
            [meshes.sharding(mesh, axes.labels, split, counting) for axes in tensors]
            for tensors in (self.layout.operands, self.layout.results)
        )


def _partition(operands: Sequence[Placed], results: Sequence[Placed], text: bytes):
    """The program of one device, and the shardings of the operands and of the results."""
    call = _Whole(operands, results, descriptions.read(text))
    mesh, split = call.split(with_results=True)
    of_operands, computed = call.shardings(mesh, split)
    parts, scatterings = meshes.parts(mesh, split), call.scatterings(mesh, split)
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
    call = _Whole(operands, results, descriptions.read(text))
    return call.shardings(*call.split(with_results=False))[1]


_compat.register_partitioner(PER_SHARD, _partition, _infer)


@functools.lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    logging.getLogger("dfpjax").warning(message)


def _of_blocks(cut_or_join: Callable, x: jax.Array, axes: Axes, split: meshes.Split, parts) -> jax.Array:
    """A device's exponents from those that a split by `counting` leaves it, or the other way round."""
    if (of := axes.exponents) is None:
        return x
    return cut_or_join(x, of.labels, of.shape, of.size, split, parts)


def _total(
    x: jax.Array, axes: Axes, split: meshes.Split, parts: Mapping[int, int], scattering: Scattering | None
) -> jax.Array:
    """What the devices' results make together."""
    lacking = _lacking(axes, split)
    names = tuple(name for label in lacking for name in split[label])
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
            return lax.psum(x, names) / np.prod([parts[label] for label in lacking]).astype(x.dtype)
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
