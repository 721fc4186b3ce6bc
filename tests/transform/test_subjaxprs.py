"""Every higher-order primitive is entered: values and gradients agree with float32, and no float32
operation is left."""

import functools
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED
from jax import lax
from jax.api_util import debug_info
from jax.custom_derivatives import linear_call
from jax.extend import linear_util
from jax.extend.core.primitives import call_p, closed_call_p
from jax.sharding import PartitionSpec as P
from transform_helpers import floats, normal, primitives, quantized, relative_error

from dfpjax.policy import Policy
from dfpjax.transform import mixed_precision

W = normal(0, 6, 6) / 2
X = normal(1, 4, 6)


def layer(w, x):
    return jnp.tanh(x @ w)


def jit(w, x):
    return jax.jit(layer)(w, x)


def nested_jit(w, x):
    return jax.jit(lambda w, x: jax.jit(layer)(w, jax.jit(layer)(w, x)))(w, x)


def scan(w, x):
    return lax.scan(lambda c, _: (layer(w, c), c.sum()), x, length=3)


def scan_over_weights(w, x):
    return lax.scan(lambda c, w: (layer(w, c), None), x, jnp.stack([w, w.T]))[0]


def while_loop(w, x):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, layer(w, c[1])), (0, x))[1]


def fori_loop(w, x):
    return lax.fori_loop(0, 3, lambda _, x: layer(w, x), x)  # a scan: its bounds are known


def cond(w, x):
    return lax.cond(x.sum() > -1e9, layer, lambda w, x: x @ w.T, w, x)


def switch(w, x):
    return lax.switch(jnp.int32(1), [lambda w, x: x, layer, lambda w, x: x @ w], w, x)


def remat(w, x):
    return jax.checkpoint(lambda w, x: layer(w, layer(w, x)))(w, x)


def remat_with_policy(w, x):
    policy = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(lambda w, x: layer(w, layer(w, x)), policy=policy)(w, x)


def scan_of_remat(w, x):
    return lax.scan(jax.checkpoint(lambda c, _: (layer(w, c), None)), x, length=3)[0]


def custom_jvp(w, x):
    @jax.custom_jvp
    def f(w, x):
        return layer(w, x)

    @f.defjvp
    def _(primals, tangents):
        (w, x), (dw, dx) = primals, tangents
        y = f(w, x)
        return y, (dx @ w + x @ dw) * (1 - y**2)

    return f(w, x)


def custom_jvp_nondiff(w, x):
    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def f(activation, w, x):
        return activation(x @ w)

    @f.defjvp
    def _(activation, primals, tangents):
        (w, x), (dw, dx) = primals, tangents
        return jax.jvp(activation, (x @ w,), (dx @ w + x @ dw,))

    return f(jnp.tanh, w, x)


def custom_jvp_symbolic_zeros(w, x):
    @jax.custom_jvp
    def f(w, x):
        return layer(w, x)

    def jvp(primals, tangents):
        (w, x), (dw, dx) = primals, tangents
        y = f(w, x)
        terms = [
            product(t)
            for t, product in ((dw, lambda t: x @ t), (dx, lambda t: t @ w))
            if not isinstance(t, jax.custom_derivatives.SymbolicZero)
        ]
        return y, sum(terms) * (1 - y**2)

    f.defjvp(jvp, symbolic_zeros=True)
    return f(w, x)


def custom_vjp(w, x):
    @jax.custom_vjp
    def f(w, x):
        return layer(w, x)

    def fwd(w, x):
        y = layer(w, x)
        return y, (w, x, y)

    def bwd(res, ct):
        w, x, y = res
        dz = ct * (1 - y**2)
        return x.T @ dz, dz @ w.T

    f.defvjp(fwd, bwd)
    return f(w, x)


def custom_vjp_closure(w, x):
    """The function closes over an array of the outer trace, an input of the equation that the rules do not
    get."""
    scale = lax.stop_gradient(jnp.cos(x).mean())

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def f(activation, w, x):
        return activation(x @ w) * scale

    def fwd(activation, w, x):
        y, pullback = jax.vjp(activation, x @ w)
        scale = jnp.cos(x).mean()
        return y * scale, (pullback, w, x, scale)

    def bwd(activation, res, ct):
        pullback, w, x, scale = res
        (dz,) = pullback(ct * scale)
        return x.T @ dz, dz @ w.T

    f.defvjp(fwd, bwd)
    return f(jnp.tanh, w, x)


