"""`with_statistics`: the result of `mixed_precision`, and statistics of its operations' operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from forced import FORCED, forced
from jax import lax
from transform_helpers import normal, variables_of

import dfpjax
from dfpjax.insight import LayerStatistics, OperandStatistics
from dfpjax.policy import OpConfig, Policy, Rule


def dense(name, w, x):
    with jax.named_scope(name):
        return x @ w


def two_layers(params, x):
    x = jnp.tanh(dense("first", params["first"], x))
    return dense("second", params["second"], x)


def loss(params, x):
    return jnp.sum(two_layers(params, x) ** 2)


PARAMS = {"first": normal(0, 6, 5) * 3, "second": normal(1, 5, 4)}
X = normal(2, 7, 6)


def expected(x, bits=16) -> dict:
    """The statistics of an array, in float64, with mantissas from `dfpjax.quantize`."""
    q = dfpjax.quantize(jnp.asarray(x), bits=bits)
    x, m = np.asarray(x, np.float64), np.asarray(q.mantissa, np.float64)
    noise = x - m * 2.0 ** float(q.exponent)
    return {
        "exponent": q.exponent,
        "rms_over_max": np.sqrt(np.mean(x**2)) / np.abs(x).max(),
        "sqnr_db": 10 * np.log10(np.sum(x**2) / np.sum(noise**2)),
        "zeros": np.mean(m[x != 0] == 0),
        "clamped": np.mean(np.abs(m) == 2 ** (bits - 1) - 1),
    }


def assert_statistics_of(actual: OperandStatistics, *xs, bits=16):
    """Check the statistics of one array, or of several stacked arrays."""
    assert actual.bits == bits
    for name in expected(xs[0], bits):
        wanted = [expected(x, bits)[name] for x in xs]
        np.testing.assert_allclose(
            getattr(actual, name), wanted[0] if len(xs) == 1 else wanted, rtol=3e-3, err_msg=name
        )


def assert_same(actual, wanted):
    """Check that two pytrees are equal to the last bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def measured(fun, *args, policy=FORCED, eager=False, **kwargs):
    """The statistics under jit. Checks the output too, under jit and, if `eager`, without."""
    transformed = dfpjax.mixed_precision(fun, policy)
    with_statistics = dfpjax.with_statistics(fun, policy, **kwargs)
    if eager:
        assert_same(with_statistics(*args)[0], transformed(*args))
    output, statistics = jax.jit(with_statistics)(*args)
    assert_same(output, jax.jit(transformed)(*args))
    return statistics


def cotangents(params, x):
    """The cotangents of the two layers' outputs, in float32."""

    def from_outputs(added):
        hidden = x @ params["first"] + added[0]
        out = jnp.tanh(hidden) @ params["second"] + added[1]
        return jnp.sum(out**2)

    return jax.grad(from_outputs)((jnp.zeros((len(x), 5)), jnp.zeros((len(x), 4))))


def assert_forward(statistics):
    hidden = jnp.tanh(dfpjax.mixed_precision(jnp.matmul, FORCED)(X, PARAMS["first"]))
    assert_statistics_of(statistics["first"].input, X)
    assert_statistics_of(statistics["first"].weight, PARAMS["first"])
    assert_statistics_of(statistics["second"].input, hidden)
    assert_statistics_of(statistics["second"].weight, PARAMS["second"])


def assert_backward(statistics):
    for name, cotangent in zip(("first", "second"), cotangents(PARAMS, X), strict=True):
        actual = statistics[name].output_gradient
        np.testing.assert_allclose(actual.exponent, expected(cotangent)["exponent"])
        np.testing.assert_allclose(actual.rms_over_max, expected(cotangent)["rms_over_max"], rtol=1e-3)
        assert 80 < actual.sqnr_db < 105


def test_the_forward_pass():
    statistics = measured(two_layers, PARAMS, X, eager=True)
    assert set(statistics) == {"first", "second"}
    assert_forward(statistics)
    for layer in statistics.values():
        assert isinstance(layer, LayerStatistics)
        assert (layer.output_gradient, layer.error, layer.dgrad_error, layer.wgrad_error) == (None,) * 4


