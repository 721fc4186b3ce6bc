"""Computations that every device runs on its own shards.

XLA cannot see into a native kernel and would gather its operands on every device. So in a partitioned program
a computation is a custom call, whose text (`descriptions`) names the computation and its
parameters. XLA asks `_partition` for the program of one device's shards. This works for a program from
another process, too: one that was exported, or found in JAX's persistent compilation cache. The target's name
has a version, because an exported program may outlive this one.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        """The mesh, and how its axes split each label."""
        operands = [*zip(self.layout.operands, self.operands, strict=True)]
        results = [*zip(self.layout.results, self.results, strict=True)] if with_results else []
        tensors = results + operands if self.layout.results_first else operands + results
        units = self.layout.units([x.shape for x in (*self.operands, *self.results)], self.devices)
        labels = [axes.labels for axes, _ in tensors]
        return meshes.split(self.devices, labels, [x for _, x in tensors], units)

    def shardings(self, mesh, split: meshes.Split) -> tuple[list, list]:
        """Those of the operands and of the results."""
        counting = self.layout.counting
        return tuple(
            [meshes.sharding(mesh, axes.labels, split, counting) for axes in tensors]
            for tensors in (self.layout.operands, self.layout.results)
        )


def _partition(operands: Sequence[Placed], results: Sequence[Placed], text: bytes):
    """The program of one device, and the shardings of the operands and of the results."""
    call = _Whole(operands, results, descriptions.read(text))
    mesh, split = call.split(with_results=True)
    of_operands, of_results = call.shardings(mesh, split)
    parts = meshes.parts(mesh, split)
    local_operands, local_results = (
        [jax.ShapeDtypeStruct(s.shard_shape(x.shape), x.dtype) for s, x in zip(found, whole, strict=True)]
        for found, whole in ((of_operands, operands), (of_results, results))
    )
    params, layout = call.params, call.layout
    if call.computation.of_shard is not None:
        params = call.computation.of_shard(params, local_results)

    def shard(*given):
        given = [
            _of_blocks(blocks.own, x, axes, split, parts)
            for x, axes in zip(given, layout.operands, strict=True)
        ]
        made = call.computation.run(*given, **params)
        return [
            _total(_of_blocks(blocks.together, x, axes, split, parts), axes, split, parts)
            for x, axes in zip(made, layout.results, strict=True)
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


def _of_blocks(cut_or_join: Callable, x: jax.Array, axes: Axes, split: meshes.Split, parts) -> jax.Array:
    """A device's exponents from those that a split by `counting` leaves it, or the other way round."""
    if (of := axes.exponents) is None:
        return x
    return cut_or_join(x, of.labels, of.shape, of.size, split, parts)


def _total(x: jax.Array, axes: Axes, split: meshes.Split, parts: Mapping[int, int]) -> jax.Array:
    """What the devices' results make together."""
    lacking = [label for label in split if label not in axes.labels]
    names = tuple(name for label in lacking for name in split[label])
    if axes.total is None or not names:
        return x
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
