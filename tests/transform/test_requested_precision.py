"""Operations that ask for float64 or `precision=HIGHEST` stay as they are, unless the policy overrides it."""

import functools

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import optax
import pytest
from flax import linen as nn
from forced import FORCED, forced
from jax import lax
from jax.lax import DotAlgorithm, DotAlgorithmPreset, Precision
from transform_helpers import equations, floats, normal, quantized, relative_error

import dfpjax
from dfpjax import explain
from dfpjax.policy import OpConfig, Policy, Rule, policies
from dfpjax.transform import mixed_precision

OVERRIDE = OpConfig(force=True, override_precision=True)
F32, F64 = np.dtype("float32"), np.dtype("float64")

W = normal(0, 6, 6) / 2
X = normal(1, 4, 6)
KERNEL = normal(2, 3, 3, 2, 4)
IMAGE = normal(3, 1, 5, 5, 2)


def shape(*sizes, dtype=F32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def counts(fun, *args, policy=FORCED):
    """The numbers of operations left as they are and of operations in dynamic fixed point."""
    jaxpr = jax.make_jaxpr(mixed_precision(fun, policy))(*args)
    return floats(jaxpr), quantized(jaxpr)


def dot(w, x, precision=None, dtype=None):
    return lax.dot(x, w, precision=precision, preferred_element_type=dtype)


def conv(w, x, precision=None, dtype=None):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision, preferred_element_type=dtype,
    )  # fmt: skip


ARGUMENTS = {dot: (W, X), conv: (KERNEL, IMAGE)}
operations = pytest.mark.parametrize("operation", [dot, conv])


# --- a Gaussian process -----------------------------------------------------------------------------------

SCALE = 2.0
POINTS = np.random.default_rng(4).uniform(-2, 2, (12, 3))
TARGETS = np.sin(POINTS.sum(1))
ELSEWHERE = POINTS[:4] + 0.3


def squares(a, b, xp):
    """Squared distances, from a dot product as in many Gaussian process libraries."""
    return xp.sum(a**2, 1)[:, None] + xp.sum(b**2, 1) - 2 * a @ b.T


def posterior_mean(scale, points, targets, elsewhere):
    gram = jnp.exp(-squares(points, points, jnp) / scale) + 1e-4 * jnp.eye(len(points))
    factor = jax.scipy.linalg.cho_factor(gram, lower=True)
    weights = jax.scipy.linalg.cho_solve(factor, targets)
    with jax.named_scope("prediction"):
        return jnp.exp(-squares(elsewhere, points, jnp) / scale) @ weights


def negative_log_likelihood(scale, points, targets):
    gram = jnp.exp(-squares(points, points, jnp) / scale) + 1e-4 * jnp.eye(len(points))
    lower = jnp.linalg.cholesky(gram)
    whitened = jax.scipy.linalg.solve_triangular(lower, targets, lower=True)
    return 0.5 * whitened @ whitened + jnp.log(jnp.diag(lower)).sum()


def posterior_error(policy):
    """Relative to NumPy's."""
    gram = np.exp(-squares(POINTS, POINTS, np) / SCALE) + 1e-4 * np.eye(len(POINTS))
    expected = np.exp(-squares(ELSEWHERE, POINTS, np) / SCALE) @ np.linalg.solve(gram, TARGETS)
    with jax.enable_x64(True):
        actual = jax.jit(mixed_precision(posterior_mean, policy))(SCALE, POINTS, TARGETS, ELSEWHERE)
    assert actual.dtype == np.float64
    return relative_error(actual, expected)


@pytest.mark.parametrize("policy", [None, FORCED, policies.paper()], ids=["default", "forced", "paper"])
def test_a_gaussian_process_keeps_its_digits(policy):
    assert posterior_error(policy) < 1e-10


def test_it_loses_them_only_if_a_rule_says_so():
    assert 1e-6 < posterior_error(forced(Rule("^prediction$", OVERRIDE))) < 1e-2


def test_the_gradient_of_its_likelihood_keeps_its_digits():
    distances = squares(POINTS, POINTS, np)
    kernel = np.exp(-distances / SCALE)
    inverse = np.linalg.inv(kernel + 1e-4 * np.eye(len(POINTS)))
    weights = inverse @ TARGETS
    # Rasmussen and Williams, Gaussian Processes for Machine Learning, equation 5.9.
    slope = kernel * distances / SCALE**2
    expected = 0.5 * np.trace((inverse - np.outer(weights, weights)) @ slope)
    with jax.enable_x64(True):
        gradients = (
            jax.grad(mixed_precision(negative_log_likelihood, FORCED)),
            mixed_precision(jax.grad(negative_log_likelihood), FORCED),
        )
        actual = jax.jit(lambda *args: [gradient(*args) for gradient in gradients])(SCALE, POINTS, TARGETS)
    assert max(abs(np.asarray(actual) / expected - 1)) < 1e-9


