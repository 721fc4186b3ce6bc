"""Rectified sums with a residual, which end the blocks of residual networks: what is fused and what stays,
values and gradients, and residuals of the backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import TENSOR_WIDE
from fusing import (
    BIAS,
    EXPONENT,
    LARGE,
    LARGE_X,
    NORMALIZATION,
    OF_CHANNELS,
    PARAMS,
    PASSES,
    RECTIFIED,
    STATISTICS,
    SUM,
    SUM_TOLERANCE,
    WEIGHTS,
    W,
    X,
    batch_norm,
    both,
    conv,
    fused,
    kinds,
    random,
    shape,
    stem,
    unfused,
)
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import equations, primitives, relative_error

from dfpjax import explain

# --- what is fused ----------------------------------------------------------------------------------


def block(end):
    """A program that ends with `end(normalized, residual)` and a convolution."""
    return lambda x, scale, shift, residual, w: conv(end(batch_norm(x, scale, shift), residual), w)


def relu_like(value, derivative):
    fun = jax.custom_jvp(jax.jit(value))
    fun.defjvps(lambda g, _, x: derivative(g, x))
    return fun


def zero(x):
    return jnp.maximum(x, 0)


def step(g, x):
    return lax.select(x > 0, g, jnp.zeros_like(g))


def without_derivative(g, x):
    raise NotImplementedError("this program is for inference")


UNKNOWN = {
    "derivative of a half at zero": zero,
    "straight through": relu_like(zero, lambda g, _: g),
    "derivative of one at zero": relu_like(zero, lambda g, x: lax.select(x >= 0, g, jnp.zeros_like(g))),
    "another bound": relu_like(lambda x: jnp.maximum(x, -1.5), step),
    "no derivative": relu_like(zero, without_derivative),
}


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda n, r: jax.nn.relu(n + r), [STATISTICS, SUM, EXPONENT]),
        (lambda n, r: jax.nn.relu(r + n), [STATISTICS, SUM, EXPONENT]),
        (lambda n, r: jax.jit(jax.nn.relu)(n + r), [STATISTICS, NORMALIZATION]),  # in a jaxpr of its own
        # The use of the result does not matter.
        (lambda n, r: jnp.sin(jax.nn.relu(n + r)), [STATISTICS, SUM]),
        (lambda n, r: jax.nn.relu(jax.nn.relu(n + r)), [STATISTICS, SUM, EXPONENT]),
        # Other functions of the sum
        (lambda n, r: n + r, [STATISTICS, NORMALIZATION]),
        (lambda n, r: jax.nn.relu(n - r), [STATISTICS, NORMALIZATION]),
        (lambda n, r: jax.nn.relu(n * r), [STATISTICS, NORMALIZATION]),
        (lambda n, r: jax.nn.relu6(n + r), [STATISTICS, NORMALIZATION]),
        (lambda n, r: jax.nn.leaky_relu(n + r), [STATISTICS, NORMALIZATION]),
        # The normalized tensor, or the sum, is used elsewhere.
        (lambda n, r: jax.nn.relu(n + n), [STATISTICS, NORMALIZATION]),
        (lambda n, r: jax.nn.relu(n + r) * n, [STATISTICS, NORMALIZATION]),
        (lambda n, r: (lambda s: jax.nn.relu(s) * s)(n + r), [STATISTICS, NORMALIZATION]),
        (lambda n, r: jax.nn.relu(n) * n, [STATISTICS, NORMALIZATION]),
        # One number per channel is a bias, not a residual; a scalar is neither.
        (lambda n, r: jax.nn.relu(n + r[:1, :1, :1]), [STATISTICS, NORMALIZATION, BIAS, EXPONENT]),
        (lambda n, r: jax.nn.relu(lax.add(n, 1.0)), [STATISTICS, NORMALIZATION]),
        (lambda n, r: jax.nn.relu(jax.nn.relu(n) + r), [STATISTICS, RECTIFIED]),
    ],
)
def test_what_matches_is_fused_and_nothing_else(end, expected):
    assert kinds(block(end), LARGE_X, OF_CHANNELS, OF_CHANNELS, LARGE_X, W) == expected


@pytest.mark.parametrize("name", UNKNOWN)
def test_functions_with_other_derivatives_stay(name):
    rectify = UNKNOWN[name]
    args = LARGE_X, OF_CHANNELS, OF_CHANNELS, LARGE_X, W
    assert kinds(block(lambda n, r: rectify(n)), *args) == [STATISTICS, NORMALIZATION, EXPONENT]
    assert kinds(block(lambda n, r: rectify(n + r)), *args) == [STATISTICS, NORMALIZATION]


def test_a_rule_of_the_users_own_stays_in_force():
    """The user's rule passes the gradient straight through to the normalized tensor."""

    def fun(shift, residual):
        hidden = UNKNOWN["straight through"](batch_norm(x, ONES, shift) + residual)
        return conv(hidden, WEIGHTS).sum()

    x, arguments = random(*LARGE), (-100 * ONES, np.zeros(LARGE, np.float32))
    actual, expected = (jax.jit(jax.grad(t(fun), (0, 1)))(*arguments) for t in (fused, unfused))
    assert relative_error(actual, expected) < SUM_TOLERANCE and all(g.any() for g in actual)


