"""The transformed function traces once per signature, and keeps nothing alive."""

import functools
import gc
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED
from jax import lax
from transform_helpers import normal, relative_error

from dfpjax import operations
from dfpjax.transform import mixed_precision

W = normal(0, 6, 6) / 2
X = normal(1, 4, 6)


def layer(w, x):
    return jnp.tanh(x @ w)


def counted(fun):
    """`fun`, and a list that each call of it extends."""
    calls = []

    @functools.wraps(fun)
    def counting(*args, **kwargs):
        calls.append(None)
        return fun(*args, **kwargs)

    return counting, calls


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
    """A list that each compilation extends."""
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
    assert len(rewritten) == 2  # each of both sites once
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
    transformed(X, 0)  # evicts the oldest entry
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
        except Exception as error:  # a thread would lose the assertion
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
