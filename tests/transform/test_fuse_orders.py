"""Fusion does not depend on the order of a program's equations, and the fused program is well formed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import TENSOR_WIDE
from fusing import RECTIFIED, STATISTICS, SUM, UNFUSED, batch_norm, moments_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.core import check_jaxpr, jaxpr_as_fun
from transform_helpers import normal, relative_error

from dfpjax.transform._fuse import Least
from dfpjax.transform._mixed_precision import survey_call
from dfpjax.transform._rewrite import Rewriter, fusions_of
from dfpjax.transform._trace import Arguments

SIZES = (2, 3, 3, 4)
ANY_SIZE = Least(summed=1, pooled=1)
X, RESIDUAL = normal(0, *SIZES), normal(1, *SIZES)
OF_CHANNELS = [normal(seed, 1, 1, 1, 4) for seed in range(2, 5)]
W = normal(5, 1, 1, 4, 4) / 2


def conv(x, w=W):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normalized(x, mean=OF_CHANNELS[0]):
    """Normalize by statistics of another tensor."""
    return (x - mean) * OF_CHANNELS[1] + OF_CHANNELS[2]


def batch_normalized(x):
    return batch_norm(x, OF_CHANNELS[1], OF_CHANNELS[2])


def rewritten(fun, *args, policy=TENSOR_WIDE):
    """The rewritten program; tensors of any size are fused."""
    traced, body = survey_call(fun, Arguments.of(args, {}))
    jaxpr = Rewriter(body.bind(policy), "auto", ANY_SIZE).rewrite(body)
    check_jaxpr(jaxpr)
    return jaxpr_as_fun(traced.jaxpr.replace(jaxpr=jaxpr))


def kinds(fun, *args):
    _, body = survey_call(fun, Arguments.of(args, {}))
    fusions = fusions_of(body, body.bind(TENSOR_WIDE), ANY_SIZE)
    return sorted(found.kind for found in fusions.passes.values())


def assert_as_unfused(fun, *args):
    """Compare values and gradients with those of the unfused program."""
    # Without jit, JAX compiles each operation once per shape and reuses it in all programs.
    (actual, back), (expected, back_unfused) = (
        jax.vjp(rewritten(fun, *args, policy=policy), *args) for policy in (TENSOR_WIDE, UNFUSED)
    )
    assert relative_error(actual, expected) < 1e-3
    cotangents = [normal(9, *y.shape) for y in expected]
    assert relative_error(back(cotangents), back_unfused(cotangents)) < 1e-3


# --- an operation before the statistics that give its exponent --------------------------------------


def preactivation(x, residual):
    """The shortcut's convolution precedes the statistics of its operand."""
    shortcut = conv(x)
    return conv(jax.nn.relu(batch_normalized(x))) + shortcut


def normalized_before_statistics(x, residual):
    hidden = conv(jax.nn.relu(normalized(x)))
    return hidden, *moments_of(x)


def sums_far_apart(x, residual):
    total = jnp.sum(x, (0, 1, 2))
    hidden = conv(x - total)
    other = conv(x)
    return hidden, other, jnp.sum(x * x, (0, 1, 2)), total


def squares_first(x, residual):
    squares = jnp.square(x)
    out = conv(x)
    return jnp.sum(squares, (0, 1, 2)), out, jnp.sum(x, (0, 1, 2)), squares


def between_sum_and_statistics(x, residual):
    hidden = jax.nn.relu(batch_normalized(x) + residual)
    out = conv(hidden)
    return conv(jax.nn.relu(batch_normalized(hidden))) + out


def of_an_intermediate_result(x, residual):
    hidden = jnp.tanh(x)
    out = conv(hidden), conv(normalized(hidden))
    return *out, *moments_of(hidden)


def operations_alone(x, residual):
    """The statistics are results and have no other use."""
    out = conv(x)
    return *moments_of(x), out


ORDERS = (preactivation, normalized_before_statistics, sums_far_apart, squares_first,
          between_sum_and_statistics, of_an_intermediate_result, operations_alone)  # fmt: skip


@pytest.mark.parametrize("fun", ORDERS)
def test_an_operation_before_the_statistics_that_its_exponent_comes_from(fun):
    assert STATISTICS in kinds(fun, X, RESIDUAL)
    assert_as_unfused(fun, X, RESIDUAL)


def test_its_exponent_comes_from_them_all_the_same():
    jaxpr = jax.make_jaxpr(rewritten(preactivation, X, RESIDUAL))(X, RESIDUAL)
    quantized = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dfp_quantize"]
    assert [eqn.params["given"] for eqn in quantized if eqn.invars[0].aval.shape == SIZES] == [
        ("witness",)
    ] * 2
    assert [eqn.primitive.name for eqn in jaxpr.eqns].count("dfp_moments") == 1


# --- results and operands used twice ----------------------------------------------------------------


def used_twice(x, residual):
    hidden = batch_normalized(x)
    return conv(hidden + hidden), conv(jax.nn.relu(x + x)), hidden * hidden


def every_intermediate_result(x, residual):
    centred = x - OF_CHANNELS[0]
    scaled = centred * OF_CHANNELS[1]
    shifted = scaled + OF_CHANNELS[2]
    summed = shifted + residual
    out = jax.nn.relu(summed)
    return conv(out), centred, scaled, shifted, summed, out


