"""Tensors that become an operand in the pass that computes them: nothing changes but where numbers go."""

import functools
import re
from collections import Counter

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED
from fusing import (
    BIAS,
    COTANGENT,
    LARGE,
    OPERAND,
    PARAMS,
    POOLED_OPERAND,
    ROWS,
    X,
    batch_norm,
    conv,
    kinds,
    pool,
)
from jax import lax
from transform_helpers import normal, relative_error

import dfpjax
from dfpjax.numbers import Blocks, Quantizer
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.operations.channels import scaled_p
from dfpjax.operations.moments import add_affine_p
from dfpjax.operations.pooling import Windows, max_pool
from dfpjax.operations.rectified import rectified_scaled_p, rectify_normalized, rectify_sum
from dfpjax.operations.rectified_bias import masked_p, rectify_shifted
from dfpjax.policy import Policy

pytestmark = pytest.mark.jax_releases  # how JAX lowers composites and foreign functions

UNFUSED = Policy(default=FORCED.default, fuse=False)
RECTIFIED, GRADIENT, MASKED, POOLED, POOLING, ALONE = (
    f"dfpjax_{name}_v1"
    for name in (
        "rectified_operand", "gradient_operand", "masked_operand", "pooled_operand", "max_pool",
        "quantize_blocks",
    )
)  # fmt: skip


def calls(fun, *args):
    """How often the compiled program calls each native function."""
    text = jax.jit(fun).lower(*args).compile().as_text()
    return Counter(re.findall(r'custom_call_target="(\w+)"', text))


# --- one tensor -------------------------------------------------------------------------------------


def of_channels(seed, shape):
    return normal(seed, *(1,) * (len(shape) - 1), shape[-1])


def rectified(operand, x, mean, scale, shift, *_):
    return rectify_normalized(x, mean, scale, shift)


def biased(operand, x, mean, scale, shift, *_):
    return rectify_shifted(x, shift, operand=operand)


def summed(operand, x, mean, scale, shift, residual, *_):
    return rectify_sum(x, mean, scale, shift, residual, operand=operand)[0]


def gradient(operand, x, mean, scale, shift, g, offset, slope):
    return add_affine_p.bind(scaled_p.bind(g, scale), x, offset, slope)


def rectified_gradient(operand, x, mean, scale, shift, g, offset, slope):
    return add_affine_p.bind(rectified_scaled_p.bind(g, x, mean, scale, shift), x, offset, slope)


def masked_gradient(operand, x, mean, scale, shift, g, *_):
    return masked_p.bind(g, x > 0)


IMAGES = Windows(sizes=(3, 2), strides=(1, 2), padding=((1, 1), (1, 0)))


def images(x):
    return x if x.ndim == 4 else x[:, None, None]


def pooled(operand, x, *_):
    return max_pool(images(x), IMAGES, operand=operand, kept=False)


def pooled_and_kept(operand, x, *_):
    return max_pool(images(x), IMAGES, operand=operand)


PRODUCERS = {
    rectified: RECTIFIED,
    biased: RECTIFIED,
    summed: RECTIFIED,
    gradient: GRADIENT,
    rectified_gradient: GRADIENT,
    masked_gradient: MASKED,
    pooled: POOLED,
    pooled_and_kept: POOLED,
}


def operands_of(shape):
    x, g = normal(0, *shape), normal(4, *shape)
    return (x, *(of_channels(i, shape) for i in (1, 2, 3)), g, *(of_channels(i, shape) for i in (5, 6)))


@functools.cache
def both(producer, shape, quantizer):
    """The quantized tensor, and the same with a barrier between the tensor and its quantization."""

    def run(*args):
        y = producer(quantizer, *args)
        return [
            quantize_array(tensor, quantizer, blocks=quantizer.blocks)
            for tensor in (y, lax.optimization_barrier(y))
        ]

    return run, calls(run, *operands_of(shape))


@pytest.mark.optimized
@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize(
    ("shape", "quantizer"),
    [
        ((3, 5, 7, 20), Quantizer()),
        ((2, 9, 8, 3), Quantizer(blocks=Blocks(rows=8, columns=64), bits=12)),
        ((50, 96), Quantizer(rounding="stochastic")),
        ((2, 4, 4, 70), Quantizer(rounding="truncate", blocks=Blocks(rows=4, columns=16))),
    ],
)
def test_the_bits_are_those_of_two_passes(producer, shape, quantizer):
    run, found = both(producer, shape, quantizer)
    assert (found[PRODUCERS[producer]], found[ALONE]) == (1, 1)
    (mantissa, exponent), (mantissa2, exponent2) = jax.jit(run)(*operands_of(shape))
    np.testing.assert_array_equal(exponent, exponent2)
    np.testing.assert_array_equal(np.asarray(mantissa), np.asarray(mantissa2))