@pytest.mark.parametrize(
    ("inner", "remat"),
    [
        (False, False),
        (True, True),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
    ],
)
def test_value_and_grad_inside(inner, remat):
    fun = dfpjax.mixed_precision(loss, FORCED) if inner else loss
    fun = jax.checkpoint(fun) if remat else fun
    policy = Policy(default=None) if inner else FORCED
    statistics = measured(jax.value_and_grad(fun), PARAMS, X, policy=policy, eager=True)
    assert set(statistics) == {"first", "second"}
    assert_forward(statistics)
    assert_backward(statistics)


def test_value_and_grad_outside():
    fun = jax.value_and_grad(dfpjax.with_statistics(loss, FORCED), has_aux=True)
    (value, statistics), gradient = jax.jit(fun)(PARAMS, X)
    assert_same(
        (value, gradient), jax.jit(jax.value_and_grad(dfpjax.mixed_precision(loss, FORCED)))(PARAMS, X)
    )
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
        return jnp.sin(x) @ jnp.cos(x).T

    params = {"a": normal(0, 6, 6), "kernel": normal(1, 6, 5)}
    names = set(measured(fun, params, X))
    assert {"twice#1", "twice#2", "kernel"} < names
    (line,) = names - {"twice#1", "twice#2", "kernel"}
    assert "test_with_statistics.py:" in line


def test_layers_that_share_a_name_or_a_weight_have_their_own_gradients():
    def fun(w, x, added=(0.0, 0.0)):
        for scale, more in zip((1.0, 1e3), added, strict=True):
            with jax.named_scope("shared"):
                x = jnp.tanh(x @ w + more) * scale
        return x.sum()

    w = normal(0, 6, 6) / 4
    statistics = measured(jax.grad(fun), w, X)
    layers = [statistics["shared#1"], statistics["shared#2"]]
    assert_statistics_of(layers[0].input, X)
    wanted = jax.grad(fun, 2)(w, X, (jnp.zeros(X.shape), jnp.zeros(X.shape)))
    for layer, cotangent in zip(layers, wanted, strict=True):
        found = layer.output_gradient
        assert found.exponent == expected(cotangent)["exponent"]
        np.testing.assert_allclose(found.rms_over_max, expected(cotangent)["rms_over_max"], rtol=1e-3)
    assert abs(layers[0].output_gradient.rms_over_max - layers[1].output_gradient.rms_over_max) > 0.1


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_a_linen_network():
    net, x = Net(), normal(0, 2, 8, 8, 3)
    variables = variables_of(net, x)

    def net_loss(variables, x):
        return jnp.mean(net.apply(variables, x) ** 2)

    statistics = measured(jax.value_and_grad(net_loss), variables, x, shadow=True)
    assert set(statistics) == {"Net/Conv_0", "Net/Conv_1", "Net/Dense_0"}
    assert_statistics_of(statistics["Net/Conv_0"].input, x)
    for name, layer in statistics.items():
        assert_statistics_of(layer.weight, variables["params"][name.removeprefix("Net/")]["kernel"])
        assert layer.output_gradient.sqnr_db > 60
        assert 0 < layer.error < 1e-3
        assert 0 < layer.wgrad_error < 1e-3
        assert layer.dgrad_error is None if name == "Net/Conv_0" else 0 < layer.dgrad_error < 1e-3


def test_an_nnx_network():
    graph, state = nnx.split(nnx.Linear(6, 4, rngs=nnx.Rngs(0)))

    def fun(state, x):
        return jnp.sum(nnx.merge(graph, state)(x) ** 2)

    statistics = measured(jax.value_and_grad(fun), state, X)
    assert set(statistics) == {"kernel"}
    assert_statistics_of(statistics["kernel"].weight, state["kernel"].get_value())
    assert statistics["kernel"].output_gradient is not None


def scanned(params, x):
    def body(x, w):
        with jax.named_scope("layer"):
            x = jnp.tanh(x @ w @ params["fixed"])
        return x, x.sum()

    return lax.scan(body, x, params["w"])


SCANNED = {"w": normal(0, 3, 6, 5), "fixed": normal(1, 5, 6)}


