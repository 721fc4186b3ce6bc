"""Which operations are rewritten, and to which configurations; types, names and source lines are kept."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED
from jax import lax
from transform_helpers import equations, floats, normal, primitives, quantized, relative_error

from dfpjax.numbers import FixedChain
from dfpjax.policy import OpConfig, PerRole, Policy, Rule, policies
from dfpjax.transform import mixed_precision

W = normal(0, 6, 6) / 2
X = normal(1, 4, 6)


def layer(w, x):
    return jnp.tanh(x @ w)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_result_types_are_kept(dtype):
    w, x = W.astype(dtype), X.astype(dtype)
    transformed = mixed_precision(lambda w, x: x @ w, FORCED)
    assert jax.typeof(transformed(w, x)) == jax.typeof(x @ w)
    assert relative_error(transformed(w, x), x @ w) < 3 * jnp.finfo(dtype).eps + 1e-4
    gradient = jax.grad(lambda w: transformed(w, x).astype(jnp.float32).sum())(w)
    assert gradient.dtype == dtype


def test_float64_if_overridden():
    with jax.enable_x64(True):
        w, x = np.asarray(W, np.float64), np.asarray(X, np.float64)
        policy = Policy(default=OpConfig(force=True, override_precision=True))
        y = mixed_precision(lambda w, x: jnp.matmul(x, w), policy)(w, x)
        assert y.dtype == np.float64
        assert 1e-9 < relative_error(y, x @ w) < 1e-3


def test_preferred_element_type():
    def product(w, x):
        return lax.dot(x, w, preferred_element_type=jnp.float32)

    w, x = W.astype(jnp.bfloat16), X.astype(jnp.bfloat16)
    assert jax.typeof(mixed_precision(product, FORCED)(w, x)) == jax.typeof(product(w, x))


def test_weak_types_are_kept():
    def weak(x):
        return lax.dot(lax.full_like(x, 2.0, shape=(3,)), jnp.asarray([1.0, 2.0, 3.0]) * 1.0)

    def carry(x):
        return lax.scan(lambda c, _: (c * weak(c), None), 1.0, length=2)[0] * x

    x = jnp.asarray(2.0)
    for fun in (weak, carry):
        assert jax.typeof(mixed_precision(fun, FORCED)(x)) == jax.typeof(fun(x))


@pytest.mark.parametrize(
    ("fun", "args"),
    [
        (jnp.matmul, (jnp.ones((2, 3), jnp.int8), jnp.ones((3, 2), jnp.int8))),
        (jnp.matmul, (jnp.ones((2, 3), jnp.complex64), jnp.ones((3, 2), jnp.complex64))),
        (jnp.matmul, (jnp.ones((2, 1)), jnp.ones((1, 2)))),
        (jnp.outer, (jnp.ones(3), jnp.ones(2))),
        (jnp.matmul, (jnp.ones((0, 3)), jnp.ones((3, 2)))),
        (jnp.matmul, (jnp.ones((2, 0)), jnp.ones((0, 2)))),
        (lambda x: lax.conv(x, jnp.ones((2, 1, 1, 1)), (1, 1), "SAME"), (jnp.ones((1, 1, 3, 3)),)),
    ],
)
def test_ineligible_operations_are_left(fun, args):
    transformed = mixed_precision(fun, FORCED)
    assert quantized(jax.make_jaxpr(transformed)(*args)) == 0
    np.testing.assert_array_equal(transformed(*args), fun(*args))


def test_convolution_parameters():
    image, kernel = normal(3, 2, 9, 8, 6), normal(4, 3, 2, 3, 4)

    def convolve(image, kernel):
        return lax.conv_general_dilated(
            image,
            kernel,
            (2, 1),
            ((1, 2), (0, -1)),
            (1, 2),
            (2, 1),
            ("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    def loss(fun):
        return lambda *args: (fun(*args) ** 2).sum()

    reference = jax.grad(loss(convolve), (0, 1))
    transformed = (
        jax.grad(loss(mixed_precision(convolve, FORCED)), (0, 1)),
        mixed_precision(reference, FORCED),
    )
    expected, *results = jax.jit(lambda *args: [f(*args) for f in (reference, *transformed)])(image, kernel)
    for gradient, actual in zip(transformed, results, strict=True):
        assert floats(jax.make_jaxpr(gradient)(image, kernel)) == 0
        assert 0 < relative_error(actual, expected) < 1e-3


def test_rules_choose_configurations():
    def net(a, b, x):
        with jax.named_scope("first"):
            x = x @ a
        with jax.named_scope("second"):
            return x @ b

    bits = PerRole(lhs=6, rhs=7, cotangent=8)
    policy = Policy(rules=[Rule("first", None), Rule("^b$", OpConfig(bits=bits, force=True))])
    jaxpr = jax.make_jaxpr(mixed_precision(net, policy))(W, W, X)
    found = primitives(jaxpr)
    assert (found["dot_general"], found["dfp_contract"]) == (1, 1)
    (contract,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dfp_contract")
    quantizers = [eqn.params["quantizer"].bits for eqn in jaxpr.eqns if eqn.primitive.name == "dfp_quantize"]
    assert quantizers == [6, 7]
    assert contract.params["cotangent"].bits == 8


def test_granularity_and_accumulation_reach_the_operations():
    """Rows and columns of small values keep their precision if each has its own exponent."""
    scales = 10.0 ** -np.arange(6)
    x, w = normal(0, 6, 64) * scales[:, None].astype(np.float32), normal(1, 64, 6) * scales.astype(np.float32)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    chain = FixedChain(256, 2, saturate=True)
    errors = {}
    for name, fields in {
        "tensor": {"granularity": "tensor"},
        "channel": {"granularity": "channel"},
        "chain": {"accumulation": chain},
    }.items():
        policy = Policy(default=OpConfig(force=True, **fields))
        transformed = mixed_precision(jnp.matmul, policy)
        errors[name] = np.abs(transformed(x, w) / exact - 1)[-1, -1]
        (contract,) = (
            eqn
            for eqn in equations(jax.make_jaxpr(transformed)(x, w))
            if eqn.primitive.name == "dfp_contract"
        )
        assert contract.params["accumulation"] == fields.get("accumulation", "certified")
    assert errors["channel"] < 1e-3 < 0.1 < errors["tensor"]


def test_paper_policy_holds_for_gradients_too():
    def net(w1, w2, w3, x):
        for w in (w1, w2):
            x = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (x.mean((1, 2)) @ w3).sum()

    args = normal(0, 3, 3, 2, 4), normal(1, 3, 3, 4, 4), normal(2, 4, 5), normal(3, 2, 5, 5, 2)
    gradient = jax.grad(net, (0, 1, 2))
    for transformed in (
        jax.grad(mixed_precision(net, policies.paper()), (0, 1, 2)),
        mixed_precision(gradient, policies.paper()),
    ):
        jaxpr = jax.make_jaxpr(transformed)(*args)
        found = primitives(jaxpr)
        assert found["conv_general_dilated"] == 2  # fprop and wgrad of the first convolution
        assert (
            found["dfp_contract"] + found["dfp_contract_linear"] == 3
        )  # fprop, dgrad and wgrad of the second convolution


def test_names_and_source_are_kept():
    def net(w, x):
        with jax.named_scope("net"):
            return layer(w, x)

    def lines(fun):
        text = jax.jit(fun).lower(W, X).as_text(debug_info=True)
        return [line for line in text.splitlines() if "net/" in line]

    scope = re.compile(r"net/(jit\(\w+\)/)?dfp_quantize")
    assert any(map(scope.search, lines(mixed_precision(net, FORCED))))
    for eqn in jax.make_jaxpr(mixed_precision(net, FORCED))(W, X).eqns:
        assert str(eqn.source_info.name_stack) == "net"
        assert Path(__file__).name in jax.extend.source_info_util.summarize(eqn.source_info)
