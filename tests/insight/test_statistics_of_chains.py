"""The statistics of `with_statistics` on the chains in which products are summed. Chains are longest where
tensors have one exponent."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from forced import FORCED, TENSOR_WIDE, forced
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import normal

import dfpjax
from dfpjax import FixedChain
from dfpjax.insight import PerPass
from dfpjax.insight._measures import sum_of_counts
from dfpjax.operations import dot_general, saturated_chains
from dfpjax.policy import OpConfig, Policy, Rule

MATMUL = (((1,), (0,)), ((), ()))
NOTHING = PerPass(None, None, None)


def dense(name, w, x):
    with jax.named_scope(name):
        return x @ w


def loss(params, x):
    """The loss of two layers."""
    hidden = jnp.tanh(dense("first", params["first"], x))
    return jnp.sum(dense("second", params["second"], hidden) ** 2)


def rows(count, width):
    """Normally distributed numbers whose magnitudes differ from row to row."""
    return np.asarray(normal(2, count, width)) * np.float32(2) ** -np.arange(count, dtype=np.float32)[:, None]


PARAMS, X = {"first": normal(0, 300, 40), "second": normal(1, 40, 8)}, rows(40, 300)
# Without jit, JAX compiles each operation once per shape; here all tensors have the same one.
SQUARE, SQUARE_X = {"first": normal(0, 64, 64), "second": normal(1, 64, 64)}, rows(64, 64)


def shares(lhs, rhs):
    """The shares of chain lengths in a matrix product, with tiles of 6 rows of lhs and 64 columns of rhs."""
    a, b = (oracle.quantize(x)[0] for x in (lhs, rhs))
    return oracle.chain_shares(a, b)


def one_share(length):
    return [float(length == other) for other in (256, 128, 64, 32, 16, 8, 4, 2)]


def saturating(length=256):
    return forced(granularity="tensor", accumulation=FixedChain(length, saturate=True))


@pytest.mark.parametrize(
    ("transform", "params", "x"),
    [(jax.jit, PARAMS, X), (lambda fun: fun, SQUARE, SQUARE_X)],
    ids=["jit", "without jit"],
)
def test_every_pass_has_the_lengths_of_its_chains(transform, params, x):
    fun = transform(dfpjax.with_statistics(jax.value_and_grad(loss), TENSOR_WIDE))
    _, statistics = fun(params, x)
    first = statistics["first"].chains
    np.testing.assert_allclose(first.fprop, shares(x, params["first"]), rtol=1e-6)
    assert np.count_nonzero(first.fprop) > 1
    assert first.dgrad is None  # the input's gradient is not needed
    for chains in (first.fprop, first.wgrad, *statistics["second"].chains):
        assert chains.shape == (8,)
        np.testing.assert_allclose(np.sum(chains), 1, rtol=1e-6)
    assert [layer.saturated for layer in statistics.values()] == [NOTHING] * 2


def test_chains_of_blocks_end_with_their_segments():
    _, statistics = jax.jit(dfpjax.with_statistics(jax.value_and_grad(loss), FORCED))(PARAMS, X)
    for chains in (statistics["first"].chains.fprop, *statistics["second"].chains):
        assert not chains[:3].any()  # 256, 128 and 64
        np.testing.assert_allclose(np.sum(chains), 1, rtol=1e-6)


def test_the_kernels_run_no_more_often():
    gradient = jax.value_and_grad(lambda w, x: jnp.sum(dense("layer", w, x) ** 2), (0, 1))

    def runs(fun):
        program = jax.jit(fun).lower(PARAMS["first"], X).compile().as_text()
        targets = re.findall(r'custom_call_target="(dfpjax_\w+)"', program)
        return [sum(target.startswith("dfpjax_quantize") == of for target in targets) for of in (True, False)]

    for policy in (TENSOR_WIDE, saturating()):
        assert runs(dfpjax.mixed_precision(gradient, policy)) == [3, 3]  # quantizations and contractions
        assert runs(dfpjax.with_statistics(gradient, policy)) == [3, 3]


def test_saturated_chains_are_counted_instead():
    params, x = jax.tree.map(np.abs, (PARAMS, X))
    policy = saturating()
    _, statistics = jax.jit(dfpjax.with_statistics(jax.value_and_grad(loss), policy))(params, x)
    accumulation = policy.default.accumulation
    expected = saturated_chains(
        dot_general, x, params["first"], dimension_numbers=MATMUL, accumulation=accumulation
    )
    assert statistics["first"].saturated.fprop == expected.fprop > 0
    assert statistics["first"].saturated.dgrad is None
    assert statistics["second"].saturated.wgrad.dtype == jnp.int32
    assert [layer.chains for layer in statistics.values()] == [NOTHING] * 2


def test_a_pass_in_float32_has_no_chains():
    policy = forced(Rule("first", None), Rule("second", OpConfig(fprop=False, force=True)))
    fun = jax.value_and_grad(dfpjax.mixed_precision(loss, policy))
    _, statistics = dfpjax.with_statistics(fun, Policy(default=None))(SQUARE, SQUARE_X)
    chains = statistics["second"].chains
    assert chains.fprop is None
    assert chains.dgrad.shape == chains.wgrad.shape == (8,)


def scanned(x, ws):
    def body(x, w):
        return jnp.tanh(dense("layer", w, x)), None

    return lax.scan(body, x, ws)[0]


@pytest.mark.parametrize(("policy", "field"), [(TENSOR_WIDE, "chains"), (saturating(), "saturated")])
def test_a_scan_stacks_them(policy, field):
    x = np.abs(normal(0, 64, 64))
    ws = np.abs(normal(1, 3, 64, 64)) * (normal(2, 3, 64, 64) > np.array([-9, 2, 9])[:, None, None])
    _, statistics = jax.jit(dfpjax.with_statistics(scanned, policy))(x, ws)
    actual = getattr(statistics["layer"], field).fprop
    run = dfpjax.mixed_precision(lambda x, w: jnp.tanh(x @ w), policy)
    for i, w in enumerate(ws):
        one_layer = dfpjax.with_statistics(lambda x, w: dense("layer", w, x), policy)(x, w)[1]
        np.testing.assert_array_equal(np.asarray(actual)[i], getattr(one_layer["layer"], field).fprop)
        x = run(x, w)
    assert np.any(np.asarray(actual)[0] != np.asarray(actual)[2])


@pytest.mark.parametrize("policy", [TENSOR_WIDE, saturating()])
def test_a_branch_that_is_not_taken(policy):
    def fun(taken, w, x):
        return lax.cond(taken, lambda x: dense("layer", w, x), lambda x: x[:, :8], x)

    _, statistics = dfpjax.with_statistics(fun, policy)(False, normal(0, 64, 8), normal(1, 9, 64))
    layer = statistics["layer"]
    assert layer.saturated.fprop == -1 if policy is not TENSOR_WIDE else np.isnan(layer.chains.fprop).all()


def test_what_vmap_adds_inside_is_one_operation():
    xs = np.stack([X, np.ones_like(X), 0 * X])
    fun = jax.vmap(dfpjax.mixed_precision(lambda x, w: dense("layer", w, x), TENSOR_WIDE), (0, None))
    _, statistics = jax.jit(dfpjax.with_statistics(fun, Policy(default=None)))(xs, PARAMS["first"])
    each = [shares(x, PARAMS["first"]) for x in xs]
    np.testing.assert_allclose(statistics["layer"].chains.fprop, np.mean(each, axis=0), rtol=1e-6)


def test_what_vmap_adds_inside_is_saturated_together():
    policy = saturating()
    xs = np.stack([np.full((20, 64), value, np.float32) for value in (1, 0, -1)])
    fun = jax.vmap(dfpjax.mixed_precision(lambda x, w: dense("layer", w, x), policy), (0, None))
    measured = jax.jit(dfpjax.with_statistics(fun, Policy(default=None)))
    _, statistics = measured(xs, np.ones((64, 8), np.float32))
    assert statistics["layer"].saturated.fprop == 2 * 20 * 8


def test_a_sum_of_counts_does_not_wrap():
    most = 2**31 - 1
    for counts, total in (
        ([3, 4, 0], 7),
        ([most - 1, 1], most),
        ([most, 5, most], most),
        ([2**30] * 9, most),
    ):
        assert sum_of_counts(jnp.array(counts, jnp.int32)) == total
    assert sum_of_counts(jnp.int32(3)) == 3


def test_vmap_outside_gives_each_example_its_own():
    xs = np.stack([X, np.ones_like(X), 0 * X])
    fun = dfpjax.with_statistics(lambda w, x: dense("layer", w, x), TENSOR_WIDE)
    _, statistics = jax.jit(jax.vmap(fun, (None, 0)))(PARAMS["first"], xs)
    for actual, x in zip(statistics["layer"].chains.fprop, xs, strict=True):
        np.testing.assert_allclose(actual, shares(x, PARAMS["first"]), rtol=1e-6)


@pytest.mark.parametrize("policy", [TENSOR_WIDE, saturating()])
def test_records_have_plain_keys(policy):
    history = dfpjax.History()
    _, statistics = dfpjax.with_statistics(scanned, policy)(
        np.ones((20, 64), np.float32), np.stack([np.ones((64, 64)), np.zeros((64, 64))]).astype(np.float32)
    )
    records = history.add(0, statistics)
    json.dumps(records)
    first, second = (r for r in records if r["operand"] == "input")
    assert (first["layer"], second["layer"]) == ("layer[0]", "layer[1]")
    if policy is TENSOR_WIDE:
        lengths = (256, 128, 64, 32, 16, 8, 4, 2)
        full_scale = shares(np.ones((20, 64)), np.ones((64, 64)))
        assert [first[f"fprop chain {n}"] for n in lengths] == full_scale.tolist() != one_share(256)
        assert [second[f"fprop chain {n}"] for n in lengths] == one_share(256)
        assert first["fprop saturated"] is None
    else:
        assert (first["fprop saturated"], second["fprop saturated"]) == (20 * 64, 0)
        assert first["fprop chain 256"] is None
    assert first["dgrad chain 2"] is first["wgrad saturated"] is None


def test_a_partitioned_program_has_the_lengths_of_the_whole_operation():
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    x = jax.device_put(X, NamedSharding(mesh, P("batch")))
    w = jax.device_put(np.asarray(PARAMS["first"]), NamedSharding(mesh, P()))

    def layer(w, x):
        return dense("first", w, x)

    output, statistics = jax.jit(dfpjax.with_statistics(layer, TENSOR_WIDE))(w, x)
    np.testing.assert_array_equal(output, jax.jit(dfpjax.mixed_precision(layer, TENSOR_WIDE))(w, x))
    np.testing.assert_allclose(statistics["first"].chains.fprop, shares(X, PARAMS["first"]), rtol=1e-6)
