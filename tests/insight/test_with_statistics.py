"""`with_statistics`: the result of `mixed_precision`, and statistics of its operations' operands."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from forced import FORCED, forced
from measuring import (
    PARAMS,
    X,
    assert_cotangent,
    assert_forward,
    assert_same,
    assert_statistics_of,
    dense,
    expected,
    loss,
    measured,
    two_layers,
)
from transform_helpers import normal, variables_of

import dfpjax
from dfpjax.insight import LayerStatistics
from dfpjax.policy import OpConfig, Policy, Rule


@pytest.mark.parametrize("jit", [False, True])
def test_the_forward_pass(jit):
    statistics = measured(two_layers, PARAMS, X, jit=jit)
    assert set(statistics) == {"first", "second"}
    assert_forward(statistics)
    for layer in statistics.values():
        assert isinstance(layer, LayerStatistics)
        assert (layer.output_gradient, layer.error, layer.dgrad_error, layer.wgrad_error) == (None,) * 4


def cotangents():
    """The cotangents of the two layers' outputs, without quantization."""
    x, w, v = (np.asarray(a, np.float64) for a in (X, PARAMS["first"], PARAMS["second"]))
    hidden = np.tanh(x @ w)
    of_out = 2 * hidden @ v
    return of_out @ v.T * (1 - hidden**2), of_out


@pytest.mark.parametrize(
    ("inner", "remat", "jit"),
    [
        (False, False, False),
        (False, False, True),
        (True, True, True),
        pytest.param(False, True, True, marks=pytest.mark.slow),
        pytest.param(True, False, True, marks=pytest.mark.slow),
    ],
)
def test_value_and_grad_inside(inner, remat, jit):
    fun = dfpjax.mixed_precision(loss, FORCED) if inner else loss
    fun = jax.checkpoint(fun) if remat else fun
    policy = Policy(default=None) if inner else FORCED
    statistics = measured(jax.value_and_grad(fun), PARAMS, X, policy=policy, jit=jit)
    assert set(statistics) == {"first", "second"}
    assert_forward(statistics)
    for layer, cotangent in zip(("first", "second"), cotangents(), strict=True):
        assert_cotangent(statistics[layer].output_gradient, cotangent)
        assert 80 < statistics[layer].output_gradient.sqnr_db < 105


def test_value_and_grad_outside():
    fun = jax.value_and_grad(dfpjax.with_statistics(loss, FORCED), has_aux=True)
    (value, statistics), gradient = fun(PARAMS, X)
    assert_same((value, gradient), jax.value_and_grad(dfpjax.mixed_precision(loss, FORCED))(PARAMS, X))
    assert_forward(statistics)
    assert statistics["first"].output_gradient is None


def test_no_gradient_flows_through_statistics():
    def of_statistics(x):
        _, statistics = dfpjax.with_statistics(two_layers, FORCED, shadow=True)(PARAMS, x)
        floats = [leaf for leaf in jax.tree.leaves(statistics) if leaf.dtype == jnp.float32]
        return sum(map(jnp.sum, floats))

    assert of_statistics(X) > 100
    np.testing.assert_array_equal(jax.grad(of_statistics)(X), 0)


def test_the_policy_decides_bits_and_what_is_measured():
    policy = forced(Rule("first", OpConfig(bits=6, force=True)), Rule("second", None))
    statistics = measured(two_layers, PARAMS, X, policy=policy)
    assert set(statistics) == {"first"}
    assert_statistics_of(statistics["first"].weight, PARAMS["first"], bits=6)


def test_gradients_alone():
    """The forward pass is in float32; its operands are quantized only for the gradients."""
    policy = forced(Rule("first", None), Rule("second", OpConfig(fprop=False, force=True)))
    statistics = measured(
        jax.value_and_grad(dfpjax.mixed_precision(loss, policy)), PARAMS, X, policy=Policy(default=None)
    )
    assert set(statistics) == {"second"}
    assert_statistics_of(statistics["second"].weight, PARAMS["second"])
    assert statistics["second"].output_gradient is not None


def test_the_gradient_of_a_layer_whose_result_is_not_needed():
    statistics = measured(jax.grad(lambda w, x: dense("only", w, x).sum()), PARAMS["first"], X)
    assert statistics["only"].output_gradient.exponent == -14
    assert_statistics_of(statistics["only"].input, X)


def test_keys():
    def fun(params, x):
        with jax.named_scope("twice"):
            x = (x @ params["a"]) @ params["a"]
        x = x @ params["kernel"]
        return jnp.sin(x) @ jnp.cos(params["a"])

    params = {"a": normal(0, 6, 6), "kernel": normal(1, 6, 6)}
    names = set(measured(fun, params, X))
    assert {"twice#1", "twice#2", "kernel"} < names
    (line,) = names - {"twice#1", "twice#2", "kernel"}
    assert "test_with_statistics.py:" in line


def test_layers_that_share_a_name_or_a_weight_have_their_own_gradients():
    def fun(w, x):
        for scale in (1.0, 1e3):
            with jax.named_scope("shared"):
                x = jnp.tanh(x @ w) * scale
        return x.sum()

    w = normal(0, 6, 6) / 4
    statistics = measured(jax.grad(fun), w, X)
    layers = [statistics["shared#1"], statistics["shared#2"]]
    assert_statistics_of(layers[0].input, X)
    w, x = np.asarray(w), np.asarray(X)
    hidden = np.tanh(x @ w)
    second = 1e3 * (1 - np.tanh(hidden @ w) ** 2)
    first = second @ w.T * (1 - hidden**2)
    for layer, cotangent in zip(layers, (first, second), strict=True):
        assert_cotangent(layer.output_gradient, cotangent)
    assert abs(layers[0].output_gradient.rms_over_max - layers[1].output_gradient.rms_over_max) > 0.1


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        return nn.Conv(6, (3, 3), strides=2)(x)