@pytest.mark.optimized
@pytest.mark.parametrize("producer", PRODUCERS)
def test_numbers_that_are_not_finite(producer):
    shape, quantizer = (3, 5, 7, 20), Quantizer()
    args = list(operands_of(shape))
    for at, value in ((0, np.nan), (0, np.inf), (4, np.nan), (4, -np.inf)):
        changed = args.copy()
        changed[at] = np.array(args[at])
        changed[at][1, 2, 3, 4] = value
        (mantissa, exponent), (mantissa2, exponent2) = jax.jit(both(producer, shape, quantizer)[0])(*changed)
        np.testing.assert_array_equal(exponent, exponent2)
        np.testing.assert_array_equal(np.asarray(mantissa), np.asarray(mantissa2))


@pytest.mark.parametrize("other", [Quantizer(bits=12), Quantizer(rounding="truncate"),
                                   Quantizer(blocks=Blocks(rows=2, columns=32))])  # fmt: skip
@pytest.mark.parametrize("producer", [biased, summed, pooled, pooled_and_kept])
def test_an_operation_with_another_quantizer_quantizes_by_itself(producer, other):
    def run(*args):
        y = producer(Quantizer(), *args)
        return quantize_array(y, other, blocks=other.blocks), y

    args = operands_of((2, 16, 16, 64))
    assert calls(run, *args)[ALONE] == 1
    (mantissa, exponent), y = jax.jit(run)(*args)
    expected = quantize_array(y, other, blocks=other.blocks)
    np.testing.assert_array_equal(exponent, expected[1])
    np.testing.assert_array_equal(np.asarray(mantissa), np.asarray(expected[0]))


# --- programs ---------------------------------------------------------------------------------------


def residual(params, x):
    x = jax.nn.relu(batch_norm(conv(x, params["first"]), params["scale"], params["shift"]))
    y = batch_norm(conv(x, params["second"]), params["scale"], params["shift"])
    return conv(jax.nn.relu(y + x), params["third"])


def with_biases(params, x):
    x = jax.nn.relu(conv(x, params["first"]) + params["bias"])
    x = jax.nn.relu(conv(x, params["second"]) + params["shift"])
    return conv(x, params["third"])


def with_biases_and_a_residual(params, x):
    x = jax.nn.relu(conv(x, params["first"]) + params["bias"])
    x = jax.nn.relu(conv(x, params["second"]) + params["shift"] + x)
    return conv(x, params["third"])


def loss(network, params, x):
    return jnp.mean(jnp.square(network(params, x)))


def step(network, policy):
    return jax.value_and_grad(functools.partial(loss, dfpjax.mixed_precision(network, policy)))


def with_pools(params, x):
    x = pool(jax.nn.relu(conv(x, params["first"]) + params["bias"]), window=2)
    x = pool(conv(x, params["second"]))
    return conv(x, params["third"])


def test_explain_lists_them():
    assert Counter(kinds(residual, PARAMS, X, policy=FORCED)) == {
        "channel statistics": 2, "rectified normalization": 1, "rectified sum": 1, OPERAND: 2, COTANGENT: 2,
    }  # fmt: skip
    assert Counter(kinds(with_biases, PARAMS, X, policy=FORCED)) == {
        "rectified bias": 2, OPERAND: 2, COTANGENT: 2,
    }  # fmt: skip
    assert Counter(kinds(with_biases_and_a_residual, PARAMS, X, policy=FORCED)) == {
        "rectified bias": 1, "rectified sum": 1, OPERAND: 2, COTANGENT: 1,
    }  # fmt: skip
    assert Counter(kinds(with_pools, PARAMS, X, policy=FORCED)) == {
        BIAS: 1, "maximum pooling": 2, POOLED_OPERAND: 2,
    }  # fmt: skip
    assert kinds(residual, PARAMS, X, policy=UNFUSED) == []


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        # Images, three kernels and the gradient of the result are quantized by themselves.
        (residual, {RECTIFIED: 2, GRADIENT: 2, ALONE: 5}),
        (with_biases, {RECTIFIED: 2, MASKED: 2, ALONE: 5}),
        # The gradient by the sum goes to the residual, too.
        (with_biases_and_a_residual, {RECTIFIED: 2, MASKED: 1, ALONE: 6}),
        # The gradients by both pools' inputs are quantized by themselves, too: of a convolution and a bias.
        (with_pools, {POOLED: 2, POOLING: 0, ALONE: 7}),
    ],
)
def test_no_activation_is_read_to_be_quantized(network, expected):
    fused = step(network, FORCED)
    found = calls(fused, PARAMS, X)
    assert {name: found[name] for name in expected} == expected
    actual, reference = jax.jit(lambda *args: (fused(*args), step(network, UNFUSED)(*args)))(PARAMS, X)
    assert relative_error(actual[0], reference[0]) < 1e-5
    used = [name for name in PARAMS if np.any(reference[1][name])]
    for name in used:
        assert relative_error(actual[1][name], reference[1][name]) < 1e-3, name