def test_a_sum_of_two_normalized_tensors_takes_one_of_them():
    def fun(x, y, scale, shift, w):
        return conv(jax.nn.relu(batch_norm(x, scale, shift) + batch_norm(y, scale, shift)), w)

    args = LARGE_X, LARGE_X, OF_CHANNELS, OF_CHANNELS, W
    assert sorted(kinds(fun, *args)) == sorted([STATISTICS, STATISTICS, NORMALIZATION, SUM, EXPONENT])
    args = random(*LARGE), random(*LARGE) ** 3, ONES, 0.1 * ONES, WEIGHTS
    actual, expected = both(fun, *args)
    assert relative_error(actual, expected) < SUM_TOLERANCE


@pytest.mark.parametrize("sizes", [(1, 64, 64, 64), (4, 1, 64, 64), (4, 64, 64, 1)])
def test_residuals_are_added_to_every_example_row_or_channel(sizes):
    """Results are right whether JAX broadcasts the residual before the addition or in it."""
    fun = block(lambda n, r: jax.nn.relu(lax.add(n, jnp.broadcast_to(r, LARGE))))
    mixed = block(lambda n, r: jax.nn.relu(n + r))
    args = random(*LARGE), ONES, 0.1 * ONES, random(*sizes), WEIGHTS
    actual, expected = both(lambda *args: (fun(*args), mixed(*args)), *args)
    for each in actual:
        assert relative_error(each, expected[0]) < SUM_TOLERANCE


def test_a_bias_is_not_a_normalization():
    def fun(x, shift, residual, w):
        return conv(jax.nn.relu(x + shift), w), conv(jax.nn.relu(x + shift + residual), w)

    assert kinds(fun, LARGE_X, OF_CHANNELS, LARGE_X, W) == [BIAS, BIAS]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_types_stay(dtype):
    x, v, w = (shape(*s, dtype=dtype) for s in (LARGE, (1, 1, 1, 64), (1, 1, 64, 4)))
    assert kinds(block(lambda n, r: jax.nn.relu(n + r)), x, v, v, x, w) == []


def test_small_tensors_stay():
    x, v, w = shape(4, 64, 64, 63), shape(1, 1, 1, 63), shape(1, 1, 63, 4)
    assert kinds(block(lambda n, r: jax.nn.relu(n + r)), x, v, v, x, w) == []


def test_a_single_row_is_a_residual_and_no_bias():
    def fun(x, mean, scale, shift, residual, w):
        return jax.nn.relu((x - mean) * scale + shift + residual) @ w

    arguments = [random(1, 1 << 20) for _ in range(5)] + [random(1 << 20, 1)]
    assert kinds(fun, *arguments) == [SUM, EXPONENT]
    np.testing.assert_array_equal(*both(fun, *arguments))


