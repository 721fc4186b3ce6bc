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
        operands.append((rng.standard_normal((EXAMPLES, *shape)) * scale).astype(np.float32))
    return functools.partial(function, **kwargs), operands


@functools.cache
def value_and_gradients(name):
    """The operation with its gradients, and the same jitted."""
    f, _ = batches(name)

    # Each cotangent is a computed value, so XLA's fusion does not change its bits.
    def run(x, w):
        out, transpose = jax.vjp(f, x, w)
        return out, transpose(out)

    return run, jax.jit(run)


def loop(f, operands, in_axes):
    pick = lambda i: [x if a is None else np.take(x, i, a) for x, a in zip(operands, in_axes, strict=True)]  # noqa: E731
    results = [f(*pick(i)) for i in range(EXAMPLES)]
    return jax.tree.map(lambda *xs: np.stack(xs), *results)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# Every mapping of a convolution and a dot product, and one of an operation with batch axes. A trailing axis
# is moved in the same way whatever the operation.
QUICK = [(name, mapped) for name in ("grouped", "matmul") for mapped in ("lhs", "rhs", "both")]
QUICK += [("matmul", "trailing"), ("attention", "both")]
SLOW = [
    (name, mapped)
    for name in ("3x3_strided", "depthwise", "attention", "vecmat", "inner")
    for mapped in ("lhs", "rhs", "both")
    if (name, mapped) not in QUICK
]
MAPPED = QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize(("name", "mapped"), MAPPED)
def test_value_and_gradients(name, mapped):
    _, (x, w) = batches(name)
    operands, in_axes = {
        "lhs": ((x, w[1]), (0, None)),
        "rhs": ((x[1], w), (None, 0)),
        "both": ((x, w), (0, 0)),
        "trailing": ((np.moveaxis(x, 0, -1), np.moveaxis(w, 0, 1)), (x.ndim - 1, 1)),
    }[mapped]
    run, one = value_and_gradients(name)
    assert_same_bits(jax.jit(jax.vmap(run, in_axes))(*operands), loop(one, operands, in_axes))


def test_nested_without_jit():
    f, (x, w) = batches("matmul")
    outer = jax.vmap(jax.vmap(f, (None, 0)), (0, None))(x, w)
    assert_same_bits(outer, np.stack([np.stack([f(a, b) for b in w]) for a in x]))


def test_gradient_of_a_shared_operand_is_the_sum_over_examples():
    f, (x, w) = batches("3x3")

    def loss(w, x):
        return jnp.sum(jnp.sin(f(x, w)))

    def total(w):
        return jnp.sum(jax.vmap(loss, (None, 0))(w, x))

    gradient = jax.jit(jax.grad(loss))
    each = [np.asarray(gradient(w[0], example)) for example in x]
    assert oracle.relative_error(jax.jit(jax.grad(total))(w[0]), sum(each)) < 1e-6


def test_no_loop_over_examples():
    f, (x, w) = batches("3x3")
    compiled = jax.jit(jax.vmap(f, (0, None))).lower(x, w[0]).as_text()
    assert "while" not in compiled and compiled.count("custom_call @dfpjax_contract_v1") == 1


def test_jacobians():
    f, (x, w) = batches("vecmat")
    ours = jax.jit(lambda x, w: (jax.jacrev(f)(x, w), jax.jacfwd(f)(x, w)))(x[0], w[0])
    exact = w[0].T
    assert oracle.relative_error(ours, (exact, exact)) < 2e-4
