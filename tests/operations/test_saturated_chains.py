"""Operations with a `FixedChain`, and the count of saturated chains."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, COMPILED_QUICKLY, contractions

from dfpjax import FixedChain
from dfpjax.numbers import Quantizer, Quantizers
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.operations import conv_general_dilated, dot_general, saturated_chains

LONG = FixedChain(256, 2, saturate=True)


def case(name, accumulation, examples=(), **kwargs):
    """The operation, the count of its saturated chains, and operands of one sign."""
    function, shapes, parameters = CASES[name]
    parameters = {**parameters, "accumulation": accumulation, **kwargs}
    rng = np.random.default_rng(0)
    operands = [rng.uniform(0.2, 1, (*examples, *shape)).astype(np.float32) for shape in shapes]
    count = functools.partial(saturated_chains, function, **parameters)
    return functools.partial(function, **parameters), count, operands


def value_and_gradients(f, count, x, w):
    out, transpose = jax.vjp(f, x, w)
    cotangent = jnp.abs(jnp.cos(out))
    return (out, *transpose(cotangent)), count(x, w, cotangent), cotangent


@pytest.mark.parametrize("name", ["3x3", "matmul"])
def test_values_and_counts_are_the_oracles(name):
    f, count, operands = case(name, LONG)
    *results, cotangent = jax.jit(functools.partial(value_and_gradients, f, count))(*operands)
    x, w, ct = (oracle.quantize(np.asarray(y), bits=14) for y in (*operands, cotangent))
    pairs = {"fprop": (x, w), "dgrad": (ct, w), "wgrad": (ct, x)}
    for out, saturated, (which, (lhs, rhs)) in zip(*results, pairs.items(), strict=True):
        contraction, *shapes = contractions(name)[which]
        if make_plan(contraction, *shapes, *((1,) * len(shape) for shape in shapes)).swapped:
            contraction, lhs, rhs = contraction.swap(), rhs, lhs
        total, expected = oracle.fixed_chain(contraction, lhs[0], rhs[0], 256)
        scaled = np.ldexp(total.astype(np.float64), lhs[1] + rhs[1]).astype(np.float32)
        np.testing.assert_array_equal(out, scaled)
        assert saturated == expected
    assert max(results[1]) > 0


def test_one_run_of_the_kernel_for_both():
    f, count, operands = case("3x3", LONG)
    program = jax.jit(functools.partial(value_and_gradients, f, count)).lower(*operands)
    assert program.as_text().count("custom_call @dfpjax_fixed_chain_v1") == 6
    assert program.compile().as_text().count('custom_call_target="dfpjax_fixed_chain_v1"') == 3


@pytest.mark.parametrize(
    "name", [pytest.param("3x3_strided", marks=pytest.mark.slow), "attention", "depthwise"]
)
def test_the_reference_gives_the_same_bits_and_counts(name):
    results = []
    for backend, options in (("auto", {}), ("reference", COMPILED_QUICKLY)):
        f, count, operands = case(name, FixedChain(64, saturate=True), backend=backend)
        run = jax.jit(functools.partial(value_and_gradients, f, count), compiler_options=options)
        results.append(run(*operands))
    for native, reference in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(native, reference)


@functools.cache
def examples_and_their_counts():
    """A function of one example's operands, the same jitted, and three examples of both operands."""
    f, count, (x, w) = case("3x3", FixedChain(128, saturate=True), examples=(3,))
    x[1] *= np.where(np.arange(x[1].size) % 2, -1, 1).reshape(x[1].shape)
    run = functools.partial(value_and_gradients, f, count)
    return run, jax.jit(run), (x, w)


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0)])
def test_under_vmap_every_example_has_its_counts(mapped):
    run, one, examples = examples_and_their_counts()
    operands = [y if axis == 0 else y[0] for y, axis in zip(examples, mapped, strict=True)]
    together = jax.jit(jax.vmap(run, mapped))(*operands)
    for i in range(3):
        alone = one(*(y[i] if axis == 0 else y for y, axis in zip(operands, mapped, strict=True)))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(np.asarray(a)[i], b)
    assert together[1].fprop.shape == (3,) and np.all(np.asarray(together[1].wgrad) > 0)