@pytest.mark.jax_releases
def test_scan():
    statistics = measured(scanned, SCANNED, X, eager=True)
    assert set(statistics) == {"layer#1", "layer#2"}
    first, second = statistics["layer#1"], statistics["layer#2"]
    assert_statistics_of(first.weight, *SCANNED["w"])
    assert_statistics_of(second.weight, *[SCANNED["fixed"]] * 3)
    assert_statistics_of(jax.tree.map(lambda leaf: leaf[0], first.input), X)
    assert {leaf.shape for leaf in jax.tree.leaves((first.input, first.weight))} == {(3,)}
    assert first.chains.fprop.shape == second.chains.fprop.shape == (3, 8)


@pytest.mark.jax_releases
@pytest.mark.parametrize("inner", [False, True])
def test_scan_and_its_gradient(inner):
    def fun(params, x):
        return scanned(params, x)[0].sum()

    forward = jax.jit(dfpjax.with_statistics(fun, FORCED))(SCANNED, X)[1]
    policy = Policy(default=None) if inner else FORCED
    fun = dfpjax.mixed_precision(fun, FORCED) if inner else fun
    statistics = measured(jax.value_and_grad(fun), SCANNED, X, policy=policy)
    for name in ("layer#1", "layer#2"):
        assert statistics[name].output_gradient.exponent.shape == (3,)
        for role in ("input", "weight"):
            for a, b in zip(
                *(jax.tree.leaves(getattr(s[name], role)) for s in (statistics, forward)), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-3)


@pytest.mark.jax_releases
@pytest.mark.parametrize("index", [0, 1])
def test_cond(index):
    def fun(i, params, x):
        w, v = params["first"], params["second"]
        wide = [lambda x: dense("taken" if index == 0 else "other", w, x), lambda x: jnp.sin(x[:, :5])]
        narrow = lambda x: dense("taken" if index == 1 else "other", v.T, x[:, :4])  # noqa: E731
        return lax.switch(i, [wide[0], narrow], x)

    statistics = measured(fun, jnp.int32(index), PARAMS, X)
    assert set(statistics) == {"taken", "other"}
    assert_statistics_of(statistics["taken"].weight, [PARAMS["first"], PARAMS["second"].T][index])
    other = statistics["other"].weight
    assert np.isnan([other.rms_over_max, other.sqnr_db, other.zeros, other.clamped]).all()
    assert other.exponent < -149


@pytest.mark.jax_releases
@pytest.mark.jax_releases
@pytest.mark.parametrize("times", [0, 1, 3])
def test_while(times):
    def fun(w, x, times):
        return lax.fori_loop(0, times, lambda _, x: dense("loop", w, x), x)

    w = normal(0, 6, 6)
    statistics = measured(fun, w, X, jnp.int32(times))
    if times == 0:
        assert np.isnan(statistics["loop"].input.sqnr_db)
        return
    before_last = dfpjax.mixed_precision(fun, FORCED)(w, X, jnp.int32(times - 1))
    assert_statistics_of(statistics["loop"].input, before_last)


def test_jit_inside_keeps_its_donation_and_name():
    inner = jax.jit(two_layers, donate_argnums=1)

    def fun(params, x):
        return inner(params, x + 1) + inner(params, x + 2)

    statistics = measured(fun, PARAMS, X)
    assert set(statistics) == {"first#1", "first#2", "second#1", "second#2"}
    assert_statistics_of(statistics["first#2"].input, X + 2)
    jaxpr = jax.make_jaxpr(dfpjax.with_statistics(fun, FORCED))(PARAMS, X)
    (eqn, _) = [eqn for eqn in jaxpr.eqns if eqn.params.get("name") == "two_layers"]
    assert eqn.params["donated_invars"] == (False, False, True)


def custom_vjp():
    @jax.custom_vjp
    def fun(params, x):
        return two_layers(params, x)

    def fwd(params, x):
        return fun(params, x), (params, x)

    def bwd(residuals, cotangent):
        _, vjp = jax.vjp(two_layers, *residuals)
        return jax.tree.map(lambda leaf: 2 * leaf, vjp(cotangent))

    fun.defvjp(fwd, bwd)
    return fun


