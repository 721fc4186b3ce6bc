"""Differentiation inside a program, and primitives nested in each other."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from conformance.programs._program import (
    copies,
    layer,
    mesh,
    program,
    total,
)
from conformance.programs.control_flow import NO_REVERSE_WHILE, fori_loop
from conformance.programs.rules import NO_FORWARD_VJP, custom_jvp, custom_vjp

# --- differentiation inside -----------------------------------------------------------------------


@program
def gradient(op, w, x):
    """A gradient step, as in meta-learning."""
    return layer(op, w - jax.grad(lambda w: (layer(op, w, x) ** 2).sum())(w) / 8, x)


@program
def gradient_penalty(op, w, x):
    """The norm of a gradient in the loss, as in WGAN-GP."""
    slope = jax.grad(lambda x: layer(op, w, x).sum())(x)
    return layer(op, w, x) + (slope**2).sum()


@program
def tangent(op, w, x):
    return jax.jvp(functools.partial(layer, op, w), (x,), (x / 2,))


# --- nested primitives ----------------------------------------------------------------------------


@program
def scan_of_cond_of_remat_of_jit(op, w, x):
    def step(c, _):
        inner = jax.checkpoint(jax.jit(functools.partial(layer, op, w)))
        return lax.cond(total(c) > -1e9, inner, lambda c: c, c), None

    return lax.scan(step, x, length=2)[0]


@program
def scan_of_scan(op, w, x):
    def outer(c, w):
        return lax.scan(lambda c, _: (layer(op, w, c), None), c, length=2)

    return lax.scan(outer, x, jnp.stack([w, w / 2]))[0]


@program
def remat_of_scan_of_custom_jvp(op, w, x):
    return jax.checkpoint(lambda w, x: lax.fori_loop(0, 2, lambda _, c: custom_jvp(op, w, c), x))(w, x)


@program(refuses=NO_FORWARD_VJP)
def scan_of_custom_vjp(op, w, x):
    return lax.scan(lambda c, w: (custom_vjp(op, w, c), None), x, jnp.stack([w, w / 2]))[0]


@program(refuses=NO_FORWARD_VJP)
def cond_of_custom_vjp(op, w, x):
    return lax.cond(
        total(x) > -1e9, lambda w, x: jax.jit(functools.partial(custom_vjp, op))(w, x), lambda w, x: x, w, x
    )


@program
def shard_map_of_scan(op, w, x):
    def local(w, xs):
        return lax.scan(lambda c, _: (layer(op, w, c), None), xs[0], length=2)[0][None]

    specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
    return jax.shard_map(local, mesh=mesh(), **specs)(w, copies(x))


@program(refuses=NO_REVERSE_WHILE)
def while_of_cond_of_scan(op, w, x):
    def body(c):
        index, x = c
        return index + 1, lax.cond(index > 0, lambda x: fori_loop(op, w, x), lambda x: layer(op, w, x), x)

    return lax.while_loop(lambda c: c[0] < 2, body, (0, x))[1]
