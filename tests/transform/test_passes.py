"""fprop, dgrad and wgrad switched on and off one by one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from forced import FORCED
from jax import lax
from transform_helpers import equations, floats, normal, quantized, relative_error, variables_of

from dfpjax import explain
from dfpjax.policy import OpConfig, PerRole, Policy, Rule
from dfpjax.transform import mixed_precision

SWITCHES = [s for s in itertools.product([True, False], repeat=3) if any(s)]


def switched(fprop=True, dgrad=True, wgrad=True, **fields) -> Policy:
    return Policy(default=OpConfig(fprop=fprop, dgrad=dgrad, wgrad=wgrad, force=True, **fields))


def dense(w, x):
    return x @ w


def conv(w, x):
    with jax.named_scope("layer"):
        return lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


PROGRAMS = {
    "dense": (dense, (normal(0, 24, 16), normal(1, 8, 24))),
    "conv": (conv, (normal(2, 3, 3, 4, 6), normal(3, 2, 7, 5, 4))),
    "scan": (
        lambda w, x: lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, None, length=3)[0],
        (normal(4, 8, 8), normal(5, 4, 8)),
    ),
}


def passes_of(fun, args, cotangent):
    """(fprop, gradient with respect to x, to w), as a list of arrays."""
    out, vjp = jax.vjp(fun, *args)
    dw, dx = vjp(cotangent)
    return [out, dx, dw]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("name", ["dense", "conv"])
def test_each_pass_is_that_of_float32_or_of_dfp16_to_the_bit(name, switches):
    fun, args = PROGRAMS[name]
    cotangent = normal(9, *jax.eval_shape(fun, *args).shape)
    run = jax.jit(lambda fun: passes_of(fun, args, cotangent), static_argnums=0)
    expected = run(fun), run(mixed_precision(fun, FORCED))
    actual = run(mixed_precision(fun, switched(*switches)))
    for on, got, float32, dfp16 in zip(switches, actual, *expected, strict=True):
        assert not np.array_equal(float32, dfp16)
        np.testing.assert_array_equal(got, dfp16 if on else float32)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("name", PROGRAMS)
def test_transforming_a_gradient_or_differentiating_is_one(name, switches):
    fun, args = PROGRAMS[name]
    loss = lambda fun: lambda *args: jnp.sum(jnp.sin(fun(*args)))  # noqa: E731
    policy = switched(*switches)
    inside = jax.jit(jax.grad(loss(mixed_precision(fun, policy)), (0, 1)))(*args)
    transformed = mixed_precision(jax.grad(loss(fun), (0, 1)), policy)
    outside = jax.jit(transformed)(*args)
    assert relative_error(outside, inside) < 1e-6
    # The switches say which passes stay in float32.
    report = explain(jax.grad(loss(fun), (0, 1)), *args, policy=policy)
    for kind, on in zip(("fprop", "dgrad", "wgrad"), switches, strict=True):
        ops = [op for op in report.ops if getattr(op, kind) is not None and (kind == "fprop" or not op.fprop)]
        assert ops and {op.dtype for op in ops} == {"dfp16" if on else "float32"}


def test_roles_hold_in_a_gradient_too():
    """12 bits for the input, 8 for the weights, 10 for cotangents, whichever operand each of them is."""
    policy = switched(bits=PerRole(lhs=12, rhs=8, cotangent=10))
    fun, args = PROGRAMS["dense"]
    gradient = jax.grad(lambda *args: jnp.sum(jnp.sin(fun(*args))), (0, 1))
    inside = jax.grad(lambda *args: jnp.sum(jnp.sin(mixed_precision(fun, policy)(*args))), (0, 1))
    bits = [
        eqn.params["quantizer"].bits
        for eqn in equations(jax.make_jaxpr(mixed_precision(gradient, policy))(*args))
        if eqn.primitive.name == "dfp_quantize"
    ]
    assert sorted(bits) == [8, 8, 10, 10, 12, 12]
    assert relative_error(jax.jit(mixed_precision(gradient, policy))(*args), jax.jit(inside)(*args)) < 1e-6


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit], ids=["plain", "remat", "jit"])
def test_twice_is_once(wrap):
    policy = switched(dgrad=False)
    fun, args = PROGRAMS["conv"]
    once = mixed_precision(wrap(fun), policy)
    twice = mixed_precision(once, policy)
    gradient = lambda fun: jax.make_jaxpr(jax.grad(lambda *args: jnp.sum(fun(*args)), (0, 1)))(*args)  # noqa: E731
    for counted in (floats, quantized):
        assert counted(gradient(twice)) == counted(gradient(once))
    # An outer transform that would rewrite everything adds nothing either, nor does one around the gradient.
    assert floats(gradient(mixed_precision(once))) == floats(gradient(once)) > 0
    outermost = jax.make_jaxpr(mixed_precision(jax.grad(lambda *args: jnp.sum(once(*args)), (0, 1))))(*args)
    assert floats(outermost) == floats(gradient(once))


def test_forward_mode_vmap_and_second_derivatives():
    fun, args = PROGRAMS["dense"]
    transformed = mixed_precision(fun, switched(fprop=False, dgrad=False))
    tangents = normal(6, 24, 16), normal(7, 8, 24)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-3)
    jax.tree.map(close, jax.jvp(transformed, args, tangents), jax.jvp(fun, args, tangents))

    loss = lambda fun: lambda *args: jnp.sum(jnp.sin(fun(*args)))  # noqa: E731
    penalty = lambda fun: lambda *args: jnp.sum(jax.grad(loss(fun))(*args) ** 2)  # noqa: E731
    jax.tree.map(
        functools.partial(close, rtol=2e-2, atol=2e-2),
        jax.grad(penalty(transformed), (0, 1))(*args),
        jax.grad(penalty(fun), (0, 1))(*args),
    )

    batch = normal(8, 3, 8, 24)
    mapped = jax.jit(jax.vmap(jax.grad(loss(transformed), (0, 1)), (None, 0)))(args[0], batch)
    one = jax.jit(jax.grad(loss(transformed), (0, 1)))
    loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one(args[0], x) for x in batch])
    jax.tree.map(close, mapped, loop)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_result_types_are_kept(dtype):
    w, x = normal(0, 8, 4).astype(dtype), normal(1, 2, 8).astype(dtype)
    transformed = mixed_precision(dense, switched(wgrad=False))
    out, vjp = jax.vjp(transformed, w, x)
    assert (out.dtype, *(ct.dtype for ct in vjp(out))) == (dtype,) * 3


def test_remat_in_a_gradient():
    """Recomputed operations count as forward operations, not as gradients."""

    def loss(params, x):
        layer = lambda w, x: jnp.tanh(x @ w)  # noqa: E731
        for w in params:
            x = jax.checkpoint(layer)(w, x)
        return jnp.sum(x)

    args = [normal(i, 6, 6) for i in range(3)], normal(9, 4, 6)
    report = explain(jax.grad(loss), *args, policy=switched(fprop=False, wgrad=False))
    forward = [op for op in report.ops if op.fprop]
    assert len(forward) == 6 and {op.dtype for op in forward} == {"float32"}
    dgrads = [op for op in report.ops if not op.fprop and op.dgrad]
    wgrads = [op for op in report.ops if not op.fprop and op.wgrad]
    assert [op.dtype for op in dgrads] == ["dfp16"] * 2  # the first layer's input needs no gradient
    assert [op.dtype for op in wgrads] == ["float32"] * 3


def test_a_gradient_of_which_not_is_known_which_it_is():
    square = lambda x: jnp.sum(x @ x)  # noqa: E731
    report = explain(jax.grad(square), normal(0, 4, 4), policy=switched(wgrad=False))
    unknown = [op for op in report.ops if not op.fprop]
    assert {op.dtype for op in unknown} == {"float32"}
    assert unknown[0].reason == (
        "a gradient, not known which, and wgrad is switched off (the policy's default)"
    )
    assert {op.dtype for op in explain(jax.grad(square), normal(0, 4, 4), policy=FORCED).ops} == {"dfp16"}


def test_explain_shows_each_pass():
    model = nn.Sequential([nn.Dense(8), nn.Dense(8), nn.Dense(4)])
    x = normal(0, 2, 6)
    variables = variables_of(model, x)
    rules = [Rule("layers_0", OpConfig(dgrad=False, force=True)), Rule("layers_1", None)]
    policy = Policy(rules=rules, default=OpConfig(force=True))
    report = explain(model.apply, variables, x, policy=policy)
    assert [(op.dtype, op.fprop, op.dgrad, op.wgrad) for op in report.ops] == [
        ("dfp16", "dfp16", "float32", "dfp16"),
        ("float32",) * 4,
        ("dfp16",) * 4,
    ]
    assert "float32, dfp16" in str(report).splitlines()[2]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.grad], ids=["value", "grad"])
def test_strict(wrap):
    def loss(params, x):
        with jax.named_scope("first"):
            x = x @ params["a"]
        return jnp.sum(x @ params["b"])

    args = {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}, normal(2, 2, 4)
    fine = Policy(rules=[Rule("^first$", OpConfig(force=True)), Rule("^b$", None)], strict=True)
    once = mixed_precision(wrap(loss), fine)
    jax.block_until_ready(once(*args))
    jax.block_until_ready(mixed_precision(once, fine)(*args))  # the operation that matched is in DFP16 now
    wrong = Policy(rules=[*fine.rules, Rule("frist", None)], strict=True)
    with pytest.raises(ValueError) as error:
        mixed_precision(wrap(loss), wrong)(*args)
    assert str(error.value) == (
        "mixed_precision: nothing in the program matches Rule('frist', None). Its layers and parameters: "
        "first, a, x, b. Mend the pattern, drop the rule, or use a Policy without strict=True."
    )
    assert explain(wrap(loss), *args, policy=wrong).unmatched == (wrong.rules[-1],)


def test_strict_in_a_program_without_operations():
    with pytest.raises(
        ValueError, match="No convolution or dot product in it has a name or takes a parameter"
    ):
        mixed_precision(jnp.sin, Policy(rules=[Rule("conv", None)], strict=True))(1.0)


def test_the_reference_backend_gives_the_same_bits():
    fun, args = PROGRAMS["conv"]
    cotangent = normal(9, *jax.eval_shape(fun, *args).shape)
    native = jax.jit(lambda *args: passes_of(mixed_precision(fun, FORCED), args, cotangent))
    reference = jax.jit(
        lambda *args: passes_of(mixed_precision(fun, FORCED, backend="reference"), args, cotangent)
    )
    jax.tree.map(np.testing.assert_array_equal, reference(*args), native(*args))
    assert "custom_call @dfpjax" in native.lower(*args).as_text()
    assert "custom_call" not in reference.lower(*args).as_text()


def test_the_backend_is_checked():
    message = "mixed_precision: backend must be one of 'auto', 'reference', got 'gpu'"
    with pytest.raises(ValueError, match=message):
        mixed_precision(dense, backend="gpu")
    assert mixed_precision(backend="reference")(dense).__wrapped__ is dense
