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
from transform_helpers import REALIGNED, equations, floats, normal, quantized, relative_error, variables_of

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


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_each_pass_is_that_of_float32_or_of_dfp16_to_the_bit(name):
    fun, args = PROGRAMS[name]
    cotangent = normal(9, *jax.eval_shape(fun, *args).shape)

    @jax.jit
    def run(*args):
        of = functools.partial(passes_of, args=args, cotangent=cotangent)
        mixed = [of(mixed_precision(fun, switched(*switches))) for switches in SWITCHES]
        return of(fun), of(mixed_precision(fun, FORCED)), mixed

    float32, dfp16, mixed = run(*args)
    for differs in zip(float32, dfp16, strict=True):
        assert not np.array_equal(*differs)
    for switches, passes in zip(SWITCHES, mixed, strict=True):
        for on, got, *one_of in zip(switches, passes, float32, dfp16, strict=True):
            np.testing.assert_array_equal(got, one_of[on], err_msg=str(switches))


@pytest.mark.parametrize(("granularity", "tolerance"), [("tensor", 1e-6), ("block", REALIGNED)])
@pytest.mark.parametrize("name", PROGRAMS)
def test_transforming_a_gradient_or_differentiating_is_one(name, granularity, tolerance):
    fun, args = PROGRAMS[name]
    loss = lambda fun: lambda *args: jnp.sum(jnp.sin(fun(*args)))  # noqa: E731
    gradient = jax.grad(loss(fun), (0, 1))
    # XLA shares what is equal in these programs, but no loops.
    cases = [s for s in SWITCHES if name != "scan" or sum(s) == 1]

    @jax.jit
    def run(*args):
        return [
            (
                jax.grad(loss(mixed_precision(fun, policy)), (0, 1))(*args),
                mixed_precision(gradient, policy)(*args),
            )
            for policy in (switched(*switches, granularity=granularity) for switches in cases)
        ]

    for switches, (inside, outside) in zip(cases, run(*args), strict=True):
        assert relative_error(outside, inside) < tolerance, switches
    for switches in SWITCHES:
        # The switches say which passes stay in float32.
        report = explain(gradient, *args, policy=switched(*switches))
        for kind, on in zip(("fprop", "dgrad", "wgrad"), switches, strict=True):
            ops = [
                op for op in report.ops if getattr(op, kind) is not None and (kind == "fprop" or not op.fprop)
            ]
            assert ops and {op.dtype for op in ops} == {"dfp16" if on else "float32"}, switches


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
    actual, expected = jax.jit(lambda *args: (mixed_precision(gradient, policy)(*args), inside(*args)))(*args)
    assert relative_error(actual, expected) < 1e-6


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
    w, batch = args[0], normal(8, 3, 8, 24)

    def gradient(fun):
        return jax.grad(lambda *args: jnp.sum(jnp.sin(fun(*args))), (0, 1))

    def penalty(fun):
        return lambda *args: jnp.sum(gradient(fun)(*args)[0] ** 2)

    @jax.jit
    def run(*args):
        derivatives = [
            (jax.jvp(fun, args, tangents), jax.grad(penalty(fun), (0, 1))(*args))
            for fun in (transformed, fun)
        ]
        mapped = jax.vmap(gradient(transformed), (None, 0))(w, batch)
        return *derivatives, mapped, [gradient(transformed)(w, x) for x in batch]

    (jvp, second), (expected_jvp, expected_second), mapped, loop = run(*args)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-3), jvp, expected_jvp)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-2, atol=2e-2), second, expected_second)
    for i, one in enumerate(loop):
        for actual, expected in zip(mapped, one, strict=True):
            np.testing.assert_allclose(actual[i], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_result_types_are_kept(dtype):
    w, x = normal(0, 8, 4).astype(dtype), normal(1, 2, 8).astype(dtype)
    passes = functools.partial(passes_of, mixed_precision(dense, switched(wgrad=False)))
    types = jax.eval_shape(passes, (w, x), jax.ShapeDtypeStruct((2, 4), dtype))
    assert [out.dtype for out in types] == [dtype] * 3


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
    jax.eval_shape(once, *args)
    jax.eval_shape(mixed_precision(once, fine), *args)  # the operation that matched is in DFP16 now
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
    fun, args = PROGRAMS["dense"]
    cotangent = normal(9, *jax.eval_shape(fun, *args).shape)

    def lowered(**backend):
        transformed = mixed_precision(fun, FORCED, **backend)
        return jax.jit(lambda *args: passes_of(transformed, args, cotangent)).lower(*args)

    native, reference = lowered(), lowered(backend="reference")
    assert "custom_call @dfpjax" in native.as_text()
    assert "custom_call" not in reference.as_text()
    jax.tree.map(np.testing.assert_array_equal, reference.compile()(*args), native.compile()(*args))


def test_the_backend_is_checked():
    message = "mixed_precision: backend must be one of 'auto', 'reference', got 'gpu'"
    with pytest.raises(ValueError, match=message):
        mixed_precision(dense, backend="gpu")
    assert mixed_precision(backend="reference")(dense).__wrapped__ is dense