# --- what counts as asking --------------------------------------------------------------------------------

ASKING = [
    "highest",
    "float32",
    Precision.HIGHEST,
    ("default", "highest"),
    (Precision.HIGHEST, Precision.DEFAULT),
    (Precision.HIGH, Precision.HIGHEST),
    "F32_F32_F32",
    DotAlgorithmPreset.F64_F64_F64,
    DotAlgorithmPreset.BF16_BF16_F32_X6,
    DotAlgorithmPreset.BF16_BF16_F32_X9,
    DotAlgorithmPreset.TF32_TF32_F32_X3,
    DotAlgorithm(jnp.float32, jnp.float32, jnp.float32),
    DotAlgorithm(jnp.bfloat16, jnp.float32, jnp.float32),
    DotAlgorithm(jnp.bfloat16, jnp.bfloat16, jnp.float32, num_primitive_operations=6),
    DotAlgorithm(jnp.float16, jnp.float16, jnp.float32, 2, 2, 3),
]
NOT_ASKING = [
    None,
    "default",
    "high",
    "tensorfloat32",
    Precision.DEFAULT,
    (Precision.HIGH, Precision.DEFAULT),
    DotAlgorithmPreset.DEFAULT,
    "BF16_BF16_F32",
    "F16_F16_F32",
    DotAlgorithmPreset.BF16_BF16_F32_X3,
    DotAlgorithmPreset.TF32_TF32_F32,
    DotAlgorithm(jnp.float16, jnp.float16, jnp.float32),
    DotAlgorithm(jnp.bfloat16, jnp.bfloat16, jnp.float32, num_primitive_operations=3),
]


@operations
@pytest.mark.parametrize("precision", ASKING, ids=str)
def test_these_precisions_stay(operation, precision):
    args = ARGUMENTS[operation]
    fun = functools.partial(operation, precision=precision)
    assert counts(fun, *args) == (1, 0)
    assert counts(fun, *args, policy=Policy(default=OVERRIDE)) == (0, 1)


@operations
@pytest.mark.parametrize("precision", NOT_ASKING, ids=str)
def test_these_precisions_run_in_dynamic_fixed_point(operation, precision):
    fun = functools.partial(operation, precision=precision)
    assert counts(fun, *ARGUMENTS[operation]) == (0, 1)


def test_what_stays_has_the_bits_of_the_program_without_the_transform():
    fun = functools.partial(dot, precision="highest")
    np.testing.assert_array_equal(mixed_precision(fun, FORCED)(W, X), fun(W, X))


@operations
@pytest.mark.parametrize("precision", ["highest", "F32_F32_F32"])
def test_the_users_default_precision_counts(operation, precision):
    args = ARGUMENTS[operation]
    transformed = mixed_precision(operation, FORCED)
    assert quantized(jax.make_jaxpr(transformed)(*args)) == 1
    with jax.default_matmul_precision(precision):
        assert quantized(jax.make_jaxpr(transformed)(*args)) == 0
        explicit = functools.partial(operation, precision="default")
        assert counts(explicit, *args) == (0, 1)
    assert quantized(jax.make_jaxpr(transformed)(*args)) == 1


# The types of rhs, lhs and result.
DTYPES = [
    (dot, F64, F64, None),
    (dot, F64, F32, None),
    (dot, F32, F64, F32),
    (dot, F64, F64, F32),
    (dot, F32, F32, F64),
    (dot, jnp.bfloat16, jnp.bfloat16, F64),
    (conv, F64, F64, None),
    (conv, F32, F32, F64),
]


@pytest.mark.parametrize(("operation", "rhs", "lhs", "out"), DTYPES)
def test_float64_stays_and_so_do_its_gradients(operation, rhs, lhs, out):
    with jax.enable_x64(True):
        w, x = ARGUMENTS[operation]
        args = shape(*w.shape, dtype=rhs), shape(*x.shape, dtype=lhs)
        fun = functools.partial(operation, dtype=out)
        assert counts(fun, *args) == (1, 0)

        def loss(w, x):
            return fun(jnp.sin(w), jnp.sin(x)).astype(F64).sum()

        assert counts(jax.grad(loss, (0, 1)), *args) == (3, 0)


