"""Arguments and results of the transformed function."""

import enum

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from forced import FORCED
from transform_helpers import normal, relative_error

import dfpjax
from dfpjax.transform import mixed_precision

W = normal(0, 6, 6) / 2
X = normal(1, 4, 6)


def layer(w, x):
    return jnp.tanh(x @ w)


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


def test_symbolic_shapes():
    (batch,) = jax.export.symbolic_shape("batch")
    transformed = jax.jit(mixed_precision(layer, FORCED))
    export = jax.export.export(transformed, disabled_checks=dfpjax.export_checks())
    exported = export(W, jax.ShapeDtypeStruct((batch, 6), jnp.float32))
    np.testing.assert_array_equal(exported.call(W, X), transformed(W, X))