@pytest.mark.parametrize("at", [0, 1, 4])
def test_constants(at):
    """Residuals and operands may be tensors that the program closes over."""
    args = [random(*LARGE), ONES, 0.1 * ONES, random(*LARGE) ** 3, WEIGHTS]
    taken = args.pop(at)

    def fun(*args):
        return block(lambda n, r: jax.nn.relu(n + r))(*args[:at], taken, *args[at:])

    assert kinds(fun, *args)[-2:] == [SUM, EXPONENT]
    # Without jit, so XLA does not compute the statistics of a constant while it compiles.
    actual, expected = (t(fun)(*args) for t in (fused, unfused))
    assert relative_error(actual, expected) < SUM_TOLERANCE


ONES = np.ones((1, 1, 1, 64), np.float32)


# --- values and gradients ---------------------------------------------------------------------------


def network(params, x):
    x = stem(params, x)
    with jax.named_scope("second"):
        y = conv(x, params["second"])
    with jax.named_scope("sum"):
        x = jax.nn.relu(batch_norm(y, params["scale"], params["shift"]) + x)
    with jax.named_scope("third"):
        return conv(x, params["third"])


PARAMS = {name: PARAMS[name] for name in ("first", "scale", "shift", "second", "third")}


def loss(transformed):
    return lambda params, x: jnp.mean(jnp.square(transformed(params, x)))


@pytest.fixture(scope="module")
def unfused_step():
    return jax.device_get(jax.jit(jax.value_and_grad(loss(unfused(network)), (0, 1)))(PARAMS, X))


@functools.cache
def fused_step(name="nothing"):
    return jax.jit(jax.value_and_grad(loss(fused(AROUND[name])), (0, 1)))


def assert_step(actual, expected):
    assert relative_error(actual[0], expected[0]) < SUM_TOLERANCE
    # Sums that differ in their last bits change a few quantized cotangents by one unit. Of all gradients,
    # only this one does not sum over many cotangents, so it shows these changes.
    assert relative_error(actual[1][1], expected[1][1]) < 10 * SUM_TOLERANCE, "images"
    for layer, gradient in expected[1][0].items():
        assert relative_error(actual[1][0][layer], gradient) < SUM_TOLERANCE, layer


def test_what_a_residual_network_has():
    report = explain(network, PARAMS, X, policy=TENSOR_WIDE)
    assert [(record.kind, record.name.rsplit("/")[-1]) for record in report.fused] == [
        (STATISTICS, "norm"), (RECTIFIED, "norm"), (EXPONENT, "second"),
        (STATISTICS, "sum"), (SUM, "sum"), (EXPONENT, "third"),
    ]  # fmt: skip
    found = primitives(jax.make_jaxpr(fused(network))(PARAMS, X))
    assert (found["dfp_rectified_sum"], found["dfp_moments"]) == (1, 2)
    gradient = primitives(jax.make_jaxpr(jax.grad(loss(fused(network))))(PARAMS, X))
    assert (gradient["dfp_rectified_sum"], gradient["dfp_rectified_sums"], gradient["dfp_paired_sums"]) == (
        1, 1, 1,
    )  # fmt: skip


def test_without_fusing_a_program_stays_as_it_was():
    for kept in (unfused(network), fused(network, backend="reference")):
        assert not set(PASSES) & set(primitives(jax.make_jaxpr(kept)(PARAMS, X)))


AROUND = {
    "nothing": network,
    "jit": jax.jit(network),
    "scan": lambda params, x: lax.scan(lambda c, y: (c, network(c, y)), params, x[None])[1],
    "remat": jax.checkpoint(network),
    "vmap": lambda params, x: jax.vmap(network, (None, 0))(params, x[None]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("jit", "scan"))) for name in AROUND]
)
def test_results_and_gradients_are_those_of_the_unfused_program(name, unfused_step):
    step = fused_step(name)
    found = primitives(jax.make_jaxpr(step)(PARAMS, X))
    assert (found["dfp_rectified_sum"] >= 1) == (found["dfp_rectified_sums"] >= 1) == (name != "vmap")
    assert_step(step(PARAMS, X), unfused_step)


def test_a_whole_step_that_is_transformed(unfused_step):
    """In a traced gradient, relu has already been replaced by the operations of its derivative: it stays."""
    step = fused(jax.value_and_grad(loss(network), (0, 1)))
    assert not {"dfp_rectified_sum", "dfp_rectified_sums"} & set(primitives(jax.make_jaxpr(step)(PARAMS, X)))
    assert_step(jax.jit(step)(PARAMS, X), unfused_step)