def custom_vjp_symbolic_zeros(w, x):
    @jax.custom_vjp
    def f(w, x, unused):
        return layer(w, x), x @ w

    def fwd(w, x, unused):
        assert not unused.perturbed
        y = layer(w.value, x.value)
        return (y, x.value @ w.value), (w.value, x.value, y)

    def bwd(res, cts):
        w, x, y = res
        assert isinstance(cts[1], jax.custom_derivatives.SymbolicZero)
        dz = cts[0] * (1 - y**2)
        return x.T @ dz, dz @ w.T, None

    f.defvjp(fwd, bwd, symbolic_zeros=True)
    return f(w, x, jnp.ones(()))[0]


def custom_vjp_optimize_remat(w, x):
    @jax.custom_vjp
    def f(w, x):
        return layer(w, x)

    def bwd(res, ct):
        w, x, y = res
        dz = ct * (1 - y**2)
        return x.T @ dz, dz @ w.T

    def fwd(w, x):
        y = layer(w, x)
        return y, (w, x, y)

    f.defvjp(fwd, bwd, optimize_remat=True)
    return jax.checkpoint(f)(w, x)


def custom_vmap(w, x):
    @jax.custom_batching.custom_vmap
    def f(w, x):
        return layer(w, x)

    @f.def_vmap
    def _(axis_size, in_batched, w, x):
        assert in_batched == [False, True]
        return jnp.tanh(x @ w), True

    return jax.vmap(f, in_axes=(None, 0))(w, x)


def linear(w, x):
    held = lax.stop_gradient(w)
    return jnp.tanh(linear_call(lambda w, x: x @ w, lambda w, ct: ct @ w.T, held, x))


def linear_solve(w, x):
    matrix = w.T @ w + 4 * jnp.eye(6)

    def solve(_, b):
        return lax.fori_loop(0, 20, lambda _, x: x + 0.1 * (b - matrix @ x), jnp.zeros_like(b))

    return lax.custom_linear_solve(lambda v: matrix @ v, x[0], solve, symmetric=True)


def shard_map(w, x):
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
    return jax.shard_map(layer, mesh=mesh, check_vma=False, **specs)(w, x)


def lax_map(w, x):
    return lax.map(lambda row: jnp.tanh(row @ w), x)


def associative_scan(w, x):
    return x @ lax.associative_scan(jnp.matmul, jnp.stack([w, w, w]))[-1]


def named_call(w, x):
    return jax.named_call(layer, name="layer")(w, x)


def call(w, x, primitive=call_p):
    def flat(w, x):
        return [layer(w, x)]

    if jax.__version_info__ < (0, 11):
        wrapped = linear_util.wrap_init(flat, debug_info=debug_info("call", flat, (w, x), {}))
        return primitive.bind(w, x, subfuns=(wrapped,))[0]
    return primitive.bind(w, x, call_jaxpr=jax.make_jaxpr(flat)(w, x))[0]


def closed_call(w, x):
    return call(w, x, closed_call_p)


def composite(w, x):
    return lax.composite(layer, name="dfpjax.test")(w, x)


def platform_dependent(w, x):
    return lax.platform_dependent(w, x, cpu=layer, default=lambda w, x: x @ w)


def vmap_of_grad(w, x):
    return jax.vmap(jax.grad(lambda w, row: layer(w, row).sum()), in_axes=(None, 0))(w, x)


def deep(w, x):
    def step(c, _):
        return lax.cond(
            c.sum() > -1e9, jax.checkpoint(jax.jit(functools.partial(layer, w))), lambda c: c, c
        ), None

    return lax.scan(step, x, length=2)[0]


def convolution(w, x):
    kernel = w[:4].reshape(2, 2, 2, 3)
    return jax.jit(
        lambda image: lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )(x.reshape(1, 3, 4, 2))


