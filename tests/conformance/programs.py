"""Program shapes: every higher-order primitive of JAX, with an operation inside.

A program is a function of (op, w, x), where `op(w, x)` is a kind of operation: linear in each argument, with
a result of the shape of `x`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.api_util import debug_info
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.extend import linear_util
from jax.extend.core.primitives import call_p, closed_call_p
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

Op = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program and what JAX cannot do with it."""

    fun: Callable[[Op, jax.Array, jax.Array], Any]

    refuses: Mapping[str, str] = field(default_factory=dict)
    """What JAX says, a pattern, by what a transformation needs or by the transformation's name."""

    accepts: tuple[str, ...] = ()
    """Names of transformations that JAX accepts nevertheless."""

    recomputes_inside: bool = False
    """JAX's own remat policy does not know operations that are in dynamic fixed point already, as they are
    where `mixed_precision` stands inside: they are computed once more."""

    batches_itself: bool = False
    """It has a vmap rule of its own, which makes one operation of all examples: they share exponents."""

    @property
    def name(self) -> str:
        return self.fun.__name__

    def refusal(self, name: str, needs: Sequence[str]) -> str | None:
        """The pattern of JAX's message if it refuses a transformation of this name and needs."""
        if name in self.accepts:
            return None
        return next((self.refuses[key] for key in (name, *needs) if key in self.refuses), None)


PROGRAMS: dict[str, Program] = {}


def program(fun: Callable | None = None, **fields) -> Callable:
    """Enter a program into the table."""
    if fun is None:
        return functools.partial(program, **fields)
    PROGRAMS[fun.__name__] = Program(fun=fun, **fields)
    return fun


def activation(z):
    # Without transcendental functions and sums: what surrounds the operations has the same bits batched or
    # not, so that vmap can be compared with the loop bit for bit.
    return z / (1 + jnp.abs(z))


def activation_slope(z):
    return 1 / ((1 + jnp.abs(z)) * (1 + jnp.abs(z)))


def layer(op: Op, w, x):
    return activation(op(w, x))


def two_layers(op: Op, w, x):
    return layer(op, w, layer(op, w, x))


def total(x):
    return lax.stop_gradient(x.sum())


def mesh(kind: AxisType = AxisType.Auto):
    return jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(kind,))


def copies(x):
    """A batch of different examples, one for each device."""
    return jnp.stack([x * (index + 1) for index in range(len(jax.devices()))])


# --- functions called -----------------------------------------------------------------------------


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


_NO_REVERSE_WHILE = {"reverse": "Reverse-mode differentiation does not work for lax.while_loop"}


@program(refuses=_NO_REVERSE_WHILE)
def while_loop(op, w, x):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, layer(op, w, c[1])), (0, x))[1]


@program(refuses=_NO_REVERSE_WHILE)
def while_loop_condition(op, w, x):
    """An operation in the condition, too."""

    def goes_on(c):
        return (jnp.abs(op(w, c[1])).max() > -1) & (c[0] < 2)

    return lax.while_loop(goes_on, lambda c: (c[0] + 1, layer(op, w, c[1])), (0, x))[1]


@program
def fori_loop(op, w, x):
    return lax.fori_loop(0, 3, lambda _, x: layer(op, w, x), x)  # a scan: its bounds are known


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


# --- custom derivatives ---------------------------------------------------------------------------


@program
def custom_jvp(op, w, x):
    @jax.custom_jvp
    def f(w, x):
        return layer(op, w, x)

    @f.defjvp
    def _(primals, tangents):
        (w, x), (dw, dx) = primals, tangents
        z = op(w, x)
        return activation(z), (op(w, dx) + op(dw, x)) * activation_slope(z)

    return f(w, x)


@program
def custom_jvp_nondiff(op, w, x):
    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def f(activation, w, x):
        return activation(op(w, x))

    @f.defjvp
    def _(activation, primals, tangents):
        (w, x), (dw, dx) = primals, tangents
        return jax.jvp(activation, (op(w, x),), (op(w, dx) + op(dw, x),))

    return f(activation, w, x)


@program
def custom_jvp_symbolic_zeros(op, w, x):
    @jax.custom_jvp
    def f(w, x, unused):
        return layer(op, w, x)

    def jvp(primals, tangents):
        (w, x, _), (dw, dx, dunused) = primals, tangents
        assert isinstance(dunused, SymbolicZero)
        z = op(w, x)
        products = ((dw, lambda t: op(t, x)), (dx, lambda t: op(w, t)))
        terms = [product(t) for t, product in products if not isinstance(t, SymbolicZero)]
        return activation(z), sum(terms) * activation_slope(z)

    f.defjvp(jvp, symbolic_zeros=True)
    return f(w, x, jnp.ones(()))


_NO_FORWARD_VJP = {
    "forward": r"can't apply forward-mode autodiff \(jvp\) to a custom_vjp function",
    "grad(jvp(mixed(f)))": "Differentiation rule for 'custom_lin' not implemented",
}


def _backward(op, residuals, ct):
    w, x, z = residuals
    return jax.vjp(op, w, x)[1](ct * activation_slope(z))


@program(refuses=_NO_FORWARD_VJP)
def custom_vjp(op, w, x):
    @jax.custom_vjp
    def f(w, x):
        return layer(op, w, x)

    def fwd(w, x):
        z = op(w, x)
        return activation(z), (w, x, z)

    f.defvjp(fwd, functools.partial(_backward, op))
    return f(w, x)