@pytest.mark.jax_releases
def test_custom_vjp_keeps_its_rule():
    def fun(params, x):
        return jnp.sum(custom_vjp()(params, x) ** 2)

    assert_forward(measured(fun, PARAMS, X))
    value_and_grad = jax.value_and_grad(dfpjax.with_statistics(fun, FORCED), has_aux=True)
    (_, statistics), gradient = value_and_grad(PARAMS, X)
    assert_same(gradient, jax.grad(dfpjax.mixed_precision(fun, FORCED))(PARAMS, X))
    np.testing.assert_allclose(
        gradient["first"], 2 * jax.grad(loss)(PARAMS, X)["first"], rtol=1e-2, atol=1e-2
    )
    assert_forward(statistics)


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
    params = PARAMS | {"second": PARAMS["second"] * 2.0 ** jnp.array([0, -20, 3, 10])}
    fun = dfpjax.mixed_precision(loss, policy)
    statistics = measured(jax.value_and_grad(fun), params, X, policy=Policy(default=None), shadow=True)
    weight = statistics["second"].weight
    assert weight.exponent == expected(params["second"])["exponent"]
    assert weight.sqnr_db > expected(params["second"])["sqnr_db"] - 1
    for layer in statistics.values():
        assert layer.output_gradient.sqnr_db > 80
        assert 0 < layer.wgrad_error < 1e-3


def test_vmap():
    xs = jnp.stack([X, 100 * X, X**3])
    output, statistics = jax.vmap(dfpjax.with_statistics(two_layers, FORCED), (None, 0))(PARAMS, xs)
    assert_same(output, jax.vmap(dfpjax.mixed_precision(two_layers, FORCED), (None, 0))(PARAMS, xs))
    assert_statistics_of(statistics["first"].input, *xs)


def test_vmap_inside_gives_statistics_of_all_examples():
    xs = jnp.stack([X, 100 * X, X**3])
    fun = jax.vmap(dfpjax.mixed_precision(two_layers, FORCED), (None, 0))
    statistics = measured(
        jax.grad(lambda params, xs: fun(params, xs).sum()), PARAMS, xs, policy=Policy(default=None)
    )
    exponents = [expected(x)["exponent"] for x in xs]
    assert statistics["first"].input.exponent == max(exponents)
    assert statistics["first"].output_gradient.sqnr_db > 60


def test_jvp_inside():
    fun = dfpjax.mixed_precision(two_layers, FORCED)
    statistics = measured(
        lambda x: jax.jvp(lambda x: fun(PARAMS, x), (x,), (x,)), X, policy=Policy(default=None)
    )
    assert set(statistics) == {"first", "second"}
    assert_forward(statistics)


def test_nothing_to_measure():
    assert measured(jnp.sin, X) == {}


@pytest.mark.parametrize("bits", [16, 8])
def test_shadow_errors(bits):
    policy = Policy(default=OpConfig(bits=bits, force=True))
    statistics = measured(jax.value_and_grad(loss), PARAMS, X, policy=policy, shadow=True)
    w, v = PARAMS["first"], PARAMS["second"]

    def dfp(a, b):
        return dfpjax.mixed_precision(jnp.matmul, policy)(a, b)

    def error(a, b):
        exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
        return np.linalg.norm(dfp(a, b) - exact) / np.linalg.norm(exact)

    hidden = jnp.tanh(dfp(X, w))
    of_out = 2 * dfp(hidden, v)
    of_hidden = dfp(of_out, v.T) * (1 - hidden**2)
    first, second = statistics["first"], statistics["second"]
    rtol = {16: 0.03, 8: 1e-3}[bits]  # float32's own error is about 1e-7
    np.testing.assert_allclose(first.error, error(X, w), rtol=rtol)
    np.testing.assert_allclose(second.error, error(hidden, v), rtol=rtol)
    np.testing.assert_allclose(second.dgrad_error, error(of_out, v.T), rtol=rtol)
    np.testing.assert_allclose(second.wgrad_error, error(hidden.T, of_out), rtol=rtol)
    np.testing.assert_allclose(first.wgrad_error, error(X.T, of_hidden), rtol=rtol)
    assert first.dgrad_error is None


def test_shard_map_is_not_measured():
    mesh = jax.make_mesh((1,), ("i",))
    spec = jax.sharding.PartitionSpec()
    sharded = jax.shard_map(two_layers, mesh=mesh, in_specs=spec, out_specs=spec)

    def fun(params, x):
        return dense("outside", params["second"], sharded(params, x) @ params["second"].T)

    names = measured(fun, PARAMS, X)
    assert "outside" in names
    assert not {"first", "second"} & set(names)


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
