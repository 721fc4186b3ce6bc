"""Flax models, linen and nnx: static arguments, collections, provenance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from forced import FORCED, forced
from transform_helpers import floats, normal, primitives, quantized, relative_error, variables_of

from dfpjax.policy import Rule
from dfpjax.transform import mixed_precision

X = normal(0, 2, 8, 8, 3)


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(self.features, (3, 3), use_bias=False)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train)(y))


class Net(nn.Module):
    """A bit of everything: blocks, remat, dropout, a second method."""

    @nn.compact
    def __call__(self, x, train=False):
        x = Block(4)(x, train)
        x = nn.remat(Block, static_argnums=2)(6)(x, train)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(5)(x.mean((1, 2)))

    def logits(self, x, scale):
        return self(x) * scale


@pytest.fixture(scope="module")
def variables():
    return variables_of(Net(), X)


def test_linen_inference(variables):
    apply = mixed_precision(Net().apply, FORCED)

    @jax.jit
    def run(variables, x):
        logits = apply(variables, x, 2.0, method=Net.logits), apply(variables, x, scale=2.0, method="logits")
        return Net().apply(variables, x), apply(variables, x), logits

    expected, actual, logits = run(variables, X)
    assert 0 < relative_error(actual, expected) < 1e-3
    assert relative_error(logits[0], 2 * np.asarray(expected)) < 1e-3
    np.testing.assert_array_equal(*logits)


def test_linen_training(variables):
    kwargs = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(2)}}

    def loss(apply):
        def of_parameters(params):
            y, updates = apply({**variables, "params": params}, X, **kwargs)
            return (y**2).sum(), updates

        return of_parameters

    params = variables["params"]
    reference = jax.grad(loss(Net().apply), has_aux=True)
    inside = jax.grad(loss(mixed_precision(Net().apply, FORCED)), has_aux=True)
    outside = mixed_precision(reference, FORCED)
    for gradient in (inside, outside):
        assert floats(jax.make_jaxpr(gradient)(params)) == 0
    expected, *results = jax.jit(lambda params: [f(params) for f in (reference, inside, outside)])(params)
    for actual in results:
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        assert 0 < relative_error(actual, expected) < 3e-3


def test_linen_rules_by_name_and_by_path(variables):
    apply = Net().apply
    assert quantized(jax.make_jaxpr(mixed_precision(apply, FORCED))(variables, X)) == 3
    for pattern in (
        r"Dense_0$",
        r"^params/Dense_0/kernel$",
        r"Net/CheckpointBlock_0/Conv_0",
        r"Block_0/Conv_\d$",
    ):
        kept = 2 if pattern.startswith("Block") else 1
        jaxpr = jax.make_jaxpr(mixed_precision(apply, forced(Rule(pattern, None))))(variables, X)
        assert (floats(jaxpr), quantized(jaxpr)) == (kept, 3 - kept), pattern


def test_linen_scan():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.Dense(4)(x)), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            x, _ = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(
                x, None
            )
            return nn.Dense(2)(x)

    x = normal(0, 2, 4)
    variables = variables_of(Deep(), x)
    transformed = mixed_precision(Deep().apply, FORCED)
    assert relative_error(transformed(variables, x), Deep().apply(variables, x)) < 1e-3
    only_dense = mixed_precision(Deep().apply, forced(Rule(r"params/ScanLayer_0/Dense_0/kernel", None)))
    found = primitives(jax.make_jaxpr(only_dense)(variables, x))
    assert (found["dot_general"], found["dfp_contract"]) == (1, 1)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dense = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def test_nnx():
    graph, params, rest = nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param, ...)

    def forward(params, rest, x):
        model = nnx.merge(graph, params, rest, copy=True)
        return model(x), nnx.state(model, nnx.BatchStat)

    def loss(fun):
        return lambda params, rest: (fun(params, rest, X)[0] ** 2).sum()

    transformed = mixed_precision(forward, FORCED)
    steps = jax.jit(lambda *args: [(f(*args, X), jax.grad(loss(f))(*args)) for f in (transformed, forward)])
    ((actual, stats), gradient), ((expected, expected_stats), expected_gradient) = steps(params, rest)
    assert relative_error(actual, expected) < 1e-3
    assert relative_error(stats, expected_stats) < 1e-3
    assert relative_error(gradient, expected_gradient) < 3e-3


def test_nnx_rules_by_provenance():
    graph, params, rest = nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param, ...)

    def forward(params, rest, x):
        return nnx.merge(graph, params, rest, copy=True)(x)

    for pattern in (r"^dense/kernel$", r"conv/kernel"):
        policy = forced(Rule(pattern, None))
        jaxpr = jax.make_jaxpr(mixed_precision(forward, policy))(params, rest, X)
        assert (floats(jaxpr), quantized(jaxpr)) == (1, 1)
        whole = mixed_precision(jax.grad(lambda params, rest: forward(params, rest, X).sum()), policy)
        assert floats(jax.make_jaxpr(whole)(params, rest)) >= 1


def test_nnx_a_module_keeps_its_changes():
    """Called eagerly, under `nnx.jit` and under `nnx.value_and_grad`, as without the transformation."""

    def loss_fn(model, x):
        return (model(x) ** 2).sum()

    expected_model = NnxNet(nnx.Rngs(0))
    expected = nnx.jit(nnx.value_and_grad(loss_fn))(expected_model, X)
    transformed = mixed_precision(loss_fn, FORCED)
    for wrap in (nnx.value_and_grad, lambda f: nnx.jit(nnx.value_and_grad(f))):
        model = NnxNet(nnx.Rngs(0))
        found = wrap(transformed)(model, X)
        assert relative_error(found, expected) < 3e-3
        statistics, others = nnx.state(model, nnx.BatchStat), nnx.state(NnxNet(nnx.Rngs(0)), nnx.BatchStat)
        assert relative_error(statistics, nnx.state(expected_model, nnx.BatchStat)) < 1e-4
        assert relative_error(others, nnx.state(expected_model, nnx.BatchStat)) > 1e-3
    for wrap in (lambda f: f, nnx.jit):
        model = NnxNet(nnx.Rngs(0))
        wrap(transformed)(model, X)
        statistics = nnx.state(model, nnx.BatchStat)
        assert relative_error(statistics, nnx.state(expected_model, nnx.BatchStat)) < 1e-4


class NnxDropped(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.rnn = nnx.RNN(nnx.SimpleCell(16, 4, rngs=rngs))

    def __call__(self, x):
        return self.rnn(self.dropout(self.dense(x))).sum()


def test_nnx_dropout_draws_new_numbers_at_every_call():
    x = normal(2, 3, 8)
    model, expected_model = NnxDropped(nnx.Rngs(0)), NnxDropped(nnx.Rngs(0))
    step = nnx.value_and_grad(mixed_precision(lambda model, x: model(x), FORCED))
    expected_step = nnx.jit(nnx.value_and_grad(lambda model, x: model(x)))
    losses = []
    for _ in range(3):
        (loss, gradient), expected = step(model, x), expected_step(expected_model, x)
        assert relative_error((loss, gradient), expected) < 3e-3
        losses.append(float(loss))
    assert len(set(losses)) == 3
    assert model.dropout.rngs.count.get_value() == 3


def test_nnx_changes_without_a_place_are_not_lost_silently():
    class Noting(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(9, 4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            self.noted = nnx.Intermediate(x + 1)
            return self.dense(x)

    with pytest.raises(ValueError, match=r"changes .* \(noted/value\).*nnx\.split"):
        mixed_precision(lambda model, x: model(x), FORCED)(Noting(), jnp.ones((2, 9)))

    model = NnxNet(nnx.Rngs(0))
    before = nnx.state(model, nnx.BatchStat)
    with pytest.raises(ValueError, match=r"share: norm/mean, norm/mean"):
        mixed_precision(lambda first, second, x: first(x) + second(x), FORCED)(model, model, X)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, before, nnx.state(model, nnx.BatchStat)))


def test_nnx_modules_as_arguments():
    """A module's state may be returned, too."""
    model = NnxNet(nnx.Rngs(0))
    transformed = mixed_precision(lambda model, x: (model(x), nnx.state(model)), FORCED)
    out, state = nnx.jit(transformed)(model, X)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, nnx.state(model)))
    expected = nnx.jit(lambda model, x: model(x))(NnxNet(nnx.Rngs(0)), X)
    assert 0 < relative_error(out, expected) < 1e-3
    model.eval()
    gradient = nnx.grad(mixed_precision(lambda model, x: (model(x) ** 2).sum(), FORCED))
    expected = nnx.jit(nnx.grad(lambda model, x: (model(x) ** 2).sum()))(model, X)
    assert relative_error(gradient(model, X), expected) < 3e-3


def test_nnx_state_may_be_changed_by_a_merged_module():
    graph, state = nnx.split(NnxNet(nnx.Rngs(0)))

    def forward(state, x):
        model = nnx.merge(graph, state)  # shares its variables with the state
        return model(x), nnx.state(model)

    (out, new), (expected, expected_new) = (
        mixed_precision(forward, FORCED)(state, X),
        jax.jit(forward)(state, X),
    )
    assert 0 < relative_error(out, expected) < 1e-3
    assert relative_error(new, expected_new) < 1e-3