@operations
def test_float32_and_less_run_in_dynamic_fixed_point_beside_float64(operation):
    with jax.enable_x64(True):
        w, x = (v.astype(jnp.float32) for v in ARGUMENTS[operation])

        def both(w, x):
            return operation(w, x), operation(w.astype(F64), x.astype(F64))

        assert counts(both, w, x) == (1, 1)
        assert counts(operation, w.astype(jnp.bfloat16), x.astype(jnp.bfloat16)) == (0, 1)


# --- where operations stand -------------------------------------------------------------------------------

exact = functools.partial(dot, precision="highest")


@jax.custom_vjp
def exact_by_rule(w, x):
    return exact(w, x)


def _backward(residuals, ct):
    w, x = residuals
    return dot(ct, x.T, "highest"), dot(w.T, ct)  # the second does not ask


exact_by_rule.defvjp(lambda w, x: (exact(w, x), (w, x)), _backward)


@jax.custom_jvp
def exact_by_jvp(w, x):
    return exact(w, x)


@exact_by_jvp.defjvp
def _tangent(primals, tangents):
    (w, x), (dw, dx) = primals, tangents
    return exact_by_jvp(w, x), exact(dw, x) + exact(w, dx)


def pair(w, x):
    """One operation that asks, and one that does not."""
    return jnp.tanh(exact(w, jnp.tanh(dot(w, x))))


PLACES = {
    "plain": pair,
    "jit": jax.jit(pair),
    "scan": lambda w, x: lax.scan(lambda c, _: (pair(w, c), None), x, length=2)[0],
    "cond": lambda w, x: lax.cond(x.sum() > 0, pair, lambda w, x: x, w, x),
    "remat": jax.checkpoint(pair),
    "vmap": lambda w, x: jax.vmap(pair, in_axes=(None, 0))(w, x[:, None]),
    "custom_jvp": lambda w, x: exact_by_jvp(w, jnp.tanh(dot(w, x))),
}


def gradient(fun):
    return jax.grad(lambda w, x: (fun(w, x) ** 2).sum(), (0, 1))


def mapped(fun):
    return jax.vmap(fun, in_axes=(None, 0))


