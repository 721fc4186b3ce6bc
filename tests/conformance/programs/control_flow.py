"""Calls, rematerialization and control flow."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.api_util import debug_info
from jax.extend import linear_util
from jax.extend.core.primitives import call_p, closed_call_p
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from conformance.programs._program import (
    activation,
    copies,
    layer,
    mesh,
    program,
    total,
    two_layers,
)

# --- called functions -----------------------------------------------------------------------------


@program
def plain(op, w, x):
    return layer(op, w, x)


@program
def residual_net(op, w, x):
    """Operands and results that are used more than once."""
    first = layer(op, w, x)
    return {"first": first, "out": x + first + layer(op, w / 2, first)}


@program
def jit(op, w, x):
    return jax.jit(functools.partial(layer, op))(w, x)


@program
def nested_jit(op, w, x):
    inner = jax.jit(functools.partial(layer, op))
    return jax.jit(lambda w, x: inner(w, inner(w, x)))(w, x)


@program
def jit_donating(op, w, x):
    return jax.jit(functools.partial(layer, op), donate_argnums=1)(w, x + 0)


@program
def jit_sharded(op, w, x):
    shard = functools.partial(NamedSharding, mesh())
    shardings = {"in_shardings": (shard(P()), shard(P("data"))), "out_shardings": shard(P("data"))}
    return jax.jit(jax.vmap(functools.partial(layer, op), (None, 0)), **shardings)(w, copies(x))


@program
def jit_static_arguments(op, w, x):
    def fun(w, x, *, depth):
        for _ in range(depth):
            x = layer(op, w, x)
        return x

    return jax.jit(fun, static_argnames="depth", inline=True)(w, x, depth=2)


@program
def named_call(op, w, x):
    return jax.named_call(functools.partial(layer, op), name="layer")(w, x)


def _call(primitive, op, w, x):
    def flat(w, x):
        return [layer(op, w, x)]

    if jax.__version_info__ < (0, 11):
        wrapped = linear_util.wrap_init(flat, debug_info=debug_info("call", flat, (w, x), {}))
        return primitive.bind(w, x, subfuns=(wrapped,))[0]
    return primitive.bind(w, x, call_jaxpr=jax.make_jaxpr(flat)(w, x))[0]


@program
def core_call(op, w, x):
    return _call(call_p, op, w, x)


@program
def closed_call(op, w, x):
    return _call(closed_call_p, op, w, x)


_NO_COMPOSITE = {
    "forward": "JVP rule for composite not implemented",
    "reverse": "JVP rule for composite not implemented",
    "batching": "Batching rule for 'composite' not implemented",
}


@program(refuses=_NO_COMPOSITE)
def composite(op, w, x):
    return lax.composite(functools.partial(layer, op), name="dfpjax.test")(w, x)


# --- rematerialization ----------------------------------------------------------------------------


@program
def remat(op, w, x):
    return jax.checkpoint(functools.partial(two_layers, op))(w, x)


@program(recomputes_inside=True)
def remat_with_policy(op, w, x):
    policy = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(functools.partial(two_layers, op), policy=policy)(w, x)


@program
def remat_saving_names(op, w, x):
    def named(w, x):
        return layer(op, w, checkpoint_name(layer(op, w, x), "first"))

    policy = jax.checkpoint_policies.save_only_these_names("first")
    return jax.checkpoint(named, policy=policy)(w, x)


@program
def remat_without_cse_barrier(op, w, x):
    return jax.checkpoint(functools.partial(two_layers, op), prevent_cse=False)(w, x)


# --- control flow ---------------------------------------------------------------------------------


@program
def scan(op, w, x):
    return lax.scan(lambda c, _: (layer(op, w, c), c[..., 0]), x, length=3)


@program
def scan_over_weights(op, w, x):
    return lax.scan(lambda c, w: (layer(op, w, c), None), x, jnp.stack([w, w / 2]))[0]


@program
def scan_reversed_and_unrolled(op, w, x):
    return lax.scan(lambda c, v: (layer(op, w, c) + v, c), x, copies(x), reverse=True, unroll=2)


@program
def scan_of_remat(op, w, x):
    return lax.scan(jax.checkpoint(lambda c, w: (layer(op, w, c), None)), x, jnp.stack([w, w / 2]))[0]


@program
def recurrent(op, w, x):
    """A gated recurrent cell, scanned over time."""

    def cell(h, x):
        gate = activation(op(w, x) - h)
        h = gate * h + (1 - gate) * activation(op(w, gate * h))
        return h, h

    return lax.scan(cell, x, copies(x))


# For second derivatives, JAX 0.10.1 fails before it reaches this message.
_JAX_0_10_1 = r"unsupported operand type\(s\) for \+: 'NoneType' and 'tuple'"
NO_REVERSE_WHILE = {"reverse": f"Reverse-mode differentiation does not work for lax.while_loop|{_JAX_0_10_1}"}


@program(refuses=NO_REVERSE_WHILE)
def while_loop(op, w, x):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, layer(op, w, c[1])), (0, x))[1]


@program(refuses=NO_REVERSE_WHILE)
def while_loop_condition(op, w, x):
    """The condition, too, contains an operation."""

    def goes_on(c):
        return (jnp.abs(op(w, c[1])).max() > -1) & (c[0] < 2)

    return lax.while_loop(goes_on, lambda c: (c[0] + 1, layer(op, w, c[1])), (0, x))[1]


@program
def fori_loop(op, w, x):
    return lax.fori_loop(0, 3, lambda _, x: layer(op, w, x), x)  # becomes a scan: its bounds are known


@program
def cond(op, w, x):
    return lax.cond(total(x) > -1e9, functools.partial(layer, op), lambda w, x: op(w / 2, x), w, x)


@program
def switch(op, w, x):
    branches = [lambda w, x: x, functools.partial(layer, op), lambda w, x: op(w, x)]
    return lax.switch(1 + (total(x) > 1e9).astype(jnp.int32), branches, w, x)


@program
def lax_map(op, w, x):
    return lax.map(lambda x: layer(op, w, x), copies(x))


@program
def lax_map_in_batches(op, w, x):
    return lax.map(lambda x: layer(op, w, x), copies(x), batch_size=2)


@program
def associative_scan(op, w, x):
    combine = jax.vmap(lambda a, b: a + layer(op, w, b))
    return lax.associative_scan(combine, jnp.stack([x, x / 2, -x]))


@program
def platform_dependent(op, w, x):
    return lax.platform_dependent(
        w, x, cpu=functools.partial(layer, op), default=lambda w, x: op(w, op(w, x))
    )
