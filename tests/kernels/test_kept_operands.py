"""What a call has packed or transformed of an operand is kept for the next calls while it stays the same."""

import gc
import time

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from blocked import normal, problem
from winograd_cases import BOTH, of_case

import dfpjax
from dfpjax import _native

pytestmark = pytest.mark.jax_releases

WINOGRAD = dfpjax.OpConfig(force=True, algorithm="winograd2")
TENSOR = dfpjax.OpConfig(force=True, granularity="tensor", algorithm="direct")
BLOCKS = dfpjax.OpConfig(force=True, granularity="block", algorithm="direct")
UNTIL_KEPT = 8  # calls with the same operand; the last of them keeps it
RNG = np.random.default_rng(0)


def make(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def convolve(x, w):
    groups = x.shape[-1] // w.shape[-2]
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=groups
    )


X = make(1, 8, 8, 16)
W, OTHER = make(3, 3, 16, 16), make(3, 3, 16, 16)
conv = dfpjax.mixed_precision(convolve, policy=dfpjax.Policy(default=WINOGRAD))

PRODUCTS = {
    "winograd": (convolve, X.shape, W.shape, WINOGRAD),
    "1x1": (convolve, (1, 5, 6, 160), (1, 1, 160, 220), BLOCKS),
    "grouped": (convolve, (1, 5, 6, 512), (1, 1, 128, 512), BLOCKS),
    "3x3": (convolve, (1, 5, 6, 64), (3, 3, 64, 72), BLOCKS),
    "dot": (jnp.dot, (20, 300), (300, 130), BLOCKS),
    "dot_of_one_row": (jnp.dot, (1, 300), (300, 130), BLOCKS),
    "dot_transposed": (lambda x, w: x @ w.T, (7, 300), (130, 300), BLOCKS),
}


def fresh(x, w, function=conv):
    """The result of a program that has never run before."""
    return np.asarray(jax.jit(lambda x, w: function(x, w))(x, w))


@pytest.fixture(autouse=True)
def nothing_kept():
    _native.release_scratch()
    assert _native.kept_operand_bytes() == 0


@pytest.mark.parametrize("name", PRODUCTS)
def test_inference_has_the_same_bits_in_every_call(name):
    function, x_shape, w_shape, config = PRODUCTS[name]
    function = dfpjax.mixed_precision(function, policy=dfpjax.Policy(default=config))
    x, w, changed = make(*x_shape), make(*w_shape), make(*w_shape)
    infer = jax.jit(function)
    first, other = ((w, fresh(x, w, function)) for w in (w, changed))
    kept = []
    for w, result in (first,) * (UNTIL_KEPT + 2) + (other, first) + (other,) * (UNTIL_KEPT + 1):
        np.testing.assert_array_equal(infer(x, w), result)
        kept.append(_native.kept_operand_bytes() > 0)
    waiting = [False] * (UNTIL_KEPT - 1)
    assert kept == [*waiting, True, True, True, False, False, *waiting, True, True]
    _native.release_scratch()
    assert _native.kept_operand_bytes() == _native.scratch_bytes() == 0
    np.testing.assert_array_equal(infer(x, changed), other[1])


def test_with_one_exponent_direct_products_keep_nothing():
    infer = jax.jit(dfpjax.mixed_precision(jnp.dot, policy=dfpjax.Policy(default=TENSOR)))
    x, w = make(20, 300), make(300, 130)
    first = np.asarray(infer(x, w))
    for _ in range(UNTIL_KEPT):
        np.testing.assert_array_equal(infer(x, w), first)
        assert _native.kept_operand_bytes() == 0


def test_a_recurrence_keeps_its_weights():
    x, w = make(UNTIL_KEPT + 2, 32, 128), make(256, 128) / 16

    @dfpjax.mixed_precision(policy=dfpjax.Policy(default=BLOCKS))
    def step(h, x):
        return jnp.tanh(jnp.concatenate([x, h], 1) @ w)

    first, once = jnp.zeros((32, 128)), jax.jit(lambda h, x: step(h, x))
    scanned = jax.jit(lambda x: jax.lax.scan(lambda h, x: (step(h, x),) * 2, first, x)[1])
    states, h = scanned(x), first
    assert _native.kept_operand_bytes() > 0
    for state, each in zip(states, x, strict=True):
        h = once(h, each)
        np.testing.assert_allclose(state, h, rtol=1e-5, atol=1e-6)


