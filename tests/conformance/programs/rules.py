"""Custom derivatives, batching and sharding: constructs whose rules JAX traces later."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.sharding import PartitionSpec as P

from conformance.programs._program import (
    activation,
    activation_slope,
    copies,
    layer,
    mesh,
    program,
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


NO_FORWARD_VJP = {
    "forward": r"can't apply forward-mode autodiff \(jvp\) to a custom_vjp function",
    "grad(jvp(mixed(f)))": "Differentiation rule for 'custom_lin' not implemented",
}


def _backward(op, residuals, ct):
    w, x, z = residuals
    return jax.vjp(op, w, x)[1](ct * activation_slope(z))


@program(refuses=NO_FORWARD_VJP)
def custom_vjp(op, w, x):
    @jax.custom_vjp
    def f(w, x):
        return layer(op, w, x)

    def fwd(w, x):
        z = op(w, x)
        return activation(z), (w, x, z)

    f.defvjp(fwd, functools.partial(_backward, op))
    return f(w, x)


@program(refuses=NO_FORWARD_VJP)
def custom_vjp_closure(op, w, x):
    """The function closes over an array of the outer trace. It is an input of the equation, but the rules do
    not get it."""
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


@program(refuses=NO_FORWARD_VJP)
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


@program(refuses=NO_FORWARD_VJP | _NO_REMAT_OPT)
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
