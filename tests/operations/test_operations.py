import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, COMPILED_QUICKLY

from dfpjax.operations import conv_general_dilated, dot_general

JAX = {conv_general_dilated: jax.lax.conv_general_dilated, dot_general: jax.lax.dot_general}


def pair(name):
    """Our operation, JAX's in float32, and operands of normally distributed values."""
    function, shapes, kwargs = CASES[name]
    rng = np.random.default_rng(0)
    operands = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return functools.partial(function, **kwargs), functools.partial(JAX[function], **kwargs), tuple(operands)


def value_and_gradients(operation, *operands):
    """The output, and the gradients of a loss, sum(sin(out / scale)) · scale."""
    out, transpose = jax.vjp(operation, *operands)
    scale = jax.lax.stop_gradient(jnp.sqrt(jnp.mean(out**2)))  # so sin does not magnify errors
    return out, transpose(jnp.cos(out / scale))


# test_granularity.py compares the same derivatives of these, with an exponent per slice.
ALSO_WITH_SLICES = ["3x3_strided", "grouped", "depthwise", "batch_grouped", "matmul_tt", "inner", "attention"]
ALSO_WITH_SLICES += ["two_contracted"]
IN_TIERS = [pytest.param(name, marks=pytest.mark.slow if name in ALSO_WITH_SLICES else ()) for name in CASES]


@pytest.mark.parametrize("name", IN_TIERS)
def test_values_and_derivatives_agree_with_float32(name):
    ours, theirs, operands = pair(name)
    tangents = tuple(x[::-1] for x in operands)

    def values_and_derivatives(f, operands, tangents):
        value, gradients = value_and_gradients(f, *operands)
        return value, (jax.jvp(f, operands, tangents)[1], gradients)

    compiled = jax.jit(functools.partial(values_and_derivatives, ours))
    peer = jax.jit(functools.partial(values_and_derivatives, theirs), compiler_options=COMPILED_QUICKLY)
    (value, derivatives), (expected, expected_derivatives) = (f(operands, tangents) for f in (compiled, peer))
    assert oracle.relative_error(value, expected) < 2e-4
    assert oracle.relative_error(derivatives, expected_derivatives) < 2e-3


@pytest.mark.parametrize("name", ["3x3_strided", "grouped", "both_dilated", "matmul", "attention"])
def test_second_derivatives_agree_with_float32(name):
    ours, theirs, operands = pair(name)

    def penalty(f, x, w):
        return sum(jnp.sum(g**2) for g in value_and_gradients(f, x, w)[1])

    compiled = jax.jit(jax.grad(functools.partial(penalty, ours), (0, 1)))
    peer = jax.jit(jax.grad(functools.partial(penalty, theirs), (0, 1)), compiler_options=COMPILED_QUICKLY)
    assert oracle.relative_error(compiled(*operands), peer(*operands)) < 5e-3


def test_more_accurate_than_bfloat16():
    ours, theirs, (x, w) = pair("3x3_deep")
    exact = theirs(x, w, precision=jax.lax.Precision.HIGHEST)
    bfloat16 = theirs(*(y.astype(jnp.bfloat16) for y in (x, w)), preferred_element_type=jnp.float32)
    assert 16 * oracle.relative_error(ours(x, w), exact) < oracle.relative_error(bfloat16, exact)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("name", ["matmul", "depthwise"])
def test_the_reference_lowering_gives_the_same_bits(name):
    ours, _, operands = pair(name)
    results = []
    # Without jit: XLA takes longer to optimize one program of three contractions than one of each.
    for f in (ours, functools.partial(ours, backend="reference")):
        out, transpose = jax.vjp(f, *operands)
        results.append((out, *transpose(out)))
    for native, portable in zip(*results, strict=True):
        np.testing.assert_array_equal(native, portable)


def test_other_platforms_get_plain_hlo():
    ours, _, operands = pair("3x3_strided")
    traced = jax.jit(functools.partial(value_and_gradients, ours)).trace(*operands)
    for platforms in (("cpu",), ("cuda", "rocm", "tpu")):
        lowered = traced.lower(lowering_platforms=platforms).as_text()
        assert ("custom_call @dfpjax" in lowered) == (platforms == ("cpu",)), platforms
        assert "convolution" not in lowered, platforms  # no float32 convolution replaces it


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_surface_everywhere(bad):
    ours, _, (x, w) = pair("3x3")
    for which in (0, 1):
        operands = [x.copy(), w.copy()]
        operands[which][0, 0, 0, 0] = bad
        assert np.isnan(ours(*operands)).all()
    gradient = jax.jit(jax.grad(lambda x, bad: jnp.sum(ours(x, w)) * bad))(x, bad)
    assert np.isnan(gradient).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12])
def test_tiny_operands_of_a_normal_product(scale):
    x, w = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)
    dot = functools.partial(dot_general, dimension_numbers=(((1,), (0,)), ((), ())))
    tiny = (x * np.float64(scale)).astype(np.float32)  # NumPy: XLA would flush subnormal values
    exact = tiny.astype(np.float64) @ (w.astype(np.float64) * 1e30)
    assert oracle.relative_error(dot(jnp.asarray(tiny), jnp.asarray(w * np.float32(1e30))), exact) < 2e-4


def test_residuals_are_16_bits_wide():
    ours, _, (x, w) = pair("3x3")
    transpose = jax.eval_shape(lambda x, w: jax.vjp(ours, x, w)[1], x, w)
    kept = [leaf for leaf in jax.tree.leaves(transpose) if leaf.size > 1]
    assert sorted(str(leaf.dtype) for leaf in kept) == ["dfp16", "dfp16"]


def test_wrong_operands_are_refused():
    with pytest.raises(TypeError, match="conv_general_dilated: lhs must be float32, got bfloat16"):
        CASES["3x3"][0](jnp.zeros((1, 4, 4, 2), jnp.bfloat16), jnp.zeros((3, 3, 2, 2)), **CASES["3x3"][2])
    with pytest.raises(TypeError, match="dot_general: rhs must be float32, got int32"):
        dot_general(jnp.zeros((2, 2)), jnp.zeros((2, 2), int), dimension_numbers=(((1,), (0,)), ((), ())))
    with pytest.raises(TypeError, match="contracting dimensions to have the same"):
        dot_general(jnp.zeros((2, 3)), jnp.zeros((2, 2)), dimension_numbers=(((1,), (0,)), ((), ())))
