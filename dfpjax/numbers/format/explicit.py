"""Explicit meshes, on which the sharding of a result is part of its type.

The result type of a primitive gives its sharding over the explicit axes of a mesh. Inside its lowering no
axis is explicit, so the partitioner chooses how to compute the result. Thus residuals of derivatives, and
values between equations, have the types that JAX's own operations would give them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.interpreters import mlir
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dfpjax._compat import partitions


def explicit_axes(mesh) -> tuple[str, ...]:
    """Names of a mesh's explicit axes."""
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(axis for axis, kind in types if kind == AxisType.Explicit)


def with_partitions(sharding: NamedSharding, entries: Sequence) -> NamedSharding:
    """The sharding over the same mesh with these entries, one for each axis of an array."""
    return sharding.update(spec=PartitionSpec(*entries))


def with_leading(sharding: NamedSharding, leading: Sequence) -> NamedSharding:
    """The sharding with more entries in front, for axes that vmap added."""
    return sharding.update(spec=sharding.spec.update(partitions=(*leading, *partitions(sharding))))


def mapped_sharding(operands, dims, sharding: NamedSharding) -> NamedSharding:
    """The sharding of an array to which vmap adds a leading axis, which is split like the operands' mapped
    axes."""
    for x, dim in zip(operands, dims, strict=True):
        if dim is not None and (entry := partitions(jax.typeof(x).sharding)[dim]) is not None:
            if sharding.mesh.empty:
                sharding = with_partitions(jax.typeof(x).sharding, partitions(sharding))
            return with_leading(sharding, [entry])
    return with_leading(sharding, [None])


def repeated(x: jax.Array, size: int, sharding: NamedSharding) -> jax.Array:
    """x repeated along a new leading axis of this size and, on an explicit mesh, with this sharding."""
    if explicit_axes(sharding.mesh):
        return lax.broadcast(x, (size,), out_sharding=sharding)
    return lax.broadcast(x, (size,))


def split_axis(sharding: NamedSharding, axis: int, leading: int) -> NamedSharding:
    """The sharding of an array after one axis becomes two, the first of size `leading`. The first is split
    over the axis's devices if their number divides it."""
    entries = [*partitions(sharding)]
    parts = math.prod(sharding.mesh.shape[name] for name in _names(entries[axis]))
    entries[axis : axis + 1] = [None if leading % parts else entries[axis], None]
    return sharding.update(spec=sharding.spec.update(partitions=entries))


def permuted(values: Sequence, axes: Sequence[int]) -> tuple:
    """What belongs to each axis of a tensor, after `lax.transpose(tensor, axes)`."""
    return tuple(values[axis] for axis in axes)


def permuted_sharding(sharding: NamedSharding, axes: Sequence[int]) -> NamedSharding:
    """The sharding of an array after `lax.transpose(array, axes)`."""
    return sharding.update(spec=sharding.spec.update(partitions=permuted(partitions(sharding), axes)))


def cotangent_sharding(linear, otherwise: NamedSharding) -> NamedSharding:
    """The sharding of the cotangent of a linear operand.

    Arguments:
        linear: the operand's type.
        otherwise: a sharding whose mesh to use if the operand has no mesh.
    """
    sharding = linear.sharding
    if sharding.mesh.empty:
        return with_partitions(otherwise, partitions(sharding))
    # JAX 0.12 can give the cotangent's type directly. `to_ct_spec` exchanges reduced and unreduced axes, and
    # no operand is unreduced.
    return sharding.update(spec=sharding.spec.to_ct_spec()) if sharding.spec.reduced else sharding


def _summed(sharding: NamedSharding) -> NamedSharding:
    """The sharding of an array after the devices' partial sums are added."""
    return sharding.update(spec=PartitionSpec(*partitions(sharding), reduced=sharding.spec.reduced))


def summed(x: jax.Array) -> jax.Array:
    """x with its partial sums added, if the devices hold partial sums over explicit axes."""
    sharding = jax.typeof(x).sharding
    return jax.reshard(x, _summed(sharding)) if sharding.spec.unreduced else x


def _names(entry) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def reshaped(x: jax.Array, shape: Sequence[int], sharding: NamedSharding) -> jax.Array:
    """x with this shape and, on an explicit mesh, this sharding."""
    return lax.reshape(x, shape, out_sharding=sharding) if explicit_axes(sharding.mesh) else x.reshape(shape)


def lower_fun(fun: Callable, *, multiple_results: bool) -> Callable:
    """`mlir.lower_fun` for a function that does not handle explicit axes. Its results get the shardings of
    the equation's result types.

    It is traced once for all equations with the same types and parameters, in whatever programs they are."""

    @functools.lru_cache(maxsize=1024)
    def traced_once(shardings, params):
        run = functools.partial(fun, **dict(params))
        run = automatic(run, shardings if multiple_results else shardings[0])
        return mlir.lower_fun(jax.jit(run, inline=True), multiple_results=multiple_results)

    def lower(ctx, *operands, **params):
        shardings = tuple(aval.sharding for aval in ctx.avals_out)
        return traced_once(shardings, tuple(params.items()))(ctx, *operands)

    return lower


def automatic(fun: Callable, out_sharding: Any) -> Callable:
    """`fun`, traced such that no axis of its results' mesh is explicit.

    Arguments:
        fun: function of arrays, which may be on that mesh.
        out_sharding: a `NamedSharding` over an abstract mesh, or a tuple with one for each result.
    """
    mesh = jax.tree.leaves(out_sharding)[0].mesh
    axes = explicit_axes(mesh)
    if not axes:
        return fun

    complete = jax.tree.map(_summed, out_sharding)

    def run(*operands):
        with jax.sharding.use_abstract_mesh(mesh):
            out = jax.sharding.auto_axes(lambda *operands: fun(*operands), axes=axes, out_sharding=complete)
            # Automatic axes have no partial sums, so an unreduced result is summed first and then resharded.
            return out(*operands) if complete == out_sharding else jax.reshard(out(*operands), out_sharding)

    return run
