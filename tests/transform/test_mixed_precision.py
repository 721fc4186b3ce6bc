"""The transformed function: its arguments, results, cache and context."""

import enum
import functools
import gc
import inspect
import threading
import time
import weakref

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED, forced
from jax import lax
from transform_helpers import equations, floats, normal, primitives, quantized, relative_error

from dfpjax import operations
from dfpjax.numbers import FixedChain
from dfpjax.policy import OpConfig, PerRole, Policy, Rule, policies
from dfpjax.transform import mixed_precision

W = normal(0, 6, 6) / 2
X = normal(1, 4, 6)


def layer(w, x):
    return jnp.tanh(x @ w)


def counted(fun):
    """`fun`, and a list that grows at each call of it."""
    calls = []

    @functools.wraps(fun)
    def counting(*args, **kwargs):
        calls.append(None)
        return fun(*args, **kwargs)

    return counting, calls


# --- use ------------------------------------------------------------------------------------------


def test_decorator():
    @mixed_precision
    def bare(w, x):
        """Doc."""
        return layer(w, x)

    @mixed_precision(policy=Policy(default=None))
    def with_policy(w, x):
        return layer(w, x)

    large = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    assert quantized(jax.make_jaxpr(bare)(large, large)) == 1
    assert quantized(jax.make_jaxpr(with_policy)(large, large)) == 0
    assert (bare.__name__, bare.__doc__) == ("bare", "Doc.")
    assert list(inspect.signature(bare).parameters) == ["w", "x"]