def test_a_tensor_that_something_else_takes_is_there_in_float32():
    def network(params, x):
        h = jax.nn.relu(batch_norm(conv(x, params["first"]), params["scale"], params["shift"]))
        return conv(h, params["third"]), jnp.mean(h, ROWS)

    fused, plain = (
        jax.jit(dfpjax.mixed_precision(network, policy))(PARAMS, X) for policy in (FORCED, UNFUSED)
    )
    assert relative_error(fused[1], plain[1]) < 1e-5
    assert relative_error(fused[0], plain[0]) < 1e-4


def test_pools_that_something_else_takes_are_written_in_float32_too():
    def network(params, x):
        h = pool(conv(x, params["first"]))
        return conv(h, params["second"]), conv(pool(h, stride=1), params["third"])

    fused, plain = (dfpjax.mixed_precision(network, policy) for policy in (FORCED, UNFUSED))
    found = calls(fused, PARAMS, X)
    assert (found[POOLED], found[POOLING]) == (2, 0)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(fused)(PARAMS, X), jax.jit(plain)(PARAMS, X))


def test_pools_have_the_bits_of_the_unfused_program():
    def first_to_last(params, x):
        return conv(pool(conv(pool(x), params["first"])), params["third"])

    images = normal(6, 4, 64, 64, 3)
    fused, plain = (jax.jit(step(first_to_last, policy)) for policy in (FORCED, UNFUSED))
    jax.tree.map(np.testing.assert_array_equal, fused(PARAMS, images), plain(PARAMS, images))


def test_a_step_that_is_mapped():
    images = jnp.stack([X, 2 * X])
    mapped = jax.vmap(step(with_biases, FORCED), (None, 0))
    actual = jax.jit(mapped)(PARAMS, images)
    for i, x in enumerate(images):
        expected = jax.jit(step(with_biases, UNFUSED))(PARAMS, x)
        assert relative_error(actual[0][i], expected[0]) < 1e-5
        assert relative_error(actual[1]["second"][i], expected[1]["second"]) < 1e-3


@pytest.mark.parametrize("mapped", [False, True])
def test_gradients_at_zero_are_zero(mapped):
    def fun(x, shift):
        run = functools.partial(rectify_shifted, operand=Quantizer())
        return jnp.sum((jax.vmap(run, (0, None)) if mapped else run)(x, shift))

    shift = jnp.zeros((1, 1, 5) if mapped else (1, 1, 1, 5))
    for gradient in jax.grad(fun, (0, 1))(jnp.zeros((2, 3, 4, 5)), shift):
        np.testing.assert_array_equal(gradient, 0)


def test_an_exported_program_has_the_same_passes():
    pytest.importorskip("flatbuffers", reason='needs dfpjax[export]: pip install ".[export]"')
    fused = jax.jit(step(residual, FORCED))
    exported = jax.export.export(fused, disabled_checks=dfpjax.export_checks())(PARAMS, X)
    assert {RECTIFIED, GRADIENT} <= set(re.findall(r"dfpjax_\w+", exported.mlir_module()))
    again = jax.export.deserialize(exported.serialize()).call(PARAMS, X)
    jax.tree.map(np.testing.assert_array_equal, again, fused(PARAMS, X))


def test_several_devices():
    mesh = jax.make_mesh((2,), ("batch",))
    x = jax.device_put(X, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
    fused = jax.jit(step(with_biases, FORCED))
    assert MASKED not in fused.lower(PARAMS, x).as_text()
    actual, expected = fused(PARAMS, x), jax.jit(step(with_biases, UNFUSED))(PARAMS, X)
    assert relative_error(actual[0], expected[0]) < 1e-5
    assert relative_error(actual[1]["second"], expected[1]["second"]) < 1e-3


def test_biases_before_other_operations_stay():
    def network(params, x):
        return jnp.sum(jax.nn.relu(conv(x, params["first"]) + params["bias"]))

    assert kinds(network, PARAMS, X, policy=FORCED) == [BIAS]
    assert LARGE[0] * LARGE[1] * LARGE[2] * LARGE[3] >= 1 << 20