def test_a_linen_network():
    net, x = Net(), normal(0, 2, 8, 8, 3)
    variables = variables_of(net, x)

    def net_loss(variables, x):
        return jnp.mean(net.apply(variables, x) ** 2)

    statistics = measured(jax.value_and_grad(net_loss), variables, x, jit=True, shadow=True)
    assert set(statistics) == {"Net/Conv_0", "Net/Conv_1"}
    assert_statistics_of(statistics["Net/Conv_0"].input, x)
    for name, layer in statistics.items():
        assert_statistics_of(layer.weight, variables["params"][name.removeprefix("Net/")]["kernel"])
        assert layer.output_gradient.sqnr_db > 60
        assert 0 < layer.error < 1e-3
        assert 0 < layer.wgrad_error < 1e-3
        assert layer.dgrad_error is None if name == "Net/Conv_0" else 0 < layer.dgrad_error < 1e-3


def test_an_nnx_network():
    graph, state = nnx.split(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))

    def fun(state, x):
        return jnp.sum(nnx.merge(graph, state)(x) ** 2)

    statistics = measured(jax.value_and_grad(fun), state, X)
    assert set(statistics) == {"kernel"}
    assert_statistics_of(statistics["kernel"].weight, state["kernel"].get_value())
    assert statistics["kernel"].output_gradient is not None


@pytest.mark.parametrize("inner", [False, True])
def test_passes_that_are_switched_off(inner):
    """The rewrite gives such an operation its own custom derivative."""
    policy = Policy(default=OpConfig(wgrad=False, force=True))
    fun = dfpjax.mixed_precision(two_layers, policy) if inner else two_layers
    statistics = measured(fun, PARAMS, X, policy=Policy(default=None) if inner else policy, shadow=True)
    assert_forward(statistics)
    assert all(0 < layer.error < 1e-3 for layer in statistics.values())


def test_an_exponent_for_each_slice():
    policy = Policy(default=OpConfig(granularity="channel", force=True))
    w = PARAMS["first"] * 2.0 ** np.array([0, -20, 3, 10, 1], np.float32)
    fun = dfpjax.mixed_precision(lambda w, x: jnp.sum(dense("layer", w, x) ** 2), policy)
    statistics = measured(jax.value_and_grad(fun), w, X, policy=Policy(default=None), jit=True, shadow=True)
    layer = statistics["layer"]
    assert layer.weight.exponent == expected(w)["exponent"]
    assert layer.weight.sqnr_db > expected(w)["sqnr_db"] - 1
    assert layer.output_gradient.sqnr_db > 80
    assert 0 < layer.wgrad_error < 1e-3


def test_nothing_to_measure():
    assert measured(jnp.sin, X) == {}


@pytest.mark.parametrize("bits", [16, 8])
def test_shadow_errors(bits):
    policy = Policy(default=OpConfig(bits=bits, force=True))
    statistics = measured(jax.value_and_grad(loss), PARAMS, X, policy=policy, jit=bits == 8, shadow=True)
    w, v = PARAMS["first"], PARAMS["second"]
    fprop, dgrad, wgrad = "mk,kn->mn", "mn,kn->mk", "mn,mk->nk"

    @jax.jit
    def products(x):
        """The operations of a step, each with its operands and its result. Blocks follow the
        layout, so none is transposed, and sums are those that JAX derives."""
        operands = []

        def dfp(subscripts, a, b):
            product = dfpjax.mixed_precision(functools.partial(jnp.einsum, subscripts), policy)
            operands.append((a, b, product(a, b)))
            return operands[-1][-1]

        hidden = jnp.tanh(dfp(fprop, x, w))
        of_out = 2 * dfp(fprop, hidden, v)
        of_hidden = dfp(dgrad, of_out, v) * (1 - hidden**2)
        dfp(wgrad, of_out, hidden), dfp(wgrad, of_hidden, x)
        return operands

    def error(subscripts, operands):
        a, b, out = operands
        exact = np.einsum(subscripts, np.asarray(a, np.float64), np.asarray(b, np.float64))
        return np.linalg.norm(out - exact) / np.linalg.norm(exact)

    errors = list(map(error, (fprop, fprop, dgrad, wgrad, wgrad), products(X)))
    first, second = statistics["first"], statistics["second"]
    rtol = {16: 0.03, 8: 1e-3}[bits]  # float32's own error is about 1e-7
    actual = first.error, second.error, second.dgrad_error, second.wgrad_error, first.wgrad_error
    np.testing.assert_allclose(actual, errors, rtol=rtol)
    assert first.dgrad_error is None


def test_errors():
    with pytest.raises(TypeError, match="with_statistics: fun must be callable, got 3"):
        dfpjax.with_statistics(3)
    with pytest.raises(TypeError, match=r"with_statistics: policy must be a dfpjax\.Policy, got 'paper'"):
        dfpjax.with_statistics(jnp.sin, "paper")
    with pytest.raises(TypeError, match="with_statistics: shadow must be True or False, got 1"):
        dfpjax.with_statistics(jnp.sin, shadow=1)
    strict = Policy(rules=[Rule("third", None)], strict=True)
    with pytest.raises(ValueError, match="nothing in the program matches Rule"):
        dfpjax.with_statistics(two_layers, strict)(PARAMS, X)