def test_method():
    class Model:
        w = W

        @mixed_precision(policy=FORCED)
        def __call__(self, x):
            return layer(self.w, x)

    assert relative_error(Model()(X), layer(W, X)) < 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixed_precision(3), r"mixed_precision: fun must be callable, got 3"),
        (lambda: mixed_precision(Policy()), r"mixed_precision: the policy goes second"),
        (
            lambda: mixed_precision(layer, "paper"),
            r"mixed_precision: policy must be a dfpjax.Policy, got 'paper'",
        ),
    ],
)
def test_misuse_is_told(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_transformations_compose():
    transformed = mixed_precision(layer, FORCED)
    xs = normal(2, 3, 4, 6)
    assert relative_error(jax.vmap(transformed, (None, 0))(W, xs), layer(W, xs)) < 1e-3
    expected = jax.hessian(lambda w: layer(w, X[:1, :2] @ w[:2]).sum())
    actual = jax.hessian(mixed_precision(lambda w: layer(w, X[:1, :2] @ w[:2]).sum(), FORCED))
    assert relative_error(jax.jit(actual)(W), jax.jit(expected)(W)) < 1e-2
    _, tangent = jax.jvp(transformed, (W, X), (W, X))
    assert relative_error(tangent, jax.jvp(layer, (W, X), (W, X))[1]) < 1e-3
    assert relative_error(jax.linearize(transformed, W, X)[1](W, X), tangent) < 1e-5
    assert jax.eval_shape(transformed, W, X) == jax.eval_shape(layer, W, X)
    scanned = lax.scan(lambda c, _: (transformed(W, c), None), X, length=2)[0]
    assert relative_error(scanned, layer(W, layer(W, X))) < 1e-3
    checkpointed = jax.grad(lambda w: jax.checkpoint(transformed)(w, X).sum())(W)
    assert relative_error(checkpointed, jax.grad(lambda w: layer(w, X).sum())(W)) < 1e-3


# --- what is rewritten ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_result_types_are_kept(dtype):
    w, x = W.astype(dtype), X.astype(dtype)
    transformed = mixed_precision(lambda w, x: x @ w, FORCED)
    assert jax.typeof(transformed(w, x)) == jax.typeof(x @ w)
    assert relative_error(transformed(w, x), x @ w) < 3 * jnp.finfo(dtype).eps + 1e-4
    gradient = jax.grad(lambda w: transformed(w, x).astype(jnp.float32).sum())(w)
    assert gradient.dtype == dtype


def test_float64():
    with jax.enable_x64(True):
        w, x = np.asarray(W, np.float64), np.asarray(X, np.float64)
        y = mixed_precision(lambda w, x: jnp.matmul(x, w), FORCED)(w, x)
        assert y.dtype == np.float64
        assert relative_error(y, x @ w) < 1e-3


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

    expected = jax.jit(jax.grad(loss(convolve), (0, 1)))(image, kernel)
    for gradient in (
        jax.grad(loss(mixed_precision(convolve, FORCED)), (0, 1)),
        mixed_precision(jax.grad(loss(convolve), (0, 1)), FORCED),
    ):
        assert floats(jax.make_jaxpr(gradient)(image, kernel)) == 0
        assert 0 < relative_error(jax.jit(gradient)(image, kernel), expected) < 1e-3


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
    """Small rows and columns keep their precision if they have exponents of their own."""
    scales = 10.0 ** -np.arange(6)
    x, w = normal(0, 6, 64) * scales[:, None].astype(np.float32), normal(1, 64, 6) * scales.astype(np.float32)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    chain = FixedChain(256, 2, saturate=True)
    errors = {}
    for name, fields in {
        "tensor": {}, "channel": {"granularity": "channel"}, "chain": {"accumulation": chain},
    }.items():  # fmt: skip
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
        assert found["conv_general_dilated"] == 2  # the first one's fprop and wgrad
        assert (
            found["dfp_contract"] + found["dfp_contract_linear"] == 3
        )  # the second one's fprop, dgrad and wgrad


def test_names_and_source_are_kept():
    def net(w, x):
        with jax.named_scope("net"):
            return layer(w, x)

    def lines(fun):
        text = jax.jit(fun).lower(W, X).as_text(debug_info=True)
        return [line for line in text.splitlines() if "net/" in line]

    assert any("net/dfp_quantize" in line for line in lines(mixed_precision(net, FORCED)))
    for eqn in jax.make_jaxpr(mixed_precision(net, FORCED))(W, X).eqns:
        assert str(eqn.source_info.name_stack) == "net"
        assert "test_mixed_precision.py" in jax.extend.source_info_util.summarize(eqn.source_info)


# --- arguments and results ------------------------------------------------------------------------


class Mode(enum.IntEnum):
    LINEAR = 0
    TANH = 1


def test_static_arguments_and_results():
    sentinel = object()

    def fun(w, x, *, train, mode, names, scale, method, size, nothing=None):
        assert nothing is None and isinstance(names[0], str) and type(size) is int
        y = method(x @ w)[:, :size] * scale
        y = jnp.tanh(y) if mode is Mode.TANH else y
        return {"y": y, "train": not train, "names": names, "sentinel": sentinel, "n": size, "none": None}

    kwargs = {"mode": Mode.TANH, "names": ["a", "b"], "scale": 0.5, "method": jnp.sin, "size": 3}
    transformed = mixed_precision(fun, FORCED)
    for train in (True, False, True):
        expected = fun(W, X, train=train, **kwargs)
        actual = transformed(W, X, train=train, **kwargs)
        assert relative_error(actual.pop("y"), expected.pop("y")) < 1e-3
        assert actual == expected
        assert type(actual["train"]) is bool and actual["sentinel"] is sentinel


def test_numbers_are_told_apart():
    seen = []

    @mixed_precision
    def fun(x, number):
        seen.append(number)
        return x * number

    x = jnp.arange(3)
    for number in (1, True, 1.0, 1 + 0j, 0.0, -0.0):
        assert jax.typeof(fun(x, number)) == jax.typeof(x * number)
        fun(x, number)
    assert [(type(n), str(n)) for n in seen] == [
        (int, "1"), (bool, "True"), (float, "1.0"), (complex, "(1+0j)"), (float, "0.0"), (float, "-0.0"),
    ]  # fmt: skip


def test_numbers_under_jit_are_arrays():
    assert jax.jit(mixed_precision(lambda x, n: x * n))(X, 2.0).dtype == jnp.float32
    assert jax.grad(mixed_precision(lambda n: n * n))(3.0) == 6.0


def test_array_like_arguments():
    key = jax.random.key(0)

    def fun(w, x, key, s):
        return (x @ w + jax.random.normal(key, (4, 6))) * s

    actual = mixed_precision(fun, FORCED)(np.asarray(W), np.asarray(X), key, np.float32(2))
    assert isinstance(actual, jax.Array)
    assert relative_error(actual, fun(W, X, key, 2)) < 1e-3


def test_results_that_are_arguments_or_constants():
    constant = jnp.ones(2)
    out = mixed_precision(lambda w, x: (w, constant, np.zeros(2), layer(w, x)), FORCED)(W, X)
    assert out[0] is W
    np.testing.assert_array_equal(out[1], constant)
    assert isinstance(out[2], jax.Array)


def test_closed_over_tracers_are_not_kept():
    weights = {}
    transformed = mixed_precision(lambda x: layer(weights["w"], x).sum(), FORCED)

    @jax.jit
    def gradient(w):
        def loss(w):
            weights["w"] = w
            return transformed(X)

        return jax.grad(loss)(w)

    for w in (W, 2 * W):
        assert relative_error(gradient(w), jax.grad(lambda w: layer(w, X).sum())(w)) < 1e-3
        gradient.clear_cache()


def test_functions_with_static_and_donated_arguments():
    doubled = jax.jit(lambda w, x, n: (2 * w, x[:n] @ w), donate_argnums=0, static_argnums=2)
    w = W + 0
    assert mixed_precision(doubled, FORCED)(w, X, 2)[1].shape == (2, 6)
    assert w.is_deleted()
    sliced = jax.jit(mixed_precision(lambda x, *, n: x[:n] @ W, FORCED), static_argnames="n")
    assert sliced(X, n=3).shape == (3, 6)


def test_symbolic_shapes_stay_float32():
    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(jax.jit(mixed_precision(layer, FORCED)))(
        W, jax.ShapeDtypeStruct((batch, 6), jnp.float32)
    )
    np.testing.assert_allclose(exported.call(W, X), layer(W, X), rtol=1e-5, atol=1e-6)


# --- the cache ------------------------------------------------------------------------------------


def test_traced_once_per_signature():
    fun, calls = counted(layer)
    transformed = mixed_precision(fun, FORCED)
    for _ in range(3):
        transformed(W, X)
    assert len(calls) == 1
    transformed(2 * W, -X)
    jax.jit(transformed)(W, X)
    jax.grad(lambda w: transformed(w, X).sum())(W)
    jax.vmap(transformed, (None, 0))(W, X[None])
    assert len(calls) == 1
    transformed(W, X[:2])
    assert len(calls) == 2
    transformed(W, x=X)
    assert len(calls) == 3
    transformed(W.astype(jnp.bfloat16), X)
    assert len(calls) == 4


@pytest.fixture
def compilations():
    """A list that grows at each compilation."""
    seen = []

    def listen(event, *_, **__):
        if event.endswith("/backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def deep(w, x):
    hidden = jax.jit(lambda x: jax.nn.relu(x @ w))(x)
    return lax.scan(lambda x, _: (jax.nn.softmax(layer(w, x)), None), hidden, length=2)[0].sum()


@pytest.mark.parametrize(
    "transformation",
    [
        lambda f: f,
        jax.jit,
        lambda f: jax.vmap(f, (None, 0)),
        lambda f: jax.jit(jax.grad(f)),
        lambda f: jax.jit(jax.vmap(jax.grad(f), (None, 0))),
    ],
)
def test_second_call_rewrites_and_compiles_nothing(transformation, compilations, monkeypatch):
    operation, rewritten = counted(operations.dot_general)
    monkeypatch.setattr(operations, "dot_general", operation)
    fun = transformation(mixed_precision(deep, FORCED))
    args = W, jnp.stack([X, X])
    fun(*args)
    assert len(rewritten) == 2  # both sites, once
    assert compilations
    compilations.clear()
    fun(*args)
    assert len(rewritten) == 2
    assert not compilations


def test_traced_anew_where_the_environment_differs():
    fun, calls = counted(lambda w, x: lax.psum(layer(w, x), "batch"))
    transformed = mixed_precision(fun, FORCED)
    for size in (2, 3, 2):
        expected = size * layer(W, X)
        out = jax.vmap(lambda _: transformed(W, X), axis_name="batch", axis_size=size)(jnp.zeros(size))
        assert relative_error(out, jnp.broadcast_to(expected, out.shape)) < 1e-3
    assert len(calls) == 2

    fun, calls = counted(layer)
    transformed = mixed_precision(fun, FORCED)
    transformed(W, X)
    with jax.numpy_dtype_promotion("strict"):
        transformed(W, X)
    assert len(calls) == 2


def test_weak_types_are_told_apart():
    fun, calls = counted(lambda x: x * jnp.ones(2, jnp.bfloat16))
    transformed = mixed_precision(fun, FORCED)
    strong, weak = jnp.asarray(1.0, jnp.float32), jnp.asarray(1.0)
    assert [transformed(strong).dtype, transformed(weak).dtype] == [jnp.float32, jnp.bfloat16]
    assert len(calls) == 2


def test_unhashable_static_arguments_are_traced_anew():
    fun, calls = counted(lambda x, options: x @ W if "dot" in options else x)
    transformed = mixed_precision(fun, FORCED)
    assert relative_error(transformed(X, {"dot"}), X @ W) < 1e-3
    assert transformed(X, set()) is X
    assert len(calls) == 2


def test_cache_is_bounded():
    from dfpjax.transform._mixed_precision import PROGRAMS_KEPT

    fun, calls = counted(lambda x, n: x + n)
    transformed = mixed_precision(fun, FORCED)
    for n in range(PROGRAMS_KEPT + 1):
        transformed(X, n)
    transformed(X, PROGRAMS_KEPT)
    assert len(calls) == PROGRAMS_KEPT + 1
    transformed(X, 0)  # the oldest one is gone
    assert len(calls) == PROGRAMS_KEPT + 2


def test_arguments_are_not_kept_alive():
    transformed = mixed_precision(layer, FORCED)
    w = W + 1
    alive = weakref.ref(w)
    transformed(w, X).block_until_ready()
    del w
    gc.collect()
    assert alive() is None


def test_the_function_is_not_kept_alive():
    transformed = mixed_precision(lambda w, x: layer(w, x), FORCED)
    alive = weakref.ref(transformed.__wrapped__)
    transformed(W, X)
    del transformed
    gc.collect()
    assert alive() is None


def test_concurrent_first_calls():
    def slow(w, x):
        time.sleep(0.02)  # lets the threads trace at the same time
        return layer(w, x)

    transformed = mixed_precision(slow, FORCED)
    results, errors, start = {}, [], threading.Barrier(8)

    def call(i):
        try:
            start.wait()
            for _ in range(3):
                results[i] = transformed(W, X[: 1 + i % 2])
        except Exception as error:  # an assertion in a thread is lost
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for i, result in results.items():
        np.testing.assert_array_equal(result, transformed(W, X[: 1 + i % 2]))


def test_recursion():
    @mixed_precision(policy=FORCED)
    def power(w, x, n):
        return x if n == 0 else power(w, layer(w, x), n - 1)

    assert relative_error(power(W, X, 3), layer(W, layer(W, layer(W, X)))) < 1e-3


# --- errors ---------------------------------------------------------------------------------------


@pytest.fixture
def broken_dot(monkeypatch):
    """Stands in for an operation that refuses its operands."""

    def use(error):
        def refuse(*args, **kwargs):
            raise error

        monkeypatch.setattr("dfpjax.operations.dot_general", refuse)

    return use


def test_errors_name_layer_line_and_remedy(broken_dot):
    broken_dot(ValueError("chain too long"))

    def net(w, x):
        with jax.named_scope("Net"), jax.named_scope("Dense_0"):
            return jax.jit(layer)(w, x)

    with pytest.raises(ValueError) as caught:
        mixed_precision(net, FORCED)(W, X)
    text = str(caught.value)
    assert "dot_general of layer 'Net/Dense_0' at " in text
    assert "test_mixed_precision.py:" in text
    assert "(f32[4,6] x f32[6,6]) cannot be computed in dynamic fixed point: chain too long" in text
    assert "keep it in float32 with the rule dfpjax.Rule('Net/Dense_0', None)" in text
    mixed_precision(net, forced(Rule("Net/Dense_0", None)))(W, X)


def test_errors_of_nameless_layers(broken_dot):
    broken_dot(ZeroDivisionError("oh"))
    with pytest.raises(
        RuntimeError, match=r"dot_general of layer 'w' at .*: oh\nEither mend that, or keep it"
    ):
        mixed_precision(layer, FORCED)(W, X)
    with pytest.raises(RuntimeError, match=r"give it a name with jax\.named_scope"):
        mixed_precision(lambda x: jnp.sin(x) @ jnp.cos(x.T), FORCED)(X)


def test_the_functions_own_errors_pass():
    def fun(w, x):
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        mixed_precision(fun, FORCED)(W, X)
    with pytest.raises(
        jax.errors.TracerBoolConversionError, match=r"tracing the function <lambda> at .*test_mixed_prec"
    ):
        mixed_precision(lambda x: x if x.sum() > 0 else -x, FORCED)(X)