@pytest.mark.slow
def test_vmap_of_the_fused_program():
    x = np.stack([X, 3 * np.asarray(X)])
    actual = jax.jit(jax.vmap(fused_step(), (None, 0)))(PARAMS, x)
    expected = jax.tree.map(lambda *xs: np.stack(xs), *(fused_step()(PARAMS, each) for each in x))
    assert_step(actual, expected)


def test_several_devices(unfused_step):
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    step = fused_step()
    for name in ("dfpjax_rectified_sum_v1", "dfpjax_moments"):
        assert name in step.lower(PARAMS, X).as_text()
        assert name not in step.lower(PARAMS, x).as_text()
    assert_step(step(PARAMS, x), unfused_step)


@pytest.mark.parametrize("residual", [True, False])
def test_gradients_at_zero_are_zero(residual):
    """As with `jax.nn.relu`. The tensors hold small integers, many of whose sums are zero."""

    def fun(x, mean, scale, shift, r):
        normalized = (x - mean) * scale + shift
        return conv(jax.nn.relu(normalized + r if residual else normalized), WEIGHTS)

    rng = np.random.default_rng(0)
    x, r = (rng.integers(-1, 2, LARGE).astype(np.float32) for _ in range(2))
    mean, scale, shift = (rng.integers(1, 3, ONES.shape).astype(np.float32) for _ in range(3))
    args = x, mean, scale, shift, r
    found = kinds(fun, *args)
    assert found == ([SUM, EXPONENT] if residual else [RECTIFIED])
    gradients, expected = (
        jax.device_get(
            jax.jit(jax.grad(lambda *args, t=t: jnp.sum(jnp.square(t(fun)(*args))), range(5)))(*args)
        )
        for t in (fused, unfused)
    )
    total = (x - mean) * scale + shift + (r if residual else 0)
    assert (total == 0).mean() > 0.1 and (total > 0).mean() > 0.1
    assert not gradients[0][total <= 0].any() and gradients[0][total > 0].all()
    if residual:
        np.testing.assert_array_equal(gradients[4], gradients[0] / scale)
    for actual, plain in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(actual, plain, rtol=1e-4, atol=1e-5 * max(np.abs(plain).max(), 1))


# --- residuals of the backward pass -----------------------------------------------------------------


def test_where_a_rectified_sum_is_positive_is_kept_and_not_the_sum():
    def fun(x, mean, scale, shift, residual, w):
        return conv(jax.nn.relu((x - mean) * scale + shift + residual), w)

    args = LARGE_X, *[OF_CHANNELS] * 3, LARGE_X, W
    assert kinds(fun, *args) == [SUM, EXPONENT]
    jaxpr = jax.make_jaxpr(lambda *args: jax.vjp(fused(fun), *args)[1])(*args).jaxpr
    (sum_of,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dfp_rectified_sum")
    y, positive, *_ = sum_of.outvars
    x, *_, residual, _ = jaxpr.invars
    assert positive in jaxpr.outvars and x in jaxpr.outvars
    assert y not in jaxpr.outvars and residual not in jaxpr.outvars
    assert (positive.aval.shape, positive.aval.dtype) == (LARGE, jnp.bool_)
    # The other two are the convolution's operand and the zeros that JAX keeps for relu.
    kept = sorted(v.aval.str_short() for v in jaxpr.outvars if v.aval.size >= 1 << 20)
    assert kept == sorted(f"{dtype}[4,64,64,64]" for dtype in ("bool", "dfp16", "float32", "float32"))
    without = jax.make_jaxpr(lambda *args: jax.vjp(unfused(fun), *args)[1])(*args)
    assert kept == sorted(aval.str_short() for aval in without.out_avals if aval.size >= 1 << 20)


def test_nothing_is_kept_where_there_is_no_backward_pass():
    jaxpr = jax.make_jaxpr(fused(network))(PARAMS, X)
    (params,) = (e.params for e in equations(jaxpr) if e.primitive.name == "dfp_rectified_sum")
    assert not params["masked"]
