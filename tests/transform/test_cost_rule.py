"""The cost rule in the transform: operations that are too small stay in float32, unless they are forced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED
from jax import lax
from transform_helpers import floats, normal, quantized

from dfpjax import explain
from dfpjax.policy import OpConfig, Policy, Rule, policies
from dfpjax.transform import mixed_precision


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def product(w, x):
    return jnp.tanh(x @ w)


def convolve(w, x):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


SMALL = {product: (shape(6, 6), shape(4, 6)), convolve: (shape(2, 2, 3, 4), shape(1, 4, 4, 3))}
LARGE = {
    product: (shape(512, 512), shape(512, 512)),
    convolve: (shape(3, 3, 64, 64), shape(8, 28, 28, 64)),
}
kinds = pytest.mark.parametrize("fun", [product, convolve])


def counts(fun, args, policy=None):
    """The numbers of operations left in float32 and of operations in dynamic fixed point."""
    jaxpr = jax.make_jaxpr(mixed_precision(fun, policy))(*args)
    return floats(jaxpr), quantized(jaxpr)


@kinds
def test_small_operations_stay_and_large_ones_do_not(fun):
    assert counts(fun, SMALL[fun]) == (1, 0)
    assert counts(fun, LARGE[fun]) == (0, 1)


@kinds
def test_force_overrides_the_rule(fun):
    assert counts(fun, SMALL[fun], FORCED) == (0, 1)
    assert counts(fun, SMALL[fun], Policy(rules=[Rule("w", OpConfig(force=True))])) == (0, 1)
    assert counts(fun, SMALL[fun], Policy(rules=[Rule("w", OpConfig(bits=8))])) == (1, 0)


def test_force_overrides_no_obstacle():
    args = jax.ShapeDtypeStruct((8, 8), jnp.int32), jax.ShapeDtypeStruct((8, 8), jnp.int32)
    assert counts(jnp.matmul, args, FORCED) == (1, 0)


def test_skinny_products_stay():
    assert counts(product, (shape(4096, 4096), shape(1, 4096))) == (1, 0)


def test_each_phase_of_a_transposed_convolution_has_to_be_worth_it():
    """To one channel, each phase of a long stride has few products."""

    def upsample(stride, channels):
        def fun(x, w):
            return lax.conv_transpose(x, w, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))

        return explain(fun, shape(1, 128, 512), shape(4 * stride, 512, channels)).ops[0]

    assert "268 kMAC in each of 128 phases" in upsample(128, 1).reason
    assert upsample(128, 1).dtype == "float32"
    assert upsample(2, 64).dtype == upsample(128, 64).dtype == "dfp16"


def test_the_papers_policy_knows_no_cost():
    def net(w, v, x):
        return (x @ w) @ v

    assert counts(net, (shape(6, 6), shape(6, 6), shape(4, 6)), policies.paper()) == (1, 1)


def test_each_operation_is_decided_by_its_own_shapes():
    def net(w, v, x):
        with jax.named_scope("wide"):
            x = x @ w
        with jax.named_scope("head"):
            return (x @ v).sum()

    args = shape(512, 512), shape(512, 2), shape(512, 512)
    assert counts(net, args) == (1, 1)
    # In a gradient program so are the backward operations: two of "wide", two of "head".
    assert counts(jax.grad(net, (0, 1, 2)), args) == (3, 3)
    # In a gradient of the transformed function the forward operation decides for its backward operations.
    jaxpr = jax.make_jaxpr(jax.grad(mixed_precision(net), (0, 1, 2)))(*args)
    assert (floats(jaxpr), quantized(jaxpr)) == (3, 3)


def nothing_worth_it(w, x):
    """Small products in a jitted function, a loop, a branch and a remat."""

    def step(carry, _):
        return lax.cond(carry.sum() > 0, product, lambda w, x: x, w, carry), carry.sum()

    carry, sums = lax.scan(step, jax.jit(product)(w, x), length=3)
    return jax.checkpoint(product)(w, carry), sums


def test_a_program_in_which_nothing_is_worth_it_is_left_alone():
    args = SMALL[product]
    for fun in (nothing_worth_it, jax.grad(lambda w, x: nothing_worth_it(w, x)[0].sum(), (0, 1))):
        assert str(jax.make_jaxpr(mixed_precision(fun))(*args)) == str(jax.make_jaxpr(fun)(*args))
        assert counts(fun, args, FORCED)[1] > 0


def test_the_batch_counts_where_the_transform_sees_it():
    batched = jax.vmap(product, in_axes=(None, 0))
    args = shape(512, 512), shape(512, 8, 512)
    assert counts(product, (args[0], shape(8, 512))) == (1, 0)
    assert counts(batched, args) == (0, 1)
    outside = jax.make_jaxpr(jax.vmap(mixed_precision(product), in_axes=(None, 0)))(*args)
    assert (floats(outside), quantized(outside)) == (1, 0)


@pytest.mark.parametrize("size", [64, 512])
def test_vmap_is_the_loop(size):
    """One size is below the cost rule's thresholds, one above; vmap's batch lifts the former over them."""
    w, xs = normal(0, size, size) / size, normal(1, 3, size, size)
    transformed = jax.jit(mixed_precision(lambda w, x: x @ w))
    loop = jnp.stack([transformed(w, x) for x in xs])
    batched = jax.vmap(transformed, in_axes=(None, 0))(w, xs)
    if size == 512:
        np.testing.assert_array_equal(batched, loop)
    else:  # XLA may add a batched product in another order
        np.testing.assert_allclose(batched, loop, rtol=1e-5, atol=1e-6)
