"""The algorithm that a policy asks for: which operations it reaches, and what is an error."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import COMPILED_QUICKLY
from forced import forced
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import equations, relative_error

import dfpjax
from dfpjax import OpConfig, Policy, Rule
from dfpjax.numbers.contraction import algorithm
from dfpjax.policy import policies
from dfpjax.transform import mixed_precision

NUMBERS = ("NHWC", "HWIO", "NHWC")
WINOGRAD = forced(algorithm="winograd4")
transformed = functools.partial(mixed_precision, backend="reference")
jit = functools.partial(jax.jit, compiler_options=COMPILED_QUICKLY)


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) / 4 for shape in shapes]


def network(x, w, v, *, strides=(1, 1)):
    with jax.named_scope("body"):
        y = jax.nn.relu(lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=NUMBERS))
    with jax.named_scope("head"):
        return y.mean((1, 2)) @ v


def loss(*args, **kwargs):
    return jnp.sum(network(*args, **kwargs) ** 2)


ARGS = arrays((4, 6, 7, 16), (3, 3, 16, 12), (12, 5))


def asked_for(function, *args):
    return [
        (bool(eqn.params["contraction"].windows), eqn.params["algorithm"])
        for eqn in equations(jax.make_jaxpr(function)(*args))
        if eqn.primitive.name in ("dfp_contract", "dfp_contract_linear")
    ]


@pytest.mark.parametrize("inside", [False, True])
def test_it_reaches_convolutions_and_their_gradients_and_no_dots(inside):
    by = (0, 1, 2)
    if inside:  # the program that is transformed contains its backward pass
        gradient = transformed(jax.grad(loss, by), WINOGRAD)
    else:
        gradient = jax.grad(transformed(loss, WINOGRAD), by)
    expected = [(False, "direct")] * 3 + [(True, "winograd4")] * 3
    assert sorted(asked_for(gradient, *ARGS)) == expected


def test_values():
    by = (0, 1, 2)
    gradient = jax.grad(transformed(loss, WINOGRAD), by)
    assert relative_error(jit(gradient)(*ARGS), jax.grad(loss, by)(*ARGS)) < 2e-3


def test_the_papers_policy_multiplies_product_by_product():
    assert policies.paper().default.algorithm == "direct"
    assert policies.default().default.algorithm == "auto"


def test_an_error_names_the_layer_and_says_what_to_do():
    strided = functools.partial(network, strides=(2, 2))
    with pytest.raises(ValueError) as error:
        transformed(strided, WINOGRAD)(*ARGS)
    message = str(error.value)
    assert re.match(r"conv_general_dilated of layer 'body' at .*test_algorithms\.py:\d+ ", message)
    assert "algorithm='winograd4' cannot compute this convolution: a stride or dilation of 2" in message
    assert "as the policy's default says" in message and 'algorithm="auto" chooses one that can' in message
    assert "Rule('body', dfpjax.OpConfig(...)) as the first rule" in message
    assert "Rule('body', None)" in message
    named = Rule("body", OpConfig(algorithm="winograd4", force=True))
    with pytest.raises(ValueError, match=re.escape(f"as {named!r} says")):
        transformed(strided, Policy(rules=[named]))(*ARGS)
    mended = forced(Rule("body", OpConfig(force=True)), algorithm="winograd4")
    assert relative_error(jit(transformed(strided, mended))(*ARGS), strided(*ARGS)) < 1e-3


def test_the_example_of_a_rule():
    """A policy whose default is an algorithm that one layer cannot have."""
    _, example = Rule.__doc__.split("compute:\n")
    policy = eval(example.split("Arguments:")[0].strip(), vars(dfpjax).copy())
    assert policy.default.algorithm == "winograd4"

    def network(x, w):
        for name, strides in (("Stem", (2, 2)), ("Body", (1, 1))):
            with jax.named_scope(name):
                x = lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=NUMBERS)
        return x

    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 56, 56, 64), (3, 3, 64, 64))]
    jax.eval_shape(transformed(network, policy), *args)
    stem, body = dfpjax.explain(network, *args, policy=policy).ops
    assert stem.rule is policy.rules[0]
    assert [op.algorithms["fprop"].partition(":")[0] for op in (stem, body)] == [
        "direct",
        "winograd4, 4.0x fewer products",
    ]
    with pytest.raises(ValueError, match="of layer 'Stem'"):
        jax.eval_shape(transformed(network, Policy(default=policy.default)), *args)


def test_gradients_that_a_program_contains_are_direct_where_need_be():
    """The wgrad of a convolution with "full" padding gathers the larger cotangent."""

    def full(x, w):
        y = lax.conv_general_dilated(x, w, (1, 1), ((2, 2), (2, 2)), dimension_numbers=NUMBERS)
        return jnp.sum(jnp.sin(y))

    gradient = transformed(jax.grad(full, (0, 1)), WINOGRAD)
    assert sorted(asked_for(gradient, *ARGS[:2])) == [(True, "direct"), *[(True, "winograd4")] * 2]
    kinds = [op.algorithms for op in dfpjax.explain(jax.grad(full, (0, 1)), *ARGS[:2], policy=WINOGRAD).ops]
    assert {"wgrad": "direct: the innermost axis of the result is not one of channels"} in kinds


def test_it_reaches_what_is_checkpointed():
    quantized = transformed(loss, WINOGRAD)
    save = dfpjax.checkpoint_policies.quantized_saveable
    found = [asked_for(jax.grad(f), *ARGS) for f in (quantized, jax.checkpoint(quantized, policy=save))]
    assert {*found[0]} == {*found[1]} == {(False, "direct"), (True, "winograd4")}


def test_statistics_count_the_chains_of_transformed_products():
    by_algorithm = [
        jit(dfpjax.with_statistics(network, forced(algorithm=name)))(*ARGS)[1]["body"]
        for name in ("direct", "winograd4")
    ]
    lengths = [np.asarray(layer.chains.fprop) for layer in by_algorithm]
    np.testing.assert_allclose([x.sum() for x in lengths], 1, rtol=1e-5)
    assert not np.array_equal(*lengths)


# --- several devices ------------------------------------------------------------------------------


def sharded(function, specs, *args):
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(args, specs, strict=True)]
    with jax.set_mesh(mesh):
        return jax.jit(function)(*placed)


@pytest.mark.parametrize("specs", [(P("x"), P()), (P(), P(None, None, None, "x"))])
def test_the_shapes_of_the_whole_decide(specs, monkeypatch):
    """A device has half of the examples, or of the output channels: too few of them by themselves."""
    cost = algorithm.Cost(product=0, per_channel=20, per_tile=3.5)
    monkeypatch.setattr(algorithm, "COSTS", {(4, 3, 2, False): cost})
    algorithm.choose_algorithm.cache_clear()
    x, w = arrays((2, 6, 6, 16), (3, 3, 16, 64))

    def conv(x, w, name):
        return dfpjax.operations.conv_general_dilated(
            x, w, window_strides=(1, 1), padding=((1, 1), (1, 1)), dimension_numbers=NUMBERS,
            quantizers=OpConfig().quantizers(), algorithm=name,
        )  # fmt: skip

    auto, named, direct = (functools.partial(conv, name=name) for name in ("auto", "winograd4", "direct"))
    expected = jax.jit(named)(x, w)
    # Tiles and panels of a shard can have other chain lengths.
    assert relative_error(sharded(auto, specs, x, w), expected) < 1e-5
    assert relative_error(jax.jit(direct)(x, w), expected) > 5e-5
    algorithm.choose_algorithm.cache_clear()
