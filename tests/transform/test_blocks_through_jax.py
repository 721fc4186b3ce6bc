"""Exponents of blocks under JAX's transformations: the same results, and residuals of the stated size."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.jet import jet
from transform_helpers import normal, primitives, relative_error

import dfpjax
from dfpjax import checkpoint_policies
from dfpjax.policy import OpConfig, Policy
from dfpjax.transform import mixed_precision

IN_BLOCKS = Policy(default=OpConfig(force=True, granularity="block"))
in_blocks = functools.partial(mixed_precision, policy=IN_BLOCKS)
ROWS = 2.0 ** np.arange(-20, 20, 5, dtype=np.float32)[:, None]  # of very different size
X, W = normal(0, 8, 70) * ROWS, normal(1, 70, 70) / 9
STACK = normal(2, 3, 70, 70) / 9


def net(w, x):
    return jnp.tanh(jnp.tanh(x @ w) @ w)


def loss(w, x):
    return (net(w, x) ** 2).sum()


def test_export():
    fun = jax.jit(jax.value_and_grad(in_blocks(loss), (0, 1)))
    exported = jax.export.export(fun, disabled_checks=dfpjax.export_checks())(W, X)
    assert "dfpjax_quantize_blocks_v1" in exported.mlir_module()
    jax.tree.map(np.testing.assert_array_equal, exported.call(W, X), fun(W, X))


POLICIES = {
    "nothing": None,
    "dots": checkpoint_policies.dots_saveable,
    "quantized": checkpoint_policies.quantized_saveable,
    "names": checkpoint_policies.save_only_these_names(
        checkpoint_policies.LHS_NAME, checkpoint_policies.RHS_NAME
    ),
}


def remat(jaxpr):
    (eqn,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "remat2")
    return eqn


def test_gradients_do_not_depend_on_the_checkpoint_policy():
    def gradient(policy):
        return jax.grad(jax.checkpoint(in_blocks(loss), policy=policy), (0, 1))

    run = jax.jit(lambda w, x: {name: gradient(policy)(w, x) for name, policy in POLICIES.items()})
    expected = jax.jit(jax.grad(in_blocks(loss), (0, 1)))(W, X)
    for actual in run(W, X).values():  # XLA may compute a tanh in other last bits in another program
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("name", ["quantized", "names"])
def test_saved_operands_take_two_bytes_and_four_for_each_block(name):
    gradient = jax.grad(jax.checkpoint(in_blocks(loss), policy=POLICIES[name]), (0, 1))
    eqn = remat(jax.make_jaxpr(gradient)(W, X))
    assert primitives(eqn.params["jaxpr"])["dfp_quantize"] == 0
    saved = sum(2 * v.aval.size for v in eqn.invars if v.aval.dtype == dfpjax.quantize(X).values.dtype)
    exponents = sum(4 * v.aval.size for v in eqn.invars if v.aval.dtype == jnp.int32)
    # Both dot products read W and a tensor of X's shape. The rows of a matrix are its first axis, so a block
    # is part of one row, and 70 columns take three.
    assert saved == 2 * 2 * (W.size + X.size)
    assert exponents == 2 * 4 * 3 * (len(W) + len(X))


@pytest.mark.parametrize("policy", [None, checkpoint_policies.quantized_saveable])
def test_scan_of_rematerialized_layers(policy):
    @functools.partial(jax.checkpoint, policy=policy)
    def layer(carry, w):
        return jnp.tanh(carry @ w), None

    def of_scan(stack, x):
        return (lax.scan(layer, x, stack)[0] ** 2).sum()

    def of_loop(stack, x):
        for w in stack:
            x = jnp.tanh(x @ w)
        return (x**2).sum()

    actual, expected = jax.jit(
        lambda *args: [jax.grad(in_blocks(fun), (0, 1))(*args) for fun in (of_scan, of_loop)]
    )(STACK, X)
    assert relative_error(actual, expected) < 1e-5


def test_jet():
    w, x = W, X / ROWS
    series = [normal(3, *x.shape) / 9, normal(4, *x.shape) / 9]
    actual, expected = (
        jax.jit(lambda x, fun=fun: jet(lambda x: fun(w, x), (x,), (series,)))(x)
        for fun in (in_blocks(net), net)
    )
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert 0 < relative_error(got, wanted) < 2e-3


def test_products_with_the_hessian():
    def product(fun):
        return lambda w, x: jax.jvp(jax.grad(fun, (0, 1)), (w, x), (w, x))[1]

    actual, expected = jax.jit(lambda *args: [product(f)(*args) for f in (in_blocks(loss), loss)])(
        W, X / ROWS
    )
    assert 0 < relative_error(actual, expected) < 1e-3