@program(refuses=_NO_FORWARD_VJP)
def custom_vjp_closure(op, w, x):
    """The function closes over an array of the outer trace, an input of the equation that the rules do not
    get."""
    scale = lax.stop_gradient(1 / (1 + x.max() ** 2))

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def f(activation, w, x):
        return activation(op(w, x)) * scale

    def fwd(activation, w, x):
        y, pullback = jax.vjp(activation, op(w, x))
        scale = 1 / (1 + x.max() ** 2)
        return y * scale, (pullback, w, x, scale)

    def bwd(activation, residuals, ct):
        pullback, w, x, scale = residuals
        return jax.vjp(op, w, x)[1](*pullback(ct * scale))

    f.defvjp(fwd, bwd)
    return f(activation, w, x)


@program(refuses=_NO_FORWARD_VJP)
def custom_vjp_symbolic_zeros(op, w, x):
    @jax.custom_vjp
    def f(w, x, unused):
        return layer(op, w, x), op(w, x)

    def fwd(w, x, unused):
        assert not unused.perturbed
        z = op(w.value, x.value)
        return (activation(z), z), (w.value, x.value, z)

    def bwd(residuals, cts):
        assert isinstance(cts[1], SymbolicZero)
        return *_backward(op, residuals, cts[0]), None

    f.defvjp(fwd, bwd, symbolic_zeros=True)
    return f(w, x, jnp.ones(()))[0]


_UNKNOWN_PRIMALS = "Linearization failed to produce known values for all output primals"
_NO_REMAT_OPT = {
    "grad(grad(mixed(f)))": _UNKNOWN_PRIMALS,
    "mixed(grad(grad(f)))": _UNKNOWN_PRIMALS,
}


@program(refuses=_NO_FORWARD_VJP | _NO_REMAT_OPT)
def custom_vjp_optimize_remat(op, w, x):
    @jax.custom_vjp
    def f(w, x):
        return layer(op, w, x)

    def fwd(w, x):
        z = op(w, x)
        return activation(z), (w, x, z)

    f.defvjp(fwd, functools.partial(_backward, op), optimize_remat=True)
    return jax.checkpoint(f)(w, x)


@program
def stop_gradient(op, w, x):
    return layer(op, w, lax.stop_gradient(layer(op, w, x)) + x)


@program(refuses={"batching": "Batching rule for 'linear_call' not implemented"})
def linear(op, w, x):
    def transposed(w, ct):
        return jax.linear_transpose(functools.partial(op, w), ct)(ct)[0]

    return activation(linear_call(op, transposed, lax.stop_gradient(w), x)) + layer(op, w, x)


@program
def linear_solve(op, w, x):
    """Solves 4y + op(w, y) = x for y."""

    def solve(matvec, b):
        return lax.fori_loop(0, 4, lambda _, y: y + (b - matvec(y)) / 4, jnp.zeros_like(b))

    return lax.custom_linear_solve(lambda y: 4 * y + op(w, y), x, solve, transpose_solve=solve)


# --- batching and sharding ------------------------------------------------------------------------


@program
def vmap(op, w, x):
    return jax.vmap(functools.partial(layer, op), (None, 0))(w, copies(x))


_NO_LINEARIZE_VMAP = {"reverse": _UNKNOWN_PRIMALS, "linearize(mixed(f))": _UNKNOWN_PRIMALS}
_NO_JACFWD_VMAP = {"jacfwd(mixed(f))": "vmap must have at least one non-None value in in_axes"}
_NO_JACFWD_MAP = {"jacfwd(mixed(f))": "scan got no values to scan over"}


@program(refuses=_NO_LINEARIZE_VMAP | _NO_JACFWD_VMAP, accepts=("grad(vmap(mixed(f)))",), batches_itself=True)
def custom_vmap(op, w, x):
    @jax.custom_batching.custom_vmap
    def f(w, x):
        return layer(op, w, x)

    @f.def_vmap
    def _(axis_size, in_batched, w, x):
        return jax.vmap(functools.partial(layer, op), [0 if b else None for b in in_batched])(w, x), True

    return f(w, f(w, x))


@program(refuses=_NO_LINEARIZE_VMAP | _NO_JACFWD_MAP)
def sequential_vmap(op, w, x):
    return jax.custom_batching.sequential_vmap(functools.partial(layer, op))(w, x)


def _shard_map(op, w, x, **kwargs):
    def local(w, xs):
        return jax.vmap(functools.partial(layer, op), (None, 0))(w, xs)

    specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
    return jax.shard_map(local, mesh=mesh(), **specs, **kwargs)(w, copies(x))


@program
def shard_map(op, w, x):
    return _shard_map(op, w, x)


@program
def shard_map_unchecked(op, w, x):
    return _shard_map(op, w, x, check_vma=False)


@program
def shard_map_with_collectives(op, w, x):
    def local(w, xs):
        mean = lax.pmean(layer(op, w, xs[0]), "data")
        return layer(op, w, mean)

    return jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("data")), out_specs=P())(w, copies(x))


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


# --- one in another -------------------------------------------------------------------------------


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


@program(refuses=_NO_FORWARD_VJP)
def scan_of_custom_vjp(op, w, x):
    return lax.scan(lambda c, w: (custom_vjp(op, w, c), None), x, jnp.stack([w, w / 2]))[0]


@program(refuses=_NO_FORWARD_VJP)
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


@program(refuses=_NO_REVERSE_WHILE)
def while_of_cond_of_scan(op, w, x):
    def body(c):
        index, x = c
        return index + 1, lax.cond(index > 0, lambda x: fori_loop(op, w, x), lambda x: layer(op, w, x), x)

    return lax.while_loop(lambda c: c[0] < 2, body, (0, x))[1]