def the_tensor_is_its_own_residual(x, residual):
    return conv(jax.nn.relu(batch_normalized(x) + x))


def one_statistic_for_two_tensors(x, residual):
    mean, variance = moments_of(x)
    return conv((residual - mean) * variance + mean), conv((x - mean) * variance + mean)


@pytest.mark.parametrize(
    "fun",
    (used_twice, every_intermediate_result, the_tensor_is_its_own_residual, one_statistic_for_two_tensors),
)
def test_what_is_used_twice_or_returned(fun):
    assert_as_unfused(fun, X, RESIDUAL)


# --- rectifications ---------------------------------------------------------------------------------


def rectification(value, rule=jax.nn.relu):
    """`value` with a rule that takes value and derivative from `rule`."""
    fun = jax.custom_jvp(value)
    fun.defjvp(lambda primals, tangents: jax.jvp(rule, primals, tangents))
    return fun


def with_ruled_value(x):
    """relu, with the derivative of `jax.nn.relu`; under differentiation its rule returns another value."""
    return jnp.maximum(x, 0)


with_ruled_value = jax.custom_jvp(with_ruled_value)


@with_ruled_value.defjvp
def _(primals, tangents):
    value, tangent = jax.jvp(jax.nn.relu, primals, tangents)
    return value + 1, tangent


RECTIFICATIONS = {
    "of one": (rectification(lambda x: jnp.maximum(x, 1)), False),
    "of minus one": (rectification(lambda x: jnp.maximum(x, -1)), False),
    "of NaN": (rectification(lambda x: jnp.maximum(x, jnp.nan)), False),
    "of minus zero": (rectification(lambda x: jnp.maximum(x, -0.0)), False),
    "from above": (rectification(lambda x: jnp.minimum(x, 0)), False),
    "of several equations": (rectification(lambda x: 2 * jnp.maximum(x, 0)), False),
    "of six": (jax.nn.relu6, False),
    "leaky": (jax.nn.leaky_relu, False),
    "leaky, by the rule of relu": (rectification(lambda x: jax.nn.leaky_relu(x)), False),
    "value of the rule": (with_ruled_value, False),
    "maximum": (lambda x: jnp.maximum(x, 0), False),
    "maximum of one": (lambda x: jnp.maximum(x, 1), False),
    "of another maker": (rectification(lambda x: jnp.maximum(x, 0)), True),
    "relu": (jax.nn.relu, True),
}


@pytest.mark.parametrize("name", RECTIFICATIONS)
def test_only_what_is_relu_in_value_and_derivative_is_fused(name):
    rectify, is_relu = RECTIFICATIONS[name]

    def fun(x, residual):
        return conv(rectify(batch_normalized(x))), conv(rectify(batch_normalized(x) + residual))

    assert kinds(fun, X, RESIDUAL).count(RECTIFIED) == kinds(fun, X, RESIDUAL).count(SUM) == is_relu
    if name == "of NaN":
        values = rewritten(fun, X, RESIDUAL)(X, RESIDUAL)
        assert all(np.isnan(y).all() for y in values)
    else:
        assert_as_unfused(fun, X, RESIDUAL)


# --- random programs --------------------------------------------------------------------------------

UNARY = (
    conv, conv, batch_normalized, batch_normalized, normalized, jax.nn.relu, jax.nn.relu,
    lambda x: jnp.maximum(x, 0.5), lambda x: x + OF_CHANNELS[0], lambda x: x * x / 4,
    lambda x: normalized(x, jnp.mean(x, (0, 1, 2), keepdims=True)),
)  # fmt: skip
STATISTIC = (
    lambda x: jnp.sum(x, (0, 1, 2)), lambda x: jnp.sum(x * x, (0, 1, 2)),
    lambda x: jnp.sum(jnp.square(x), (0, 1, 2)),
)  # fmt: skip

PLACE = st.integers(0, 7)
INSTRUCTIONS = st.one_of(
    st.tuples(st.just("unary"), st.sampled_from(range(len(UNARY))), PLACE, PLACE),
    st.tuples(st.just("add"), st.just(0), PLACE, PLACE),
    st.tuples(st.just("statistic"), st.sampled_from(range(len(STATISTIC))), PLACE, PLACE),
)


def program(instructions, returned):
    """A random program. Each instruction adds a tensor; operands are counted back from the newest tensor."""

    def fun(x, residual):
        tensors, sums = [x, residual], []
        for kind, which, first, second in instructions:
            a, b = (tensors[-1 - place % len(tensors)] for place in (first, second))
            match kind:
                case "unary":
                    tensors.append(UNARY[which](a))
                case "add":
                    tensors.append((a + b) / 2 if first % 2 else a + b)
                case "statistic":
                    sums.append(STATISTIC[which](a))
        return [conv(tensors[-1]), *sums, *(tensors[-1 - place % len(tensors)] for place in returned)]

    return fun


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(INSTRUCTIONS, min_size=2, max_size=9), st.lists(PLACE, max_size=2))
def test_random_programs(instructions, returned):
    assert_as_unfused(program(instructions, returned), X, RESIDUAL)
