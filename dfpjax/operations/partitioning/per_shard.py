"""Computations that every device runs on its own shards.

XLA cannot see into a native kernel and would gather its operands on every device. So in a partitioned program
a computation is a custom call, whose text (`descriptions`) names the computation and its
parameters. XLA asks for the program of one device's shards (`partition`). This works for a program from
another process, too: one that was exported, or found in JAX's persistent compilation cache. The target's name
has a version, because an exported program may outlive this one.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from dfpjax import _compat
from dfpjax._symbolic import is_symbolic
from dfpjax.kernels.export import PER_SHARD
from dfpjax.operations.partitioning import descriptions
from dfpjax.operations.partitioning.layout import Layout
from dfpjax.operations.partitioning.warnings import warn_once


@dataclass(frozen=True, kw_only=True)
class Computation:
    """What `per_shard` decorates."""

    name: str
    run: Callable[..., tuple[jax.Array, ...]]
    layout: Callable[..., Layout]
    of_shard: Callable[[dict, Sequence[jax.ShapeDtypeStruct]], dict] | None


computations: dict[str, Computation] = {}
"""By name."""


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
        assert name not in computations
        computations[name] = computation

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
    if devices and is_symbolic(*(x.shape for x in (*ctx.avals_in, *ctx.avals_out))):
        warn_once(
            f"{computation.name} of {_shapes(ctx)} has symbolic extents in a program of {devices} devices, "
            "which all compute the whole. This costs time; results are right. To avoid it, export the "
            "program with fixed shapes."
        )
        devices = 0
    if not devices:
        if _compat.is_partly_manual(ctx):
            warn_once(
                f"{computation.name} of {_shapes(ctx)} is in a shard_map over some axes of a mesh. The "
                "devices of the other axes all compute the whole, which costs time; results are right. To "
                "avoid this, map over all axes."
            )
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


def _shapes(ctx) -> str:
    return ", ".join(f"{x.dtype.name}[{','.join(map(str, x.shape))}]" for x in ctx.avals_in)


def described(text: str) -> tuple[str, dict]:
    """The name and the parameters of the computation that a call to `PER_SHARD` names by this text."""
    found = descriptions.read(text)
    return found["computation"], found["params"]


# What quantizes a result looks at what computes it (`dfpjax.operations.producers`), so it must stand beside.
mlir.register_lowering(_per_shard_p, _lower, cacheable=False)
