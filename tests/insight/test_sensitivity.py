"""`sensitivity`: layers ranked by the error that they cause, and the policy that it proposes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED, forced
from transform_helpers import normal

import dfpjax
from dfpjax.insight import LayerSensitivity, SensitivityReport, explain
from dfpjax.policy import OpConfig, Policy, Rule


def loss(params, x, scale=1.0):
    for name in ("first", "second", "third"):
        with jax.named_scope(f"net/{name}"):
            x = jnp.tanh(x @ params[name])
    return scale * jnp.mean(x**2)


PARAMS = {"first": normal(0, 8, 8) / 3, "second": normal(1, 8, 8) / 3, "third": normal(2, 8, 8) / 3}
# One outlier takes up the range of the second layer's weights. The small weights still matter, because no
# activation is zero.
OUTLIER = PARAMS | {"second": PARAMS["second"].at[3, 3].set(300.0)}
X = normal(3, 16, 8)


def relative_error(a, b):
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def report():
    return dfpjax.sensitivity(loss, OUTLIER, X, policy=FORCED, bits=(8, 12))


def test_a_layer_with_an_outlier_comes_first(report):
    assert report.layers[0].layer == "net/second"
    assert {layer.layer for layer in report.layers} == {"net/first", "net/second", "net/third"}
    last = [layer.gradient_errors[-1] for layer in report.layers]
    assert last == sorted(last, reverse=True)
    assert last[0] > 3 * last[1]
    for layer in report.layers:
        assert layer.bits == (12, 8)
        assert layer.gradient_errors[0] < layer.gradient_errors[1]


def mixed_and_exact(policy):
    """Loss and gradient under a policy, and in float32."""
    fun = dfpjax.mixed_precision(loss, policy)
    return jax.jit(lambda *args: [jax.value_and_grad(f)(*args) for f in (fun, loss)])(OUTLIER, X)


def test_the_errors_are_those_of_a_policy_for_one_layer(report):
    policy = Policy(rules=[Rule("third", OpConfig(bits=8, force=True))], default=None)
    actual, exact = mixed_and_exact(policy)
    (third,) = [layer for layer in report.layers if layer.layer == "net/third"]
    np.testing.assert_allclose(third.gradient_errors[1], relative_error(actual[1], exact[1]), rtol=1e-4)
    np.testing.assert_allclose(third.loss_errors[1], relative_error(actual[0], exact[0]), rtol=1e-2)


def test_the_table_and_the_records(report):
    first, header, _, *rows = str(report).splitlines()
    assert first.startswith("relative error of the gradient")
    assert header.split() == ["layer", "12", "bits", "8", "bits", "loss,", "8", "bits"]
    assert [row.split()[0] for row in rows] == [layer.layer for layer in report.layers]
    assert f"{report.layers[0].gradient_errors[1]:.1e}" == rows[0].split()[2]
    records = report.to_dicts()
    assert len(records) == 6
    assert records[0] == {
        "layer": "net/second",
        "bits": 12,
        "gradient_error": report.layers[0].gradient_errors[0],
        "loss_error": report.layers[0].loss_errors[0],
    }


def test_the_plot(report, tmp_path):
    pytest.importorskip("matplotlib")
    figure = report.plot(tmp_path / "sensitivity.png")
    assert (tmp_path / "sensitivity.png").stat().st_size > 0
    image = figure.axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(image, [layer.gradient_errors for layer in report.layers])


def made(base=FORCED, **errors):
    """A report on layers with these errors at 16, 12 and 8 bits."""
    layers = [
        LayerSensitivity(
            layer=name,
            pattern=f"^{name}$",
            config=OpConfig(rounding="stochastic"),
            bits=(16, 12, 8),
            gradient_errors=values,
            loss_errors=values,
        )
        for name, values in errors.items()
    ]
    return SensitivityReport(layers=tuple(layers), base=base)


def chosen_bits(policy):
    return {rule.pattern: rule.config and rule.config.bits for rule in policy.rules}


@pytest.mark.parametrize(
    ("budget", "bits"),
    [
        (0, {"^a$": None, "^b$": None}),
        (1e-4, {"^a$": None, "^b$": 16}),
        (1e-3, {"^a$": None, "^b$": 12}),
        (0.0051, {"^a$": 16, "^b$": 12}),
        (0.02, {"^a$": 16, "^b$": 8}),
        (9.0, {"^a$": 8, "^b$": 8}),
    ],
)
def test_the_policy_stays_within_the_budget(budget, bits):
    assert chosen_bits(made(a=(0.005, 0.05, 0.5), b=(1e-5, 1e-3, 1e-2)).policy(budget)) == bits


def test_the_sum_of_squares_counts():
    report = made(a=(0.0, 0.03, 1.0), b=(0.0, 0.04, 1.0))
    assert chosen_bits(report.policy(0.0499)) == {"^a$": 12, "^b$": 16}
    assert chosen_bits(report.policy(0.0501)) == {"^a$": 12, "^b$": 12}


def test_the_policy_keeps_what_was_not_measured():
    base = Policy(rules=[Rule("other", None)], default=OpConfig(bits=10))
    policy = made(base, a=(0.0, 0.0, 0.0)).policy(1.0)
    assert policy.rules == (Rule("^a$", OpConfig(bits=8, rounding="stochastic", force=True)), *base.rules)
    assert policy.default == base.default
    with pytest.raises(ValueError, match="budget must be a number of at least 0, got nan"):
        made(a=(0.0, 0.0, 0.0)).policy(math.nan)


def test_the_proposed_policy_works_as_said(report):
    budget = 1.05 * report.layers[1].gradient_errors[1]
    policy = report.policy(budget)
    by_name = {op.name: op for op in explain(loss, OUTLIER, X, policy=policy).ops}
    assert by_name["net/second"].rule.config is None or by_name["net/second"].rule.config.bits == 12
    assert 8 in {op.rule.config.bits for op in by_name.values() if op.rule.config}
    (_, gradient), (_, exact) = mixed_and_exact(policy)
    assert relative_error(gradient, exact) < 1.5 * budget


def test_layers_and_policy_choose_what_is_measured():
    policy = forced(Rule("third", None))
    report = dfpjax.sensitivity(loss, PARAMS, X, policy=policy, bits=[8], layers="first|third", scale=3.0)
    assert [layer.layer for layer in report.layers] == ["net/first"]
    assert report.policy(1.0).rules[1:] == policy.rules


def test_layers_without_a_name():
    def unnamed(w, x):
        return jnp.mean(jnp.sin(jnp.sin(x @ w) @ jnp.cos(w)) ** 2)

    report = dfpjax.sensitivity(unnamed, PARAMS["first"], X, policy=FORCED, bits=[8])
    assert {layer.layer for layer in report.layers} == {"w", "dot_general 1"}
    assert all(layer.gradient_errors[0] > 1e-4 for layer in report.layers)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bits": ()}, ValueError, r"bits must be one or more integers from 2 to 16, got \(\)"),
        ({"bits": (16, 1)}, ValueError, "bits must be one or more integers from 2 to 16"),
        ({"bits": 8}, ValueError, "bits must be one or more integers from 2 to 16, got 8"),
        ({"policy": "paper"}, TypeError, r"policy must be a dfpjax\.Policy, got 'paper'"),
        ({"layers": 3}, TypeError, "layers must be a regular expression or None, got 3"),
        ({"layers": "("}, ValueError, r"layers='\(' is not a valid regular expression"),
        ({"layers": "fifth"}, ValueError, "no layer among those that 'fifth' matches run in dynamic fixed"),
        ({"policy": Policy()}, ValueError, "no layer run in dynamic fixed point; dfpjax.explain says why"),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        dfpjax.sensitivity(loss, PARAMS, X, **{"policy": FORCED, **changes})


def test_what_has_no_relative_error_is_refused():
    with pytest.raises(TypeError, match="loss_fn's first argument; pass it"):
        dfpjax.sensitivity(loss)
    with pytest.raises(ValueError, match="the gradient in float32 is zero or not finite"):
        dfpjax.sensitivity(loss, PARAMS, jnp.zeros_like(X), policy=FORCED)
