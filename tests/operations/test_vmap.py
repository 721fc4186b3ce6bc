"""vmap over any operand gives the bits of a loop over its examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES

pytestmark = pytest.mark.optimized

EXAMPLES = 3


def batches(name):
    """The operation, and batches of both operands whose examples differ widely in scale."""
    function, shapes, kwargs = CASES[name]
    rng = np.random.default_rng(0)
    operands = []
    for shape in shapes:
        scale = np.array([1.0, 300.0, 1e-3]).reshape((EXAMPLES,) + (1,) * len(shape))
        operands.append(jnp.asarray(rng.standard_normal((EXAMPLES, *shape)) * scale, jnp.float32))
    return functools.partial(function, **kwargs), operands


def loop(f, operands, in_axes):
    pick = lambda i: [x if a is None else jnp.take(x, i, a) for x, a in zip(operands, in_axes, strict=True)]  # noqa: E731
    results = [f(*pick(i)) for i in range(EXAMPLES)]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *results)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# One operand for each kind of operation, all of them for a convolution and a dot product.
QUICK = ("grouped", "matmul")
MAPPED = [
    pytest.param(name, mapped, marks=() if mapped == "lhs" or name in QUICK else pytest.mark.slow)
    for name in ("3x3", "3x3_strided", "grouped", "depthwise", "matmul", "attention", "vecmat", "inner")
    for mapped in ("lhs", "rhs", "both", "trailing")
]


@pytest.mark.parametrize(("name", "mapped"), MAPPED)
def test_value_and_gradients(name, mapped):
    f, (x, w) = batches(name)
    operands, in_axes = {
        "lhs": ((x, w[1]), (0, None)),
        "rhs": ((x[1], w), (None, 0)),
        "both": ((x, w), (0, 0)),
        "trailing": ((jnp.moveaxis(x, 0, -1), jnp.moveaxis(w, 0, 1)), (x.ndim - 1, 1)),
    }[mapped]

    def value_and_gradients(x, w):
        out, transpose = jax.vjp(f, x, w)
        return out, transpose(jnp.cos(out))

    assert_same_bits(
        jax.vmap(value_and_gradients, in_axes)(*operands), loop(value_and_gradients, operands, in_axes)
    )


def test_nested():
    f, (x, w) = batches("matmul")
    outer = jax.vmap(jax.vmap(f, (None, 0)), (0, None))(x, w)
    assert_same_bits(outer, jnp.stack([jnp.stack([f(a, b) for b in w]) for a in x]))


def test_gradient_of_a_shared_operand_is_the_sum_over_examples():
    f, (x, w) = batches("3x3")

    def total(w):
        return jnp.sum(jnp.sin(jax.vmap(f, (0, None))(x, w)))

    each = [jax.grad(lambda w, x=example: jnp.sum(jnp.sin(f(x, w))))(w[0]) for example in x]
    assert oracle.relative_error(jax.grad(total)(w[0]), sum(each)) < 1e-6


def test_no_loop_over_examples():
    f, (x, w) = batches("3x3")
    compiled = jax.jit(jax.vmap(f, (0, None))).lower(x, w[0]).as_text()
    assert "while" not in compiled and compiled.count("custom_call @dfpjax") == 1


def test_jacobians():
    f, (x, w) = batches("vecmat")
    ours = jax.jacrev(f)(x[0], w[0]), jax.jacfwd(f)(x[0], w[0])
    exact = jax.jacrev(lambda x, w: x @ w)(x[0], w[0])
    assert oracle.relative_error(ours, (exact, exact)) < 2e-4