def test_nested_vmap():
    _, count, (x, w) = case("matmul", FixedChain(64, saturate=True), examples=(2,))
    w = np.stack([*w, -w[0]])
    counts = jax.jit(jax.vmap(jax.vmap(count, (None, 0)), (0, None)))(x, w).fprop
    assert counts.shape == (2, 3)
    one = jax.jit(count)
    assert counts.tolist() == [[int(one(a, b).fprop) for b in w] for a in x]


def test_counts_beside_a_gradient():
    _, count, (x, w) = case("matmul", LONG)

    def loss(w):
        return jnp.sum(w**2), count(x, w).fprop

    (_, saturated), gradient = jax.value_and_grad(loss, has_aux=True)(w)
    np.testing.assert_array_equal(gradient, 2 * w)
    assert saturated == count(x, w).fprop


def test_nothing_is_saturated_within_the_bound():
    for accumulation in ("certified", FixedChain(32, 2), FixedChain(2)):
        f, count, operands = case("3x3", accumulation)
        _, counts, _ = jax.jit(functools.partial(value_and_gradients, f, count))(*operands)
        assert counts == (0, 0, 0)
    _, count, operands = case("3x3", LONG)
    assert count(*operands).dgrad is count(*operands).wgrad is None


def test_a_shift_is_a_quantization_to_fewer_bits():
    narrow = Quantizer(bits=13)
    f, _, operands = case("3x3", FixedChain(32, 3))
    g, _, _ = case("3x3", FixedChain(32), quantizers=Quantizers(lhs=narrow, rhs=narrow, cotangent=narrow))
    for shifted, quantized in zip(
        jax.vjp(f, *operands)[1](f(*operands)), jax.vjp(g, *operands)[1](g(*operands)), strict=True
    ):
        np.testing.assert_array_equal(shifted, quantized)


def test_derivatives_of_any_order_know_their_operands_bits():
    """Cotangents have more bits than the operands. Chains that the operands' bits alone would exempt from
    checks overflow in the gradients."""
    few, many = Quantizer(bits=8), Quantizer(bits=16)
    quantizers = Quantizers(lhs=few, rhs=few, cotangent=many)
    results = []
    for backend in ("auto", "reference"):
        f, _, operands = case(
            "matmul", FixedChain(256, saturate=True), quantizers=quantizers, backend=backend
        )

        def penalty(x, w, f=f):
            gradients = jax.grad(lambda x, w: jnp.sum(f(x, w) ** 3), (0, 1))(x, w)
            return sum(jnp.sum(g**2) for g in gradients)

        options = COMPILED_QUICKLY if backend == "reference" else {}
        results.append(jax.jit(jax.grad(penalty, (0, 1)), compiler_options=options)(*operands))
    for native, reference in zip(*results, strict=True):
        np.testing.assert_array_equal(native, reference)


def test_chains_beyond_the_bound_are_refused():
    x = jnp.ones((4, 4))
    numbers = {"dimension_numbers": (((1,), (0,)), ((), ()))}
    message = re.escape("the bound (14 − 1) + (14 − 1) + log2(256) = 34 ≤ 31 does not hold")
    with pytest.raises(ValueError, match=message):
        dot_general(x, x, **numbers, accumulation=FixedChain(256, 2))
    with pytest.raises(ValueError, match=message):
        saturated_chains(dot_general, x, x, **numbers, accumulation=FixedChain(256, 2))
    with pytest.raises(ValueError, match="longest chain that it allows is 2; pass saturate=True"):
        conv_general_dilated(
            x[None, None], x[None, None], window_strides=(1, 1), padding=((0, 0),) * 2,
            accumulation=FixedChain(4),
        )  # fmt: skip
    with pytest.raises(ValueError, match='accumulation must be "certified" or a FixedChain, got 256'):
        dot_general(x, x, **numbers, accumulation=256)


def test_wrong_arguments_are_named():
    x = jnp.ones((4, 5))
    numbers = {"dimension_numbers": (((1,), (1,)), ((), ()))}
    with pytest.raises(ValueError, match="operation must be conv_general_dilated or dot_general"):
        saturated_chains(jax.lax.dot_general, x, x, **numbers)
    with pytest.raises(
        ValueError, match=re.escape("cotangent must have the result's shape (4, 4), got (4, 5)")
    ):
        saturated_chains(dot_general, x, x, x, **numbers)
    with pytest.raises(TypeError, match="cotangent must be float32, got int32"):
        saturated_chains(dot_general, x, x, jnp.ones((4, 4), int), **numbers)