def assert_only_requests_stay(fun, *args):
    jaxpr = jax.make_jaxpr(fun)(*args)
    left = [eqn.params["precision"] for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"]
    assert left and set(left) == {(Precision.HIGHEST, Precision.HIGHEST)}
    assert quantized(jaxpr) > 0


@pytest.mark.parametrize("place", PLACES)
def test_requests_hold_everywhere_and_for_gradients(place):
    mixed, fun = functools.partial(mixed_precision, policy=FORCED), PLACES[place]
    assert_only_requests_stay(mixed(fun), W, X)
    assert_only_requests_stay(gradient(mixed(fun)), W, X)
    assert_only_requests_stay(mixed(gradient(fun)), W, X)
    assert_only_requests_stay(mapped(mixed(gradient(fun))), W, X[None])
    assert_only_requests_stay(mixed(mapped(gradient(fun))), W, X[None])


def test_requests_hold_in_a_while_loop():
    def fun(w, x):
        return lax.while_loop(lambda c: exact(w, c).sum() < 0, lambda c: pair(w, c), x)

    assert_only_requests_stay(mixed_precision(fun, FORCED), W, X)


def test_an_operation_of_a_custom_rule_asks_for_itself():
    mixed = functools.partial(mixed_precision, policy=FORCED)
    assert counts(exact_by_rule, W, X) == (1, 0)
    for transformed in (gradient(mixed(exact_by_rule)), mixed(gradient(exact_by_rule))):
        jaxpr = jax.make_jaxpr(transformed)(W, X)
        assert (floats(jaxpr), quantized(jaxpr)) == (2, 1)


# --- rules, and what explain says -------------------------------------------------------------------------


def net(first, second, x):
    with jax.named_scope("first"):
        x = exact(first, x)
    with jax.named_scope("second"):
        return exact(second, x).sum()


def test_a_rule_overrides_the_request_of_a_layer_and_of_its_gradients():
    policy = forced(Rule("^second$", OVERRIDE))
    assert counts(net, W, W, X, policy=policy) == (1, 1)
    assert counts(jax.grad(net, (0, 1, 2)), W, W, X, policy=policy) == (3, 3)
    jaxpr = jax.make_jaxpr(jax.grad(mixed_precision(net, policy), (0, 1, 2)))(W, W, X)
    assert (floats(jaxpr), quantized(jaxpr)) == (3, 3)


def test_overriding_the_request_leaves_the_cost_rule():
    policy = Policy(default=OpConfig(override_precision=True))
    (op,) = explain(exact, W, X, policy=policy).ops
    assert (op.dtype, op.reason) == ("float32", "float32: 144 MAC, below 16 MMAC (else the policy's default)")
    assert explain(exact, shape(512, 512), shape(512, 512), policy=policy).coverage == 1
    assert explain(exact, shape(512, 512), shape(512, 512)).coverage == 0


def test_what_asks_has_its_position_all_the_same():
    """The classifier that `policies.paper` keeps in float32 is the last dot product, whatever it asks for."""

    def classifier(body, head, x):
        return exact(head, dot(body, x))

    ops = explain(classifier, W, W, X, policy=policies.paper()).ops
    assert [op.dtype for op in ops] == ["dfp16", "float32"]
    assert ops[1].rule == Rule(policies.LAST_DOT, None)


@pytest.mark.parametrize(
    ("precision", "asked"),
    [
        ("highest", "precision=HIGHEST"),
        ("F32_F32_F32", "precision=F32_F32_F32"),
        (DotAlgorithm(jnp.float32, jnp.float32, jnp.float32), "a DotAlgorithm of 24 significant bits"),
    ],
)
def test_explain_says_what_is_asked_for(precision, asked):
    report = explain(functools.partial(dot, precision=precision), W, X)
    (op,) = report.ops
    assert (op.dtype, op.fprop, op.dgrad, op.wgrad, op.rule) == (*["float32"] * 4, None)
    assert op.reason == f"asks for {asked}, and override_precision is off (the policy's default)"
    assert op.reason in str(report)
    assert report.coverage == 0


def test_explain_names_float64_and_the_rule():
    rule = Rule("^w$", OpConfig(force=True))
    with jax.enable_x64(True):

        def loss(w, x):  # its result is float32, and so are both operands of the gradient for w
            return dot(w, x, dtype=F32).sum()

        args = shape(6, 6, dtype=F64), shape(4, 6)
        forward, backward = explain(jax.grad(loss), *args, policy=Policy(rules=[rule])).ops
    because = f"and override_precision is off ({rule})"
    assert forward.reason == f"asks for float64, {because}"
    assert backward.reason == f"asks for float64, as its forward operation does, {because}"
    assert (forward.rule, backward.wgrad) == (rule, "float32")


def test_a_rule_that_keeps_an_operation_is_its_reason():
    rule = Rule("^w$", None)
    assert explain(exact, W, X, policy=forced(rule)).ops[0].reason == repr(rule)


def test_sensitivity_leaves_out_what_stays():
    with pytest.raises(ValueError, match=r"no layer run in dynamic fixed point; dfpjax\.explain says why"):
        dfpjax.sensitivity(lambda w, x: exact(w, x).sum(), W, X, policy=FORCED)


# --- libraries --------------------------------------------------------------------------------------------

LAYERS = {
    "Dense": (lambda p: nn.Dense(3, precision=p), (2, 4)),
    "Conv": (lambda p: nn.Conv(3, (3, 3), precision=p), (1, 5, 5, 2)),
    "DenseGeneral": (lambda p: nn.DenseGeneral((2, 3), precision=p), (2, 4)),
    "attention": (lambda p: nn.MultiHeadDotProductAttention(2, precision=p), (1, 3, 4)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("precision", "kept"), [("highest", True), (Precision.HIGHEST, True), (None, False)])
def test_flax_layers(layer, precision, kept):
    make, size = LAYERS[layer]
    model, x = make(precision), shape(*size)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(variables, x):
        return model.apply(variables, x).sum()

    for fun in (model.apply, jax.grad(loss)):
        assert {op.dtype for op in explain(fun, variables, x, policy=FORCED).ops} == {
            "float32" if kept else "dfp16"
        }


def _l_bfgs(params):
    optimizer = optax.lbfgs(0.1, linesearch=None)
    return optimizer.update(params, optimizer.init(params), params)


ROUTINES = {
    "inv": jnp.linalg.inv,
    "pinv": jnp.linalg.pinv,
    "expm": jax.scipy.linalg.expm,
    "gradient of cholesky": jax.grad(lambda a: jnp.linalg.cholesky(a).sum()),
    "gradient of solve": jax.grad(lambda a: jnp.linalg.solve(a, a).sum()),
    "L-BFGS": _l_bfgs,
}


@pytest.mark.parametrize("routine", ROUTINES)
def test_routines_that_ask_inside_stay(routine):
    ops = explain(ROUTINES[routine], shape(6, 6), policy=FORCED).ops
    assert ops and {op.dtype for op in ops} == {"float32"}
