"""Kernels that a call has transformed are kept for the next calls while they stay the same."""

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

WINOGRAD = dfpjax.Policy(default=dfpjax.OpConfig(force=True, algorithm="winograd2"))
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(1, 8, 8, 16)), jnp.float32)
W, OTHER = (jnp.asarray(RNG.normal(size=(3, 3, 16, 16)), jnp.float32) for _ in range(2))


@dfpjax.mixed_precision(policy=WINOGRAD)
def conv(x, w):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims)


def fresh(x, w):
    """The result of a program that has never run before."""
    return np.asarray(jax.jit(lambda x, w: conv(x, w))(x, w))


@pytest.fixture(autouse=True)
def nothing_kept():
    _native.release_scratch()
    assert _native.kept_kernel_bytes() == 0


def test_inference_has_the_same_bits_in_every_call():
    infer = jax.jit(conv)
    expected, other = fresh(X, W), fresh(X, OTHER)
    kept = []
    for w, result in ((W, expected),) * 4 + ((OTHER, other), (W, expected)) + ((OTHER, other),) * 3:
        np.testing.assert_array_equal(infer(X, w), result)
        kept.append(_native.kept_kernel_bytes() > 0)
    assert kept == [False, True, True, True, False, False, False, True, True]
    _native.release_scratch()
    assert _native.kept_kernel_bytes() == _native.scratch_bytes() == 0
    np.testing.assert_array_equal(infer(X, OTHER), other)


def test_kernels_are_kept_as_long_as_the_program():
    infer = jax.jit(lambda x: conv(x, W))
    for _ in range(3):
        infer(X).block_until_ready()
    assert _native.kept_kernel_bytes() > 0
    infer.clear_cache()
    del infer
    for _ in range(1000):  # XLA's threads may hold the program for a moment
        gc.collect()
        if _native.kept_kernel_bytes() == 0:
            return
        time.sleep(0.01)
    pytest.fail("kernels are kept without a program")


def test_a_loop_keeps_its_kernels():
    looped = jax.jit(lambda x, w: jax.lax.fori_loop(0, 4, lambda _, x: jnp.tanh(conv(x, w)), x))
    expected = X
    for _ in range(4):
        expected = jnp.tanh(fresh(expected, W))
    np.testing.assert_allclose(looped(X, W), expected, rtol=1e-5, atol=1e-6)
    assert _native.kept_kernel_bytes() > 0


def test_training_keeps_nothing():
    @jax.jit
    def step(w):
        return w - 1e-2 * jax.grad(lambda w: (conv(jnp.tanh(conv(X, w)), w) ** 2).mean())(w)

    w = W
    for _ in range(4):
        w = step(w)
        assert _native.kept_kernel_bytes() == 0


def test_an_exported_program_keeps_them_too():
    exported = jax.export.export(jax.jit(conv), disabled_checks=dfpjax.export_checks())(X, W)
    call = jax.jit(exported.call)
    for _ in range(3):
        np.testing.assert_array_equal(call(X, W), fresh(X, W))
    assert _native.kept_kernel_bytes() > 0


def test_without_a_state_nothing_is_kept():
    stages = _native.registrations()["dfpjax_contract_v1"]
    jax.ffi.register_ffi_target("dfpjax_contract_without_state", {"execute": stages["execute"]})
    plan, operands, _ = problem(of_case("same", "fprop"), normal, blocks=BOTH, algorithm="winograd2")
    attributes = {"plan": np.asarray(plan.encode(), np.int64), "isa": "", "threads": np.int64(0)}

    def runs(target):
        call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(plan.out_shape, jnp.float32))
        program = jax.jit(lambda *operands: call(*operands, **attributes))
        return [np.asarray(program(*operands)) for _ in range(3)], _native.kept_kernel_bytes()

    results, kept = runs("dfpjax_contract_without_state")
    assert kept == 0
    with_state, kept = runs("dfpjax_contract_v1")
    assert kept > 0
    for result in (*results, *with_state):
        np.testing.assert_array_equal(result, results[0])