DIFFERENTIABLE = [
    jit, nested_jit, scan, scan_over_weights, fori_loop, cond, switch, remat, remat_with_policy,
    scan_of_remat, custom_jvp, custom_jvp_nondiff, custom_jvp_symbolic_zeros, custom_vjp, custom_vjp_closure,
    custom_vjp_symbolic_zeros, custom_vjp_optimize_remat, linear, linear_solve, shard_map, lax_map,
    associative_scan, named_call, call, closed_call,
    platform_dependent, deep, convolution,
]  # fmt: skip
ALL = [*DIFFERENTIABLE, composite, while_loop, custom_vmap, vmap_of_grad]


def loss(fun):
    return lambda w, x: sum((leaf * jnp.cos(leaf)).sum() for leaf in jax.tree.leaves(fun(w, x)))


def every(functions):
    return pytest.mark.parametrize("fun", functions, ids=lambda f: f.__name__)


@every(ALL)
def test_values_agree_and_nothing_is_left(fun):
    transformed = mixed_precision(fun, FORCED)
    jaxpr = jax.make_jaxpr(transformed)(W, X)
    assert floats(jaxpr) == 0
    assert quantized(jaxpr) > 0
    jax.extend.core.check_jaxpr(jaxpr.jaxpr)
    actual, expected = jax.jit(transformed)(W, X), jax.jit(fun)(W, X)
    assert 0 < relative_error(actual, expected) < 1e-3
    assert jax.tree.map(jax.typeof, actual) == jax.tree.map(jax.typeof, expected)


@every([jit, scan, while_loop, cond, remat, custom_jvp, custom_vjp, custom_vjp_closure, convolution])
def test_runs_without_jit(fun):
    assert relative_error(mixed_precision(fun, FORCED)(W, X), fun(W, X)) < 1e-3


@every(DIFFERENTIABLE)
def test_gradients_agree_and_nothing_is_left(fun):
    expected = jax.jit(jax.grad(loss(fun), (0, 1)))(W, X)
    gradient = jax.grad(loss(mixed_precision(fun, FORCED)), (0, 1))
    assert floats(jax.make_jaxpr(gradient)(W, X)) == 0
    assert 0 < relative_error(jax.jit(gradient)(W, X), expected) < 2e-3


@every(DIFFERENTIABLE)
def test_backward_passes_are_rewritten(fun):
    gradient = mixed_precision(jax.grad(loss(fun), (0, 1)), FORCED)
    assert floats(jax.make_jaxpr(gradient)(W, X)) == 0


@every([scan, cond, remat, custom_jvp, custom_vjp])
def test_transforming_a_gradient_or_differentiating_is_one(fun):
    outside = jax.jit(jax.grad(loss(mixed_precision(fun, FORCED)), (0, 1)))(W, X)
    inside = jax.jit(mixed_precision(jax.grad(loss(fun), (0, 1)), FORCED))(W, X)
    assert relative_error(inside, outside) < 1e-3


@every(ALL)
def test_twice_is_once(fun):
    once = mixed_precision(fun, FORCED)
    assert text(mixed_precision(once, FORCED)) == text(once)


@every(ALL)
def test_nothing_to_rewrite_is_identity(fun):
    # Only running a jaxpr again changes it: the constants of a custom_vjp become closed over, for one.
    again = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(fun)(W, X))
    assert text(mixed_precision(fun, Policy(default=None))) == text(again)


def text(fun) -> str:
    printed = str(jax.make_jaxpr(lambda w, x: jax.tree.leaves(fun(w, x)))(W, X))
    return re.sub(r" at 0x[0-9a-f]+", "", printed)  # JAX 0.10.0 prints some functions with their address


@every([scan, remat, custom_jvp, custom_vjp, convolution])
def test_second_derivatives_agree(fun):
    def curvature(fun):
        def size(w, x):
            return sum((g**2).sum() for g in jax.grad(loss(fun), (0, 1))(w, x))

        return jax.jit(jax.grad(size, (0, 1)))(W, X)

    assert 0 < relative_error(curvature(mixed_precision(fun, FORCED)), curvature(fun)) < 1e-2


@every([scan, while_loop, custom_jvp_symbolic_zeros, linear, linear_solve])
def test_jvp_agrees(fun):
    tangents = normal(2, 6, 6), normal(3, 4, 6)

    def jvp(fun):
        return jax.jit(lambda w, x: jax.jvp(fun, (w, x), tangents))(W, X)

    assert 0 < relative_error(jvp(mixed_precision(fun, FORCED)), jvp(fun)) < 2e-3


