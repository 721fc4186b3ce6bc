"""Rectified normalizations and sums, in addition to the tests of all such operations: special numbers,
extremes, gradients at zero, and gradients by some of the operands."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import COMPILED_QUICKLY
from transform_helpers import normal, primitives, relative_error

from dfpjax.operations.passes import rectified_sums
from dfpjax.operations.rectified import rectify_normalized, rectify_sum

SHAPE, CHANNELS = (4, 6, 4, 5), (1, 1, 1, 5)
ROWS = (0, 1, 2)
quickly = functools.partial(jax.jit, compiler_options=COMPILED_QUICKLY)


def plain(x, mean, scale, shift, residual=0):
    return jax.nn.relu((x - mean) * scale + shift + residual)


def arguments(*shape):
    """Small integers. Their sums are exact, and many are zero."""
    rng = np.random.default_rng(0)

    def whole(shape, low):
        return rng.integers(low, 3, shape).astype(np.float32)

    return whole((*shape, *SHAPE), -2), *(whole(CHANNELS, 1) for _ in range(3)), whole((*shape, *SHAPE), -2)


MAPPED = (0, None, None, None, 0)


# --- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [np.nan, -np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_special_numbers(special, at):
    """A special number in the tensor, the mean, scale, shift or residual; alone and under vmap."""
    args = [np.array(a) for a in arguments(3)]
    args[at][..., 2].flat[1 if at in (0, 4) else 0] = special
    y, low, high = quickly(jax.vmap(rectify_sum, MAPPED))(*args)
    expected = quickly(jax.vmap(plain, MAPPED))(*args)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(low, expected.min((1, 2, 3)))
    np.testing.assert_array_equal(high, expected.max((1, 2, 3)))
    one = [a[0] if m == 0 else a for a, m in zip(args, MAPPED, strict=True)]
    for actual, of_first in zip(rectify_sum(*one), (y, low, high), strict=True):
        np.testing.assert_array_equal(actual, of_first[0])


def test_zeros_are_positive():
    x, ones = jnp.full(SHAPE, -0.0), jnp.ones(CHANNELS)
    for results in (rectify_sum(x, 0 * ones, ones, -0 * ones, x), [rectify_normalized(x, 0 * ones, ones, x)]):
        assert not any(np.signbit(y).any() or np.any(y) for y in results)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0)])
def test_without_numbers(shape):
    x, of_channels = jnp.zeros(shape), jnp.zeros((1, 1, shape[-1]))
    y, low, high = jax.jit(rectify_sum)(x, *[of_channels] * 3, x)
    assert y.shape == shape and low.shape == high.shape == shape[-1:]
    assert (low == jnp.inf).all() and (high == 0).all()
    for fun, args in (
        (rectify_sum, (x, *[of_channels] * 3, x)),
        (rectify_normalized, (x, *[of_channels] * 3)),
    ):
        for gradient, arg in zip(_gradients(fun, args), args, strict=True):
            assert gradient.shape == arg.shape and not gradient.any()
    assert not any(s.any() for s in rectified_sums(x, x, *[of_channels[0, 0]] * 3))


def _gradients(fun, args):
    return jax.jit(jax.grad(lambda *args: jnp.sum(jax.tree.leaves(fun(*args))[0]), range(len(args))))(*args)


def test_the_mask_is_computed_only_for_a_gradient():
    def masked(fun, *shape):
        jaxpr = jax.make_jaxpr(fun)(*arguments(*shape))
        (eqn,) = (e for e in jaxpr.eqns if e.primitive.name == "dfp_rectified_sum")
        assert eqn.outvars[1].aval.shape == ((*shape, *SHAPE) if eqn.params["masked"] else (0,))
        return eqn.params["masked"]

    mapped = jax.vmap(rectify_sum, MAPPED)
    assert not masked(rectify_sum) and not masked(mapped, 3)
    assert masked(lambda *args: jax.vjp(rectify_sum, *args)[0])
    assert masked(lambda *args: jax.vjp(mapped, *args)[0], 3)


# --- gradients --------------------------------------------------------------------------------------


def test_gradients_at_zero_are_zero():
    *args, residual = arguments()
    weights = normal(0, *SHAPE)
    for fun, more in ((lambda *args: rectify_sum(*args)[0], (residual,)), (rectify_normalized, ())):
        everything = (*args, *more)
        total = (args[0] - args[1]) * args[2] + args[3] + sum(more)
        assert (total == 0).sum() > 10
        actual, expected = (
            quickly(jax.grad(lambda *args, fun=fun: jnp.sum(weights * fun(*args)), range(len(everything))))(
                *everything
            )
            for fun in (fun, plain)
        )
        np.testing.assert_array_equal(actual[0], np.where(total > 0, weights * args[2], 0))
        assert relative_error(actual, expected) < 1e-6


def test_sums_leave_out_what_is_zero():
    x, *of_channels, g = arguments()
    counted = np.where((x - of_channels[0]) * of_channels[1] + of_channels[2] > 0, g, 0)
    expected = counted.sum(ROWS), (counted * (x - of_channels[0])).sum(ROWS)
    for actual, plainly in zip(
        rectified_sums(g, x, *(v.ravel() for v in of_channels)), expected, strict=True
    ):
        np.testing.assert_array_equal(actual, plainly)


def test_no_gradient_flows_through_extremes():
    args = arguments()
    gradients = jax.jit(jax.grad(lambda *args: sum(map(jnp.sum, rectify_sum(*args)[1:])), range(5)))(*args)
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("with_residual", [True, False])
def test_gradients_by_some_operands_only(with_residual):
    """Differentiate by every subset of the operands, in forward and reverse mode."""
    args = arguments()[: 4 + with_residual]
    fun = (lambda *args: rectify_sum(*args)[0]) if with_residual else rectify_normalized
    subsets = [
        by for count in range(1, len(args) + 1) for by in itertools.combinations(range(len(args)), count)
    ]

    def all_of(fun):
        def scalar(*args):
            return jnp.sum(jnp.sin(fun(*args)))

        def tangent(by):
            def of(*some):
                return fun(*(some[by.index(i)] if i in by else args[i] for i in range(len(args))))

            some = tuple(jnp.asarray(args[i]) for i in by)
            return jax.jvp(of, some, tuple(normal(i, *args[i].shape) for i in by))[1]

        return [(jax.grad(scalar, by)(*args), tangent(by)) for by in subsets]

    actual, expected = (quickly(functools.partial(all_of, f))() for f in (fun, plain))
    for by, ours, plainly in zip(subsets, actual, expected, strict=True):
        assert relative_error(ours, plainly) < 1e-5, by


def test_sums_of_channels_only_where_they_are_needed():
    args = arguments()
    for by, needed in ((0, False), (4, False), (1, True), ((0, 2), True)):
        gradient = jax.grad(lambda *args: jnp.sum(rectify_sum(*args)[0]), by)
        assert (primitives(jax.make_jaxpr(gradient)(*args))["dfp_paired_sums"] == 1) == needed
    for by, needed in ((0, False), (3, True)):
        gradient = jax.grad(lambda *args: jnp.sum(rectify_normalized(*args)), by)
        assert (primitives(jax.make_jaxpr(gradient)(*args[:4]))["dfp_rectified_sums"] == 1) == needed
