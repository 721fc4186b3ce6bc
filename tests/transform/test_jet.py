"""`jax.experimental.jet` of transformed programs, and transformations without a rule for their primitives."""

import jax
import jax.numpy as jnp
import pytest
from forced import FORCED, forced
from fusing import moments_of, pool
from jax import lax
from jax.experimental import sparse
from jax.experimental.jet import jet
from transform_helpers import normal, relative_error

import dfpjax
from dfpjax.policy import OpConfig, PerRole, Policy, Rule
from dfpjax.transform import mixed_precision
from dfpjax.transform._fuse import Least
from dfpjax.transform._mixed_precision import survey_call
from dfpjax.transform._rewrite import Rewriter
from dfpjax.transform._trace import Arguments

W, X = normal(0, 6, 6) / 2, normal(1, 4, 6)
KERNEL, IMAGES = normal(2, 3, 3, 2, 4) / 4, normal(3, 2, 5, 5, 2)


def dot(x, w):
    return x @ w


def conv(x, w, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (2, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def network(x, w):
    # Not jax.nn.relu: jet raises at any custom_jvp in the supported releases of JAX.
    return jnp.tanh(jnp.maximum(x @ w, 0) @ w) @ w


def gradient(x, w):
    return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)


PROGRAMS = {
    "dot": (dot, X, W),
    "conv": (conv, IMAGES, KERNEL),
    "grouped conv": (lambda x, w: conv(x, w[:, :, :1], 2), IMAGES, KERNEL),
    "network": (network, X, W),
    "jit": (jax.jit(network), X, W),
    "vmap": (jax.vmap(dot, (0, None)), jnp.stack([X, 2 * X]), W),
    "gradient": (gradient, X, W),
}


def series_of(*args, order, only=None):
    """The series' terms for each argument. If `only` is given, the terms of all other arguments are zero."""
    return tuple(
        [normal(10 * i + k, *x.shape) * (only in (None, i)) for k in range(order)] for i, x in enumerate(args)
    )


def assert_series(transformed, fun, args, order, only=None, jit=False):
    series = series_of(*args, order=order, only=only)

    def both(*args):
        return [jet(f, args, series) for f in (transformed, fun)]

    # The terms of small networks share their operations, which JAX compiles once if there is no jit.
    (actual, terms), (expected, expected_terms) = (jax.jit(both) if jit else both)(*args)
    assert relative_error(actual, expected) < 1e-3
    for term, reference in zip(jax.tree.leaves(terms), jax.tree.leaves(expected_terms), strict=True):
        assert relative_error(term, reference) < 2e-3


@pytest.mark.parametrize("name", PROGRAMS)
def test_series_of_three_terms(name):
    fun, *args = PROGRAMS[name]
    assert_series(mixed_precision(fun, FORCED), fun, tuple(args), order=3, jit=args[0] is not X)


@pytest.mark.parametrize("only", [0, 1])
@pytest.mark.parametrize("order", [1, 2])
def test_series_of_one_operand(order, only):
    assert_series(mixed_precision(network, FORCED), network, (X, W), order, only)


def test_series_along_a_closed_over_weight():
    assert_series(mixed_precision(lambda x: x @ W, FORCED), lambda x: x @ W, (X,), 2)


def test_the_gradient_of_the_transformed():
    def loss(f):
        return lambda x, w: jax.grad(lambda w: jnp.sum(f(x, w) ** 2))(w)

    assert_series(loss(mixed_precision(dot, FORCED)), loss(dot), (X, W), order=2)


@pytest.mark.parametrize(
    "config",
    [
        OpConfig(force=True, granularity="tensor"),
        OpConfig(force=True, granularity="channel"),
        OpConfig(force=True, granularity=PerRole(lhs="channel", rhs="channel", cotangent="tensor")),
        OpConfig(force=True, rounding="stochastic"),
    ],
)
def test_every_way_of_quantization(config):
    policy = Policy(default=config)
    assert_series(mixed_precision(network, policy), network, (X, W), order=2)
    assert_series(mixed_precision(gradient, policy), gradient, (X, W), order=2)


def test_passes_over_memory():
    w = normal(4, 1, 1, 4, 4) / 2

    def block(rectify):
        def fun(x, residual):
            mean, variance = moments_of(x)
            hidden = rectify((x - mean) * variance + mean + residual)
            return conv(hidden, w), mean, variance

        return fun

    args = normal(6, 2, 5, 5, 4), normal(7, 2, 5, 5, 4)
    traced, body = survey_call(block(jax.nn.relu), Arguments.of(args, {}))
    jaxpr = Rewriter(body.bind(FORCED), "auto", Least(summed=1, pooled=1)).rewrite(body)
    assert {"dfp_moments", "dfp_rectified_sum"} <= {eqn.primitive.name for eqn in jaxpr.eqns}
    fused = jax.extend.core.jaxpr_as_fun(traced.jaxpr.replace(jaxpr=jaxpr))
    assert_series(
        lambda *args: tuple(fused(*args)), block(lambda x: jnp.maximum(x, 0)), args, order=2, jit=True
    )


def test_pooling():
    images = jnp.arange(2 * 64 * 64 * 4.0).reshape(2, 64, 64, 4) % 97

    def fun(x):
        return conv(pool(x), normal(8, 1, 1, 4, 4))

    terms = [normal(9, *images.shape), normal(10, *images.shape)]
    out, (first, _) = jet(mixed_precision(fun, FORCED), (images,), (terms,))
    expected, tangent = jax.jvp(fun, (images,), (terms[0],))
    assert relative_error(out, expected) < 1e-3 and relative_error(first, tangent) < 1e-3


# --- transformations without a rule -----------------------------------------------------------------


def layers(x, w):
    with jax.named_scope("first"):
        x = x @ w
    with jax.named_scope("second"):
        return x @ w


def test_sparse_operands_are_refused_with_the_way_out():
    x = sparse.BCOO.fromdense(X)
    with pytest.raises(NotImplementedError, match=r"dot product.*\[4,6\].*Rule\(name, None\).*explain"):
        sparse.sparsify(mixed_precision(layers, FORCED))(x, W)
    kept = sparse.sparsify(mixed_precision(layers, forced(Rule("first", None))))(x, W)
    assert 0 < relative_error(kept, layers(X, W)) < 1e-3
    assert dfpjax.explain(layers, X, W).ops[0].name == "first"


def test_sparse_operands_elsewhere_are_none_of_its_business():
    fun = mixed_precision(lambda x, w: (x @ w, x * 2), FORCED)
    product, doubled = sparse.sparsify(lambda s, x, w: (fun(x, w)[0], s * 2.0))(
        sparse.BCOO.fromdense(X), X, W
    )
    assert 0 < relative_error(product, X @ W) < 1e-3
    assert relative_error(doubled.todense(), 2 * X) == 0