@every([scan, while_loop, cond, custom_jvp, custom_vjp, shard_map])
def test_vmap_is_the_stack(fun):
    ws = normal(4, 2, 6, 6) / 2
    transformed = mixed_precision(fun, FORCED)
    one = jax.jit(transformed)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one(w, X) for w in ws])
    actual = jax.jit(jax.vmap(transformed, in_axes=(0, None)))(ws, X)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_linear_transpose():
    transformed = mixed_precision(lambda x: x @ W, FORCED)
    (actual,) = jax.linear_transpose(transformed, X)(X)
    assert 0 < relative_error(actual, X @ W.T) < 1e-3
    (actual,) = jax.linear_transpose(mixed_precision(lambda w: X @ w, FORCED), W)(X)
    assert 0 < relative_error(actual, X.T @ X) < 1e-3


def test_custom_vmap_rule_is_rewritten():
    @jax.custom_batching.custom_vmap
    def f(w, x):
        return layer(w, x)

    @f.def_vmap
    def _(axis_size, in_batched, w, x):
        return jnp.tanh(x @ w), True

    batched = jax.vmap(mixed_precision(lambda x: f(W, x), FORCED))
    assert floats(jax.make_jaxpr(batched)(X)) == 0
    assert quantized(jax.make_jaxpr(batched)(X)) == 1
    assert relative_error(batched(X), layer(W, X)) < 1e-3


def test_equations_keep_their_parameters():
    f = jax.jit(layer, donate_argnums=1, inline=False, keep_unused=True)
    (eqn,) = jax.make_jaxpr(mixed_precision(f, FORCED))(W, X).eqns
    (original,) = jax.make_jaxpr(f)(W, X).eqns
    for name, value in original.params.items():
        assert name == "jaxpr" or eqn.params[name] == value
    assert quantized(eqn.params["jaxpr"]) == 1


def test_jitted_functions_called_twice_stay_shared():
    block = jax.jit(layer)
    jaxpr = jax.make_jaxpr(mixed_precision(lambda w, x: block(w, block(w, x)), FORCED))(W, X)
    first, second = jaxpr.eqns
    assert first.params["jaxpr"] is second.params["jaxpr"]


def test_rules_traced_anew_give_the_same_jaxprs():
    """Or a gradient taken without jit would compile the jitted functions in a rule at every step."""

    product = jax.jit(jnp.matmul)

    @jax.custom_vjp
    def f(w, x):
        return product(x, w)

    def bwd(res, ct):
        w, x = res
        return product(x.T, ct), product(ct, w.T)

    f.defvjp(lambda w, x: (f(w, x), (w, x)), bwd)
    mixed = mixed_precision(f, FORCED)

    def jitted():
        eqns = jax.make_jaxpr(jax.grad(lambda w, x: mixed(w, x).sum(), (0, 1)))(W, X).eqns
        return [eqn.params["jaxpr"] for eqn in eqns if eqn.primitive.name == "jit"]

    first, second = jitted(), jitted()
    assert len(first) == 2
    assert all(a is b and quantized(a) == 1 for a, b in zip(first, second, strict=True))


def test_remat_policies_inside_still_find_the_dots():
    def products(policy):
        f = mixed_precision(jax.checkpoint(lambda w, x: jnp.sin(layer(w, x)).sum(), policy=policy), FORCED)
        return primitives(jax.make_jaxpr(jax.grad(f))(W, X))["dfp_contract"]

    policies = jax.checkpoint_policies
    assert products(None) == 2  # once more in the backward pass
    assert products(policies.dots_saveable) == products(policies.dots_with_no_batch_dims_saveable) == 1


def test_opaque_primitives_are_left_alone():
    def callback(w, x):
        shape = jax.ShapeDtypeStruct((4, 6), jnp.float32)
        return jax.pure_callback(lambda w, x: np.asarray(x) @ np.asarray(w), shape, w, x) + x @ w

    jaxpr = jax.make_jaxpr(mixed_precision(callback, FORCED))(W, X)
    assert primitives(jaxpr)["pure_callback"] == 1
    assert quantized(jaxpr) == 1
