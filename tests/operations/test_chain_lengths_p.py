"""The primitive that returns the lengths of certified chains in addition to the contraction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import COMPILED_QUICKLY

from dfpjax.numbers import Quantizers
from dfpjax.operations import primitives
from dfpjax.operations.dot import dot_problem, quantized

MATMUL = (((1,), (0,)), ((), ()))


def both(lhs, rhs, counted=True, backend="auto"):
    """A matrix product and the lengths of its chains."""
    problem = dot_problem(lhs, rhs, dimension_numbers=MATMUL)
    operands, params = quantized(problem, Quantizers(), "certified", backend)
    lengths = primitives.chain_lengths(primitives.contract_p, *operands, **params)
    return primitives.contract(*operands, **params, counted=counted), lengths


def operands(*examples):
    """Rows of very different scales."""
    rng = np.random.default_rng(0)
    lhs = rng.standard_normal((*examples, 30, 260)) * 2.0 ** -rng.integers(0, 9, (*examples, 30, 1))
    return lhs.astype(np.float32), rng.standard_normal((*examples, 260, 70)).astype(np.float32)


@functools.cache
def compiled(counted=True, backend="auto"):
    """`both`, compiled for `operands()`."""
    run = jax.jit(
        functools.partial(both, counted=counted, backend=backend),
        compiler_options=COMPILED_QUICKLY if backend == "reference" else {},
    )
    return run.lower(*operands()).compile()


@pytest.mark.parametrize("counted", [True, False])
def test_one_run_of_the_kernel_where_the_contraction_counts(counted):
    program = compiled(counted).as_text()
    assert program.count('custom_call_target="dfpjax_chain_lengths_v1"') == 1
    assert program.count('custom_call_target="dfpjax_contract_v1"') == (not counted)


def test_counting_changes_no_bit():
    out, lengths = compiled(True)(*operands())
    np.testing.assert_array_equal(out, compiled(False)(*operands())[0])
    assert lengths.shape == (8,) and np.count_nonzero(lengths) > 1


def test_the_reference_gives_the_same():
    native = compiled()(*operands())
    reference = compiled(backend="reference")(*operands())
    np.testing.assert_array_equal(native[0], reference[0])
    np.testing.assert_allclose(native[1], reference[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("mapped", "backend"),
    [
        ((0, None), "auto"),
        ((None, 0), "auto"),
        ((0, 0), "auto"),
        ((0, None), "reference"),
        ((0, 0), "reference"),
    ],
)
def test_under_vmap_every_example_has_its_lengths(mapped, backend):
    lhs, rhs = operands(3)
    lhs[1] = np.where(np.arange(260) % 99 == 0, 1.0, 2.0**-10)
    arrays = [x if axis == 0 else x[0] for x, axis in zip((lhs, rhs), mapped, strict=True)]
    options = COMPILED_QUICKLY if backend == "reference" else {}
    batched = jax.jit(jax.vmap(functools.partial(both, backend=backend), mapped), compiler_options=options)
    together = np.asarray(batched(*arrays)[1])
    for i in range(3):
        one = (x[i] if axis == 0 else x for x, axis in zip(arrays, mapped, strict=True))
        np.testing.assert_allclose(together[i], compiled(backend=backend)(*one)[1], rtol=1e-6)
    assert mapped[0] is None or (together[0] != together[1]).any()


def test_no_gradient_flows_through_it():
    def loss(lhs, rhs, weight):
        out, lengths = both(lhs, rhs, counted=bool(weight))
        return jnp.sum(out**2) + weight * jnp.sum(lengths**2)

    with_lengths, without = jax.jit(
        lambda *operands: [jax.grad(loss, (0, 1))(*operands, weight) for weight in (1.0, 0.0)]
    )(*operands())
    for a, b in zip(with_lengths, without, strict=True):
        np.testing.assert_array_equal(a, b)