def test_kernels_are_kept_as_long_as_the_program():
    infer = jax.jit(lambda x: conv(x, W))
    for _ in range(UNTIL_KEPT + 1):
        infer(X).block_until_ready()
    assert _native.kept_operand_bytes() > 0
    infer.clear_cache()
    del infer
    for _ in range(1000):  # XLA's threads may hold the program for a moment
        gc.collect()
        if _native.kept_operand_bytes() == 0:
            return
        time.sleep(0.01)
    pytest.fail("kernels are kept without a program")


def test_a_loop_keeps_its_kernels():
    looped = jax.jit(lambda x, w: jax.lax.fori_loop(0, UNTIL_KEPT + 2, lambda _, x: jnp.tanh(conv(x, w)), x))
    expected = X
    for _ in range(UNTIL_KEPT + 2):
        expected = jnp.tanh(fresh(expected, W))
    np.testing.assert_allclose(looped(X, W), expected, rtol=1e-5, atol=1e-6)
    assert _native.kept_operand_bytes() > 0


def test_training_keeps_nothing():
    @jax.jit
    def step(w):
        return w - 1e-2 * jax.grad(lambda w: (conv(jnp.tanh(conv(X, w)), w) ** 2).mean())(w)

    w = W
    for _ in range(UNTIL_KEPT + 2):
        w = step(w)
        assert _native.kept_operand_bytes() == 0


def test_the_first_steps_of_a_warmup_keep_nothing():
    @jax.jit
    def step(w, rate):
        return w - rate * jax.grad(lambda w: (conv(jnp.tanh(conv(X, w)), w) ** 2).mean())(w)

    w = W
    for count in range(UNTIL_KEPT):
        w = step(w, max(count - 2, 0) * 1e-2)
        assert _native.kept_operand_bytes() == 0


def test_training_of_a_dense_layer_keeps_nothing():
    dense = dfpjax.mixed_precision(jnp.dot, policy=dfpjax.Policy(default=BLOCKS))
    x = make(24, 300)

    @jax.jit
    def step(w):
        return w - 1e-2 * jax.grad(lambda w: (dense(jnp.tanh(dense(x, w)), w) ** 2).mean())(w)

    w = make(300, 300)
    for _ in range(UNTIL_KEPT + 2):
        w = step(w)
        assert _native.kept_operand_bytes() == 0


def test_an_exported_program_keeps_them_too():
    exported = jax.export.export(jax.jit(conv), disabled_checks=dfpjax.export_checks())(X, W)
    call = jax.jit(exported.call)
    for _ in range(UNTIL_KEPT + 1):
        np.testing.assert_array_equal(call(X, W), fresh(X, W))
    assert _native.kept_operand_bytes() > 0


def test_without_a_state_nothing_is_kept():
    stages = _native.registrations()["dfpjax_contract_v1"]
    jax.ffi.register_ffi_target("dfpjax_contract_without_state", {"execute": stages["execute"]})
    plan, operands, _ = problem(of_case("same", "fprop"), normal, blocks=BOTH, algorithm="winograd2")
    attributes = {"plan": np.asarray(plan.encode(), np.int64), "isa": "", "threads": np.int64(0)}

    def runs(target):
        call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(plan.out_shape, jnp.float32))
        program = jax.jit(lambda *operands: call(*operands, **attributes))
        return [np.asarray(program(*operands)) for _ in range(UNTIL_KEPT + 1)], _native.kept_operand_bytes()

    results, kept = runs("dfpjax_contract_without_state")
    assert kept == 0
    with_state, kept = runs("dfpjax_contract_v1")
    assert kept > 0
    for result in (*results, *with_state):
        np.testing.assert_array_equal(result, results[0])
