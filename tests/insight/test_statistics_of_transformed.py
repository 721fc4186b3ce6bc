"""The statistics of `with_statistics` on the operands that a Winograd algorithm transforms."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import forced
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import normal

import dfpjax
from dfpjax.insight import PerPass
from dfpjax.policy import Policy

WINOGRAD = forced(algorithm="winograd2")
NUMBERS = ("NHWC", "HWIO", "NHWC")
W, X, COTANGENT = normal(0, 3, 3, 64, 64), normal(1, 4, 8, 8, 64), normal(2, 4, 8, 8, 64)


def conv(w, x):
    with jax.named_scope("layer"):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS)


def loss(w, x, cotangent):
    """A function whose gradient has this cotangent of the layer's output."""
    return jnp.sum(conv(w, x) * cotangent)


def measured(fun, *args, policy=WINOGRAD):
    return jax.jit(dfpjax.with_statistics(fun, policy))(*args)[1]


@functools.cache
def step():
    """Compiled once."""
    return jax.jit(dfpjax.with_statistics(jax.value_and_grad(loss, (0, 1)), WINOGRAD))


def of_step(w=W, x=X, cotangent=COTANGENT):
    """By pass and operand."""
    statistics = step()(w, x, cotangent)[1]["layer"].transformed_sqnr_db
    return {
        (name, operand): float(value)
        for name, of_pass in statistics._asdict().items()
        for operand, value in of_pass.items()
    }


OF_NORMAL = {
    ("fprop", "input"), ("fprop", "weight"),
    ("dgrad", "output_gradient"), ("dgrad", "weight"),
    ("wgrad", "input"), ("wgrad", "output_gradient"),
}  # fmt: skip


def test_the_operands_of_every_pass_lose_little():
    found = of_step()
    assert found.keys() == OF_NORMAL
    assert all(85 < value < 100 for value in found.values())


def outlying(x, *index, by=2.0**9):
    x = np.array(x)
    x[(*index,)] *= by
    return x


EVERY = slice(None)


@pytest.mark.parametrize(
    ("changed", "worse"),
    [
        # What lies in the same block of the contracted index as something much larger loses bits. So each
        # pass notices outliers along the axes that it contracts.
        ({"x": outlying(X, ..., 3)}, {("fprop", "input")}),
        ({"x": outlying(X, 1, 2, 2)}, {("wgrad", "input")}),
        ({"w": outlying(W, ..., 3, EVERY)}, {("fprop", "weight")}),
        ({"w": outlying(W, ..., 3)}, {("dgrad", "weight")}),
        ({"cotangent": outlying(COTANGENT, ..., 3)}, {("dgrad", "output_gradient")}),
    ],
    ids=["input channel", "pixel", "kernel's input", "kernel's output", "channel of the gradient"],
)
def test_outliers_lose_bits_of_others(changed, worse):
    before, after = of_step(), of_step(**changed)
    assert {key for key in before if after[key] < before[key] - 4} == worse


def test_direct_operations_have_none():
    statistics = measured(conv, W, X, policy=forced(algorithm="direct"))
    assert statistics["layer"].transformed_sqnr_db == PerPass(None, None, None)
    assert "transformed" not in str(statistics)


@pytest.fixture(scope="module")
def of_two():
    """Of the layer on two inputs, each by itself."""
    xs = np.stack([X, outlying(X, ..., 3)])
    run = jax.jit(dfpjax.with_statistics(conv, WINOGRAD))
    return xs, [run(W, x)[1]["layer"].transformed_sqnr_db.fprop for x in xs]


def assert_of_each(statistics, each):
    for operand in ("input", "weight"):
        expected = [of_one[operand] for of_one in each]
        np.testing.assert_allclose(
            statistics["layer"].transformed_sqnr_db.fprop[operand], expected, rtol=1e-5
        )


def test_a_scan_stacks_them(of_two):
    xs, each = of_two
    statistics = measured(lambda w, xs: lax.scan(lambda _, x: (None, conv(w, x)), None, xs), W, xs)
    assert_of_each(statistics, each)
    history = dfpjax.History()
    of_input, again, of_weight, _ = history.add(0, statistics)
    json.dumps(history.to_dicts())
    assert (of_input["operand"], again["layer"], of_weight["operand"]) == ("input", "layer[1]", "weight")
    for record, value in (
        (of_input, each[0]["input"]), (again, each[1]["input"]), (of_weight, each[0]["weight"])
    ):  # fmt: skip
        np.testing.assert_allclose(record["fprop transformed_sqnr_db"], value, rtol=1e-5)
        assert record["dgrad transformed_sqnr_db"] is None


def test_vmap_outside_gives_each_example_its_own(of_two):
    xs, each = of_two
    run = jax.vmap(dfpjax.with_statistics(conv, WINOGRAD), (None, 0))
    assert_of_each(jax.jit(run)(W, xs)[1], each)


def test_what_vmap_adds_inside_is_one_operation(of_two):
    xs, each = of_two
    fun = jax.vmap(dfpjax.mixed_precision(conv, WINOGRAD), (None, 0))
    found = measured(fun, W, xs, policy=Policy(default=None))["layer"].transformed_sqnr_db.fprop
    assert float(each[1]["input"]) < found["input"] < float(each[0]["input"])


def test_a_checkpointed_layer_and_one_whose_statistics_are_auxiliary(of_two):
    _, each = of_two
    checkpointed = jax.checkpoint(lambda w, x: jnp.sum(conv(w, x) ** 2))
    gradient = jax.jit(jax.value_and_grad(dfpjax.with_statistics(checkpointed, WINOGRAD), has_aux=True))
    (_, statistics), _ = gradient(W, X)
    assert_of_each(jax.tree.map(lambda x: x[None], statistics), each[:1])


def test_a_branch_that_is_not_taken():
    def fun(taken, w, x):
        return lax.cond(taken, lambda x: conv(w, x), lambda x: x, x)

    found = measured(fun, False, W, X)["layer"].transformed_sqnr_db.fprop
    assert np.isnan([found["input"], found["weight"]]).all()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_partitioned_program_has_those_of_the_whole_operation(kind, of_two):
    _, each = of_two
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        x, w = (jax.device_put(a, NamedSharding(mesh, P(*s))) for a, s in ((X, ("batch",)), (W, ())))
        statistics = measured(conv, w, x)
    assert_of_each(jax.tree.map(lambda x: x[None], statistics), each[:1])
