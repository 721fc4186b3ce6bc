"""Residuals of the backward pass: int16 mantissas replace the float32 operands of rewritten operations."""

import contextlib
import functools
import io
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from forced import FORCED
from fusing import conv
from jax.ad_checkpoint import print_saved_residuals
from transform_helpers import equations, normal, primitives, relative_error, variables_of

from dfpjax import checkpoint_policies
from dfpjax.checkpoint_policies import LHS_NAME, RHS_NAME
from dfpjax.numbers import dfp16
from dfpjax.transform import mixed_precision

X = normal(0, 4, 8, 8, 3)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False)(linen.Conv(6, (3, 3))(x))
        x = linen.relu(linen.Conv(5, (3, 3))(linen.relu(x)))
        return linen.Dense(7)(x.reshape(x.shape[0], -1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(6, 5, (3, 3), rngs=rngs)
        self.last = nnx.Linear(320, 7, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.norm(self.first(x)))))
        return self.last(x.reshape(x.shape[0], -1))


@functools.cache
def linen_network():
    def apply(params, x):
        return Linen().apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

    variables = variables_of(Linen(), X)
    return apply, variables["params"]


def nnx_network():
    graph, params, rest = nnx.split(Nnx(nnx.Rngs(1)), nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest)(x), params


def loss(apply):
    return lambda params: (apply(params, X) ** 2).sum()


def residuals(fun, *args) -> list[str]:
    """The lines of `print_saved_residuals`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        print_saved_residuals(fun, *args)
    return printed.getvalue().splitlines()


def types(lines: list[str]) -> Counter:
    """How often each type occurs among the residuals, without exponents."""
    found = Counter(line.split(" ")[0] for line in lines)
    return Counter({kind: count for kind, count in found.items() if not kind.startswith("i32[")})


def float32(kinds: Counter) -> Counter:
    return Counter({kind.replace("dfp16", "f32"): count for kind, count in kinds.items()})


OPERANDS = Counter(
    # The first convolution's kernel is not among them: there is no gradient with respect to the images.
    ["dfp16[4,8,8,3]", "dfp16[4,8,8,6]", "dfp16[3,3,6,5]", "dfp16[4,320]", "dfp16[320,7]"]
)


@pytest.mark.parametrize("network", [linen_network, nnx_network])
def test_operands_are_kept_as_int16_and_nothing_else_changes(network):
    apply, params = network()
    expected = types(residuals(loss(apply), params))
    lines = residuals(loss(mixed_precision(apply, FORCED)), params)
    actual = types(lines)
    assert expected >= float32(OPERANDS)
    assert actual == expected - float32(OPERANDS) + OPERANDS
    # Each operand has an exponent; both are named.
    assert sum(f"named '{LHS_NAME}'" in line for line in lines) == 2 * 3
    assert sum(f"named '{RHS_NAME}'" in line for line in lines) == 2 * 2


@pytest.mark.parametrize("names", [(), (LHS_NAME,), (RHS_NAME,), (LHS_NAME, RHS_NAME)])
def test_operands_are_saved_by_name(names):
    fun, params = checkpointed(checkpoint_policies.save_only_these_names(*names))
    kept = residuals(fun, params)
    lines = [line for line in kept if not re.search("from (a constant|the argument)", line)]
    assert len(lines) == 2 * 3 * len(names)  # the operands and exponents of three operations, nothing else
    assert all(re.search(f"named '({'|'.join(names)})'", line) for line in lines)
    # Saved operands are quantized only in the forward pass, the others again in the backward pass.
    gradient = jax.grad(fun)
    assert primitives(jax.make_jaxpr(gradient)(params))["dfp_quantize"] == 2 * 6 - 3 * len(names)


def test_saving_some_operands_by_name_changes_no_gradient():
    fun, params = checkpointed(checkpoint_policies.save_only_these_names(LHS_NAME))
    plain = loss(mixed_precision(linen_network()[0], FORCED))
    actual, expected = jax.jit(lambda params: [jax.grad(f)(params) for f in (fun, plain)])(params)
    assert relative_error(actual, expected) < 1e-5


def test_operands_are_offloaded_by_name():
    policy = checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[RHS_NAME],
        names_which_can_be_offloaded=[LHS_NAME],
        offload_src="device",
        offload_dst="pinned_host",
    )
    fun, params = checkpointed(policy)
    moved = [
        str(eqn.outvars[0].aval)
        for eqn in equations(jax.make_jaxpr(jax.grad(fun))(params))
        if eqn.primitive.name == "device_put" and eqn.invars[0].aval.dtype == dfp16
    ]
    assert sum("host" in aval for aval in moved) == 3  # to the host
    assert sum("host" not in aval for aval in moved) == 3  # and back


def checkpointed(policy):
    apply, params = linen_network()
    return jax.checkpoint(loss(mixed_precision(apply, FORCED)), policy=policy), params


def test_names_stay_under_other_transformations():
    w = np.asarray(normal(2, 2, 6, 6))
    transposed = np.swapaxes(w, 1, 2)
    slopes = np.cos(w @ w)
    expected = slopes @ transposed + transposed @ slopes
    fun = mixed_precision(lambda w: jnp.sin(w @ w).sum(), FORCED)
    assert primitives(jax.make_jaxpr(jax.vmap(fun))(w))["name"] == 0  # none without a derivative
    for gradient in (jax.vmap(jax.grad(fun)), jax.grad(lambda w: jax.vmap(jax.jit(fun))(w).sum())):
        assert primitives(jax.make_jaxpr(gradient)(w))["name"] == 4
        for result in (gradient(w), jax.jit(gradient)(w)):
            assert relative_error(result, expected) < 1e-3


def test_an_input_of_several_operations_is_quantized_once():
    """The compiled program quantizes each input of several operations once, as in an Inception module.
    It also quantizes each cotangent once, for both gradients."""
    x, weights = normal(0, 4, 32, 32, 16), [normal(i, 1, 1, 16, 32) for i in (1, 2, 3)]

    def loss(x, weights):
        return sum(jnp.sum(jnp.sin(conv(x, w))) for w in weights)

    gradient = jax.jit(jax.grad(mixed_precision(loss, FORCED), (0, 1)))
    text = gradient.lower(x, weights).compile().as_text()
    quantized = re.findall(r'custom-call\(([^)]*)\), custom_call_target="dfpjax_quantize', text)
    # The input, three kernels and three cotangents.
    assert len(quantized) == len(set(quantized)) == 7, quantized
