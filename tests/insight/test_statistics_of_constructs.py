"""`with_statistics` of loops, branches, transformations and functions inside a program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED
from jax import lax
from measuring import (
    PARAMS,
    X,
    assert_forward,
    assert_same,
    assert_statistics_of,
    dense,
    expected,
    loss,
    measured,
    two_layers,
)
from transform_helpers import normal

import dfpjax
from dfpjax.policy import Policy


def scanned(params, x):
    def body(x, w):
        with jax.named_scope("layer"):
            x = jnp.tanh(x @ w @ params["fixed"])
        return x, x.sum()

    return lax.scan(body, x, params["w"])


SCANNED = {"w": normal(0, 3, 6, 5), "fixed": normal(1, 5, 6)}


@pytest.fixture(scope="module")
def forward():
    return measured(scanned, SCANNED, X)


@pytest.mark.jax_releases
def test_scan(forward):
    assert set(forward) == {"layer#1", "layer#2"}
    first, second = forward["layer#1"], forward["layer#2"]
    assert_statistics_of(first.weight, *SCANNED["w"])
    assert_statistics_of(second.weight, *[SCANNED["fixed"]] * 3)
    assert_statistics_of(jax.tree.map(lambda leaf: leaf[0], first.input), X)
    assert {leaf.shape for leaf in jax.tree.leaves((first.input, first.weight))} == {(3,)}
    assert first.chains.fprop.shape == second.chains.fprop.shape == (3, 8)


@pytest.mark.jax_releases
@pytest.mark.parametrize("inner", [pytest.param(False, marks=pytest.mark.slow), True])
def test_scan_and_its_gradient(inner, forward):
    def fun(params, x):
        return scanned(params, x)[0].sum()

    policy = Policy(default=None) if inner else FORCED
    fun = dfpjax.mixed_precision(fun, FORCED) if inner else fun
    statistics = measured(jax.value_and_grad(fun), SCANNED, X, policy=policy, jit=True)
    for name in ("layer#1", "layer#2"):
        assert statistics[name].output_gradient.exponent.shape == (3,)
        for role in ("input", "weight"):
            for a, b in zip(
                *(jax.tree.leaves(getattr(s[name], role)) for s in (statistics, forward)), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-3)


def runs_of(fun, *calls):
    """The statistics of several calls of one compiled program, whose output is checked."""
    transformed, with_statistics = (
        jax.jit(transform(fun, FORCED)) for transform in (dfpjax.mixed_precision, dfpjax.with_statistics)
    )
    for args in calls:
        output, statistics = with_statistics(*args)
        assert_same(output, transformed(*args))
        yield statistics


@pytest.mark.jax_releases
def test_cond():
    def fun(i, params, x):
        wide = lambda x: dense("first", params["first"], x)  # noqa: E731
        narrow = lambda x: dense("second", params["second"].T, x[:, :4])  # noqa: E731
        return lax.switch(i, [wide, narrow], x)

    weights = {"first": PARAMS["first"], "second": PARAMS["second"].T}
    for taken, other, statistics in zip(
        weights, reversed(weights), runs_of(fun, *((np.int32(i), PARAMS, X) for i in range(2))), strict=True
    ):
        assert set(statistics) == set(weights)
        assert_statistics_of(statistics[taken].weight, weights[taken])
        absent = statistics[other].weight
        assert np.isnan([absent.rms_over_max, absent.sqnr_db, absent.zeros, absent.clamped]).all()
        assert absent.exponent < -149


@pytest.mark.jax_releases
def test_while():
    def fun(w, x, times):
        return lax.fori_loop(0, times, lambda _, x: dense("loop", w, x), x)

    w = normal(0, 6, 6)
    none, once, thrice = runs_of(fun, *((w, X, np.int32(times)) for times in (0, 1, 3)))
    assert np.isnan(none["loop"].input.sqnr_db)
    assert_statistics_of(once["loop"].input, X)
    before_last = dfpjax.mixed_precision(fun, FORCED)(w, X, np.int32(2))
    assert_statistics_of(thrice["loop"].input, before_last)


def test_jit_inside_keeps_its_donation_and_name():
    def layer(w, x):
        return dense("first", w, x)

    inner = jax.jit(layer, donate_argnums=1)

    def fun(w, x):
        return inner(w, x + 1) + inner(w, x + 2)

    w = PARAMS["first"]
    statistics = measured(fun, w, X, jit=True)
    assert set(statistics) == {"first#1", "first#2"}
    assert_statistics_of(statistics["first#2"].input, np.asarray(X) + 2)
    jaxpr = jax.make_jaxpr(dfpjax.with_statistics(fun, FORCED))(w, X)
    (eqn, _) = [eqn for eqn in jaxpr.eqns if eqn.params.get("name") == "layer"]
    assert eqn.params["donated_invars"] == (False, True)


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


def test_vmap():
    xs = np.stack([X, 100 * np.asarray(X), np.asarray(X) ** 3])
    transformed, with_statistics = (
        jax.jit(jax.vmap(transform(two_layers, FORCED), (None, 0)))
        for transform in (dfpjax.mixed_precision, dfpjax.with_statistics)
    )
    output, statistics = with_statistics(PARAMS, xs)
    assert_same(output, transformed(PARAMS, xs))
    assert_statistics_of(statistics["first"].input, *xs)


def test_vmap_inside_gives_statistics_of_all_examples():
    xs = np.stack([X, 100 * np.asarray(X), np.asarray(X) ** 3])
    fun = jax.vmap(dfpjax.mixed_precision(functools.partial(dense, "first"), FORCED), (None, 0))
    gradient = jax.grad(lambda w, xs: jnp.sum(fun(w, xs) ** 2))
    statistics = measured(gradient, PARAMS["first"], xs, policy=Policy(default=None), jit=True)
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


def test_shard_map_is_not_measured():
    mesh = jax.make_mesh((1,), ("i",))
    spec = jax.sharding.PartitionSpec()
    sharded = jax.shard_map(two_layers, mesh=mesh, in_specs=spec, out_specs=spec)

    def fun(params, x):
        return dense("outside", params["second"].T, sharded(params, x))

    assert set(measured(fun, PARAMS, X, jit=True)) == {"outside"}
