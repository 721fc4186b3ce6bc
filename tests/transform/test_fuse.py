"""Which computations around operations in dynamic fixed point are fused into one pass, and which stay."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED, TENSOR_WIDE
from fusing import (
    BIAS,
    COTANGENT,
    EXPONENT,
    LARGE,
    LARGE_X,
    NORMALIZATION,
    OF_CHANNELS,
    OPERAND,
    PARAMS,
    PASSES,
    POOLED_OPERAND,
    RECTIFIED,
    ROWS,
    STATISTICS,
    SUM_TOLERANCE,
    UNFUSED,
    WEIGHTS,
    W,
    X,
    batch_norm,
    both,
    conv,
    fused,
    kinds,
    loss,
    moments_of,
    network,
    pool,
    random,
    shape,
    unfused,
)
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import equations, normal, primitives, relative_error

import dfpjax
from dfpjax import explain
from dfpjax.policy import OpConfig, Policy
from dfpjax.transform._mixed_precision import survey_call
from dfpjax.transform._rewrite import Rewriter
from dfpjax.transform._trace import Arguments

# --- what is fused ----------------------------------------------------------------------------------


def test_what_a_network_has():
    report = explain(network, PARAMS, X, policy=TENSOR_WIDE)
    found = [(record.kind, record.name.rsplit("/")[-1], record.shape) for record in report.fused]
    assert found == [
        ("channel statistics", "norm", LARGE),
        ("rectified normalization", "norm", LARGE),
        ("exponent from statistics", "second", LARGE),
        ("bias", "second", LARGE),
        ("maximum pooling", "pool", LARGE),
    ]
    passes = "in one pass: 1 x channel statistics, 1 x rectified normalization, 1 x exponent from statistics"
    assert passes in str(report)
    assert explain(network, PARAMS, X, policy=UNFUSED).fused == ()


def test_one_pass_stands_for_both_sums():
    jaxpr = jax.make_jaxpr(fused(network))(PARAMS, X)
    found = primitives(jaxpr)
    assert (found["dfp_moments"], found["dfp_max_pool"], found["reduce_window_max"]) == (1, 1, 0)
    assert not [
        e for e in equations(jaxpr) if e.primitive.name == "reduce_sum" and e.invars[0].aval.size >= 2**20
    ]
    gradient = jax.make_jaxpr(jax.grad(fused(loss)))(PARAMS, X)
    found = primitives(gradient)
    # The gradient of the bias is a sum and comes from `dfp_moments`.
    assert (found["dfp_moments"], found["dfp_rectified_sums"], found["dfp_max_pool_gradient"]) == (2, 1, 1)
    assert found["dfp_paired_sums"] == found["select_and_scatter_add"] == 0


def test_without_fusing_a_program_stays_as_it_was():
    original = primitives(jax.make_jaxpr(network)(PARAMS, X))
    for kept in (unfused(network), fused(network, backend="reference")):
        found = primitives(jax.make_jaxpr(kept)(PARAMS, X))
        assert not set(PASSES) & set(found)
        for name in ("reduce_sum", "square", "reduce_window_max", "add", "sub"):
            assert found[name] == original[name], name


fused_step = jax.jit(jax.value_and_grad(fused(loss)))


def test_results_and_gradients_are_those_of_the_unfused_program():
    inside = fused_step(PARAMS, X)
    outside = jax.jit(fused(jax.value_and_grad(loss)))(PARAMS, X)
    expected = jax.jit(jax.value_and_grad(unfused(loss)))(PARAMS, X)
    for name in PARAMS:
        assert relative_error(inside[1][name], expected[1][name]) < SUM_TOLERANCE, name
        assert relative_error(outside[1][name], expected[1][name]) < SUM_TOLERANCE, name
    assert relative_error(inside[0], expected[0]) < SUM_TOLERANCE
    assert relative_error(outside[0], expected[0]) < SUM_TOLERANCE


def test_the_default_fuses_all_but_exponents():
    """Blocks have exponents of their own, which no statistic gives."""
    found = Counter(kinds(network, PARAMS, X, policy=FORCED))
    only_blocks, only_tensors = Counter([OPERAND, POOLED_OPERAND, COTANGENT]), Counter([EXPONENT])
    assert found - only_blocks == Counter(kinds(network, PARAMS, X)) - only_tensors
    assert found & only_blocks == only_blocks
    actual, expected = (
        jax.jit(jax.value_and_grad(dfpjax.mixed_precision(loss, policy)))(PARAMS, X)
        for policy in (FORCED, Policy(default=FORCED.default, fuse=False))
    )
    assert relative_error(actual[0], expected[0]) < SUM_TOLERANCE
    # Sums that differ in their last bits change a few mantissas by one unit, so some of the windows whose two
    # largest values are close pass their gradient to the other one.
    assert relative_error(actual[1], expected[1]) < 3 * SUM_TOLERANCE


# --- what stays -------------------------------------------------------------------------------------


def norm_then_conv(x, scale, shift, w):
    return conv(jax.nn.relu(batch_norm(x, scale, shift)), w)


def variant(*, statistics=moments_of, rectify=jax.nn.relu, normalize=lambda x, m, s, b: (x - m) * s + b):
    def fun(x, scale, shift, w):
        mean, variance = statistics(x)
        return conv(rectify(normalize(x, mean, lax.rsqrt(variance + 1) * scale, shift)), w)

    return fun


def reused(x, mean, scale, shift):
    scaled = (x - mean) * scale
    return scaled + shift + jnp.sin(scaled)


def means(*funs, axes=ROWS):
    return lambda x: tuple(fun(x).mean(axes, keepdims=True) for fun in funs)


@pytest.mark.parametrize(
    ("fun", "expected"),
    [
        (norm_then_conv, [STATISTICS, RECTIFIED, EXPONENT]),
        (variant(), [STATISTICS, RECTIFIED, EXPONENT]),
        (variant(rectify=lambda x: jnp.maximum(x, 0)), [STATISTICS, NORMALIZATION, EXPONENT]),
        (variant(rectify=lambda x: x), [STATISTICS, NORMALIZATION, EXPONENT]),
        (variant(normalize=lambda x, m, s, b: s * (x - m) + b), [STATISTICS, RECTIFIED, EXPONENT]),
        (variant(normalize=lambda x, m, s, b: b + (x - m) * s), [STATISTICS, RECTIFIED, EXPONENT]),
        (variant(statistics=means(lambda x: x, lambda x: x * x)), [STATISTICS, RECTIFIED, EXPONENT]),
        (variant(statistics=means(lambda x: x**2, lambda x: x)), [STATISTICS, RECTIFIED, EXPONENT]),
        # Functions that are not monotonic, or not known to be monotonic
        (variant(rectify=jnp.tanh), [STATISTICS, NORMALIZATION]),
        (variant(rectify=jax.nn.leaky_relu), [STATISTICS, NORMALIZATION]),
        (variant(rectify=jnp.abs), [STATISTICS, NORMALIZATION]),
        (variant(rectify=lambda x: jnp.minimum(x, 0)), [STATISTICS, NORMALIZATION]),
        (variant(rectify=lambda x: jnp.maximum(x, jnp.sin(x))), [STATISTICS, NORMALIZATION]),
        # The mean alone, other powers, a variance in a second pass, other axes
        (variant(statistics=lambda x: (means(lambda x: x)(x)[0], 1.0)), [RECTIFIED]),
        (variant(statistics=means(lambda x: x, lambda x: x**3)), [RECTIFIED]),
        (
            variant(statistics=lambda x: (means(lambda x: x)(x)[0], x.var(ROWS, keepdims=True))),
            [RECTIFIED],
        ),
        (variant(statistics=means(lambda x: x, jnp.square, axes=(1, 2))), [BIAS]),
        (variant(statistics=means(lambda x: x, jnp.square, axes=3)), [BIAS]),
        # An intermediate result that the pass would not compute is used elsewhere
        (variant(normalize=reused), [STATISTICS, BIAS]),
    ],
)
def test_what_matches_is_fused_and_nothing_else(fun, expected):
    assert kinds(fun, LARGE_X, OF_CHANNELS, OF_CHANNELS, W) == expected


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [((4, 64, 64, 63), jnp.float32), (LARGE, jnp.bfloat16), (LARGE, jnp.float16)],
    ids=["small", "bfloat16", "float16"],
)
def test_small_tensors_and_other_types_stay(sizes, dtype):
    x, v, w = (shape(*s, dtype=dtype) for s in (sizes, (1, 1, 1, sizes[-1]), (1, 1, sizes[-1], 4)))
    assert kinds(norm_then_conv, x, v, v, w) == []


def test_integers_stay():
    def fun(x, w):
        return x.sum(ROWS), jnp.square(x).sum(ROWS), conv(x.astype(jnp.float32), w)

    assert kinds(fun, shape(*LARGE, dtype=jnp.int32), W) == []


def test_what_is_used_elsewhere_is_still_computed():
    def fun(x, w):
        squares = jnp.square(x)
        return squares, squares.sum(ROWS), x.sum(ROWS), conv(x, w)

    x = random(*LARGE)
    assert kinds(fun, x, WEIGHTS) == [STATISTICS, EXPONENT]
    actual, expected = both(fun, x, WEIGHTS)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "config",
    [
        OpConfig(force=True),  # an exponent for each block
        OpConfig(force=True, granularity="channel"),
        OpConfig(force=True, granularity="tensor", dgrad=False),
        OpConfig(force=True, granularity="tensor", wgrad=False),
    ],
)
def test_operations_that_need_the_operand_itself_have_no_witness(config):
    found = kinds(norm_then_conv, LARGE_X, OF_CHANNELS, OF_CHANNELS, W, policy=Policy(default=config))
    assert found == [STATISTICS, RECTIFIED, *[OPERAND] * (config.granularity == "block")]


@pytest.mark.parametrize(
    ("window", "fits"),
    [
        ({}, True),
        ({"init": 0.0}, None),
        ({"dims": (2, 3, 3, 1)}, False),
        ({"dims": (1, 3, 3, 2)}, False),
        ({"strides": (1, 2, 2, 3)}, False),
        ({"padding": ((0, 0), (3, 0), (1, 1), (0, 0))}, False),
        ({"padding": ((0, 1), (1, 1), (1, 1), (0, 0))}, False),
        ({"base_dilation": (1, 2, 1, 1)}, False),
        ({"window_dilation": (1, 1, 2, 1)}, False),
        ({"computation": lax.min, "init": jnp.inf}, False),
    ],
)
def test_pools_that_have_a_pass(window, fits):
    window = {
        "init": -jnp.inf, "computation": lax.max, "dims": (1, 3, 3, 1), "strides": (1, 2, 2, 1),
        "padding": ((0, 0), (1, 1), (1, 1), (0, 0)), **window,
    }  # fmt: skip
    names = {"init": "init_value", "dims": "window_dimensions", "strides": "window_strides"}
    options = {names.get(name, name): value for name, value in window.items()}

    def fun(x, w):
        return lax.reduce_window(x, **options), conv(x, w)

    x, w = normal(0, 4, 16, 16, 32), normal(1, 1, 1, 32, 4)
    found = kinds(fun, x, w)
    if fits is not None:
        assert found == ["maximum pooling"] * fits
    np.testing.assert_array_equal(fused(fun)(x, w)[0], fun(x, w)[0])


@pytest.mark.parametrize("policy", [Policy(default=None), Policy()])
def test_programs_without_operations_stay_the_same_object(policy):
    args = LARGE_X, OF_CHANNELS, OF_CHANNELS
    _, body = survey_call(lambda *args: pool(jnp.maximum(batch_norm(*args), 0)), Arguments.of(args, {}))
    assert Rewriter(body.bind(policy), "auto").rewrite(body) is body.jaxpr
    _, body = survey_call(network, Arguments.of((PARAMS, X), {}))
    assert Rewriter(body.bind(Policy(default=None)), "auto").rewrite(body) is body.jaxpr
    assert kinds(lambda *args: pool(jax.nn.relu(batch_norm(*args))), *args, policy=policy) == []


# --- inside other constructs ------------------------------------------------------------------------


def small_network(params, x):
    x = jax.nn.relu(batch_norm(conv(x, params["first"]), params["scale"], params["shift"]))
    return conv(pool(x), params["third"])


def around(name):
    """A function of parameters and images that wraps the network in the named construct."""

    @jax.custom_vjp
    def ruled(params, x):
        return small_network(params, x)

    ruled.defvjp(lambda *args: jax.vjp(small_network, *args), lambda pull, g: pull(2 * g))
    return {
        "jit": jax.jit(small_network),
        "scan": lambda params, x: lax.scan(lambda c, y: (c, small_network(c, y)), params, x[None])[1],
        "remat": jax.checkpoint(small_network),
        "vmap": lambda params, x: jax.vmap(small_network, (None, 0))(params, x[None]),
        "custom_vjp": ruled,
    }[name]


def step_of(transformed):
    return jax.jit(jax.value_and_grad(lambda params, x: jnp.mean(jnp.square(transformed(params, x)))))


@pytest.fixture(scope="module")
def unfused_step():
    return jax.device_get(step_of(unfused(small_network))(PARAMS, X))


@pytest.mark.parametrize("name", ["jit", "scan", "remat", "vmap", "custom_vjp"])
def test_inside_of(name, unfused_step):
    step = step_of(fused(around(name)))
    assert primitives(jax.make_jaxpr(step)(PARAMS, X))["dfp_moments"] >= (name != "vmap")
    value, gradients = step(PARAMS, X)
    expected_value, expected = unfused_step
    assert relative_error(value, expected_value) < SUM_TOLERANCE
    factor = 2 if name == "custom_vjp" else 1  # its rule doubles gradients
    for layer in PARAMS:
        if layer in ("second", "bias"):  # layers that this network does not have
            assert not gradients[layer].any()
        else:
            assert relative_error(gradients[layer], factor * expected[layer]) < SUM_TOLERANCE, layer


def test_vmap_of_the_fused_program():
    x = np.stack([X, 3 * np.asarray(X)])
    one = jax.jit(fused(small_network))
    actual = jax.jit(jax.vmap(one, (None, 0)))(PARAMS, x)
    assert relative_error(actual, np.stack([one(PARAMS, each) for each in x])) < SUM_TOLERANCE


@pytest.mark.optimized
def test_statistics_change_no_bit():
    out, _ = jax.jit(dfpjax.with_statistics(small_network, policy=TENSOR_WIDE))(PARAMS, X)
    np.testing.assert_array_equal(out, jax.jit(fused(small_network))(PARAMS, X))


@pytest.mark.slow
def test_several_devices():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    assert "dfpjax_moments" in fused_step.lower(PARAMS, X).as_text()
    assert "dfpjax_moments" in fused_step.lower(PARAMS, x).compile().as_text()
    assert relative_error(fused_step(PARAMS, x), fused_step(PARAMS, X)) < SUM_TOLERANCE


def test_types_on_explicit_axes():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P("data")))

        fun = fused(network)  # in float32 JAX cannot differentiate it there
        value, expected = (jax.make_jaxpr(f)(PARAMS, x) for f in (fun, network))
        gradient = jax.make_jaxpr(jax.grad(lambda *args: jnp.mean(jnp.square(fun(*args)))))(PARAMS, x)
    assert {"dfp_moments", "dfp_max_pool", "dfp_max_pool_gradient"} <= set(primitives(gradient))
    of_params = [jax.typeof(p) for p in jax.tree.leaves(PARAMS)]
    for actual, wanted in ((value.out_avals, expected.out_avals), (gradient.out_avals, of_params)):
        assert [aval.str_short(True) for aval in actual] == [aval.str_short(True) for aval in wanted]
