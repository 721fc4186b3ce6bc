"""Explicit meshes, on which the sharding of a result is part of its type.

A primitive says in its type how its result is sharded over the explicit axes of a mesh. Its lowering leaves
to the partitioner how to get there: inside, no axis is explicit. So what is kept for a derivative, and what
passes from one equation to the next, has the type that JAX's own operations would give it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.interpreters import mlir
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def explicit_axes(mesh) -> tuple[str, ...]:
    """Names of a mesh's explicit axes."""
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(axis for axis, kind in types if kind == AxisType.Explicit)


def with_partitions(sharding: NamedSharding, partitions: Sequence) -> NamedSharding:
    """A sharding over the same mesh with these entries, one for each axis of an array."""
    return sharding.update(spec=PartitionSpec(*partitions))


def with_leading(sharding: NamedSharding, leading: Sequence) -> NamedSharding:
    """A sharding with more entries in front, for axes that vmap added; an entry is left out where the mesh's
    axis splits another axis already."""
    used = {name for entry in sharding.spec for name in _names(entry)}
    leading = (None if used & {*_names(entry)} else entry for entry in leading)
    return with_partitions(sharding, (*leading, *sharding.spec))


def split_axis(sharding: NamedSharding, axis: int, leading: int) -> NamedSharding:
    """The sharding of an array of which an axis becomes two, the first of that size: that is split between
    the devices if they divide it."""
    entry = sharding.spec[axis]
    parts = math.prod(sharding.mesh.shape[name] for name in _names(entry))
    two = (None if leading % parts else entry, None)
    return with_partitions(sharding, (*sharding.spec[:axis], *two, *sharding.spec[axis + 1 :]))


def _names(entry) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def reshaped(x: jax.Array, shape: Sequence[int], sharding: NamedSharding) -> jax.Array:
    """x with this shape and, on an explicit mesh, this sharding."""
    return lax.reshape(x, shape, out_sharding=sharding) if explicit_axes(sharding.mesh) else x.reshape(shape)


def lower_fun(fun: Callable, *, multiple_results: bool) -> Callable:
    """`mlir.lower_fun` of a function that need not know of explicit axes; its results are sharded as the
    equation's types say."""

    def lower(ctx, *operands, **params):
        shardings = tuple(aval.sharding for aval in ctx.avals_out)
        run = functools.partial(fun, **params)
        run = automatic(run, shardings if multiple_results else shardings[0])
        return mlir.lower_fun(run, multiple_results=multiple_results)(ctx, *operands)

    return lower


def automatic(fun: Callable, out_sharding: Any) -> Callable:
    """A function that is traced where no axis of its results' mesh is explicit.

    Arguments:
        fun: of arrays, which may lie on that mesh.
        out_sharding: a `NamedSharding` over an abstract mesh, or a tuple of them, one for each result.
    """
    mesh = jax.tree.leaves(out_sharding)[0].mesh
    axes = explicit_axes(mesh)
    if not axes:
        return fun

    def run(*operands):
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.sharding.auto_axes(
                lambda *operands: fun(*operands), axes=axes, out_sharding=out_sharding
            )(*operands)

    return run
