"""`fold_batch_norm`, against the unfolded program in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from jax import lax

import dfpjax

FORCED = dfpjax.Policy(default=dfpjax.OpConfig(force=True))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def randomized(variables):
    """Variables as after training: no mean is zero and no variance one."""
    leaves, tree = jax.tree.flatten(variables)
    random = np.random.default_rng(1)
    leaves = [x + np.float32(0.5) * random.random(x.shape, np.float32) if x.ndim == 1 else x for x in leaves]
    return jax.tree.unflatten(tree, leaves)


def in_float64(fun, *args):
    with jax.enable_x64(True):
        args = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), args)
        return np.asarray(fun(*args))


def primitives(fun, *args):
    return [eqn.primitive.name for eqn in jax.make_jaxpr(fun)(*args).eqns]


def check(fun, variables, *args, folded, tolerance=1e-6, in_x64=True):
    """Fold, compare, and see that no normalization is left."""
    found = dfpjax.fold_batch_norm(fun, variables, *args, policy=FORCED)
    assert [kernel for kernel, _ in found.report.folded] == folded
    assert jax.tree.structure(found.variables) == jax.tree.structure(variables)
    exact = in_float64(fun, variables, *args) if in_x64 else fun(variables, *args)
    assert oracle.relative_error(found.fun(found.variables, *args), exact) < tolerance
    assert oracle.relative_error(jax.jit(found.fun)(found.variables, *args), exact) < tolerance
    in_dfp16 = dfpjax.mixed_precision(found.fun, FORCED)(found.variables, *args)
    assert oracle.relative_error(in_dfp16, exact) < max(5e-4, tolerance)
    assert found.report.float32.relative < tolerance and found.report.dfp16.relative < max(5e-4, tolerance)
    return found


class Layers(nn.Module):
    """A convolution and a dense layer, each with a batch norm."""

    groups: int = 1
    bias: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, dtype=self.dtype)
        x = nn.Conv(8, (3, 3), feature_group_count=self.groups, use_bias=self.bias, dtype=self.dtype)(x)
        x = nn.relu(norm()(x))
        return norm(use_scale=False)(nn.Dense(6, dtype=self.dtype)(x.mean((1, 2))))


def layers(**kwargs):
    model, x = Layers(**kwargs), normal(5, 6, 6, 4)
    return model, randomized(jax.jit(model.init)(jax.random.key(0), x)), x


KERNELS = ["params/Conv_0/kernel", "params/Dense_0/kernel"]


@pytest.mark.jax_releases
@pytest.mark.parametrize("kwargs", [{}, {"groups": 4}, {"groups": 2, "bias": True}], ids=str)
def test_linen(kwargs):
    model, variables, x = layers(**kwargs)
    found = check(model.apply, variables, x, folded=KERNELS)
    assert not set(primitives(found.fun, found.variables, x)) & {"sub", "rsqrt", "mul"}
    assert "folded into params/Conv_0/kernel, shift in params/BatchNorm_0/bias" in str(found.report)


def test_other_shapes_and_transformations():
    model, variables, x = layers()
    folded, new, _ = dfpjax.fold_batch_norm(model.apply, variables, jax.ShapeDtypeStruct(x.shape, x.dtype))
    more = normal(3, 5, 8, 4)
    np.testing.assert_allclose(folded(new, more), model.apply(variables, more), rtol=1e-4, atol=1e-5)
    mapped = jax.vmap(folded, (None, 0))(new, x[:, None])
    np.testing.assert_allclose(mapped[:, 0], folded(new, x), rtol=1e-4, atol=1e-5)
    programs = (folded, new), (model.apply, variables)
    gradients = [jax.grad(lambda x, f=f, v=v: f(v, x).sum())(x) for f, v in programs]
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-5)


def test_no_error_is_measured_without_numbers():
    model, variables, x = layers()
    report = dfpjax.fold_batch_norm(model.apply, variables, jax.ShapeDtypeStruct(x.shape, x.dtype)).report
    assert report.float32 is report.dfp16 is report.dfp16_before is None
    assert "float32" not in str(report)


def test_what_nothing_reads_is_nan():
    model, variables, x = layers()
    found = dfpjax.fold_batch_norm(model.apply, variables, x)
    assert np.isnan(found.variables["batch_stats"]["BatchNorm_0"]["mean"]).all()
    assert np.isnan(model.apply(found.variables, x)).all()  # the old function, which is wrong here, says so
    assert np.isfinite(variables["batch_stats"]["BatchNorm_0"]["mean"]).all()


@pytest.mark.jax_releases
@pytest.mark.parametrize("jit", [False, True])
def test_nnx(jit):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.dense = nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x):
            return self.dense(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    model = Model(nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)

    def fun(state, x):
        return nnx.merge(graph, state)(x)

    check(jax.jit(fun) if jit else fun, randomized(state), normal(5, 6, 6, 4), folded=["conv/kernel"])


def batch_norm(p, y):
    return p["gamma"] * (y - p["mean"]) / jnp.sqrt(p["var"] + 1e-3) + p["beta"]


def with_statistics(channels, shape=None):
    values = {name: normal(channels, seed=i) for i, name in enumerate(("gamma", "beta", "mean"), 1)}
    values["var"] = 1 + normal(channels, seed=4) ** 2
    return {name: x.reshape(shape or x.shape) for name, x in values.items()}


def conv(x, kernel, **kwargs):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **kwargs)


NHWC = ("NHWC", "HWIO", "NHWC")
PLAIN = {
    "dense": (
        lambda p, x: batch_norm(p, x @ p["w"] + p["b"]),
        {"w": normal(7, 5), "b": normal(5, seed=9), **with_statistics(5)},
        normal(3, 7),
    ),
    "kernel on the left": (
        lambda p, x: batch_norm(p, lax.dot_general(p["w"], x, (((0,), (1,)), ((), ())))),
        {"w": normal(7, 5), **with_statistics(5, (5, 1))},
        normal(3, 7),
    ),
    "channels first": (
        lambda p, x: batch_norm(p, conv(x, p["w"])),
        {"w": normal(6, 4, 3, 3), **with_statistics(6, (6, 1, 1))},
        normal(2, 4, 5, 5),
    ),
    "difference": (
        lambda p, x: p["beta"] - (x @ p["w"]) * p["gamma"],
        {"w": normal(7, 5), **with_statistics(5)},
        normal(3, 7),
    ),
    "jitted twice": (
        lambda p, x: sum(jax.jit(lambda q, x: batch_norm(q, x @ q["w"]))(q, x) for q in p),
        [{"w": normal(7, 5, seed=i), **with_statistics(5)} for i in range(2)],
        normal(3, 7),
    ),
    "depthwise": (
        lambda p, x: batch_norm(p, conv(x, p["w"], feature_group_count=4, dimension_numbers=NHWC)),
        {"w": normal(3, 3, 1, 8), **with_statistics(8)},
        normal(2, 5, 5, 4),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_functions(name):
    fun, variables, x = PLAIN[name]
    folded = ["0/w", "1/w"] if isinstance(variables, list) else ["w"]
    check(fun, variables, x, folded=folded)


def test_bfloat16():
    model, variables, x = layers(dtype=jnp.bfloat16)
    check(model.apply, variables, x, folded=KERNELS, tolerance=2e-2, in_x64=False)


@pytest.mark.jax_releases
def test_frozen_weights():
    model, variables, x = layers()
    folded, new, _ = dfpjax.fold_batch_norm(model.apply, variables, x)
    frozen = dfpjax.freeze(new, FORCED, fun=folded, args=(x,))
    in_dfp16 = jax.jit(dfpjax.mixed_precision(folded, FORCED))
    np.testing.assert_array_equal(in_dfp16(frozen, x), in_dfp16(new, x))
    assert oracle.relative_error(folded(frozen, x), folded(new, x)) < 1e-3
    report = dfpjax.explain(folded, frozen, x, policy=FORCED)
    assert all("reads frozen weights" in op.reason for op in report.ops) and len(report.ops) == 2


def only(fun, variables, *args):
    """The reason why the only other product of a program stays."""
    ((_, reason),) = dfpjax.fold_batch_norm(fun, variables, *args).report.kept
    return reason


def test_reasons_to_stay():
    p, x = {"w": normal(5, 5), **with_statistics(5)}, normal(3, 5)
    first = {"first": {"w": normal(5, 5, seed=7), **with_statistics(5)}}

    def behind(fun):
        return lambda p, x: fun(p, batch_norm(p["first"], x @ p["first"]["w"]))

    def reason(fun, **more):
        return only(behind(fun), {**p, **first, **more}, x)

    several = reason(lambda p, x: (lambda y: batch_norm(p, y) + y)(x @ p["w"]))
    assert several == "more than a normalization reads its result"
    shared = reason(lambda p, x: batch_norm(p, x @ p["w"]) + p["w"].sum())
    assert shared == "its kernel is not an array of the variables that it alone reads"
    transposed = reason(lambda p, x: batch_norm(p, x @ p["w"].T))
    assert transposed == shared
    arrays = ("gamma", "beta", "mean", "var")
    others = reason(lambda p, x: jnp.tanh(batch_norm(p, x @ p["w"])) + sum(p[name] for name in arrays))
    assert others.startswith("no array of the variables")
    assert reason(lambda p, x: x @ p["w"] * 2) == "no normalization follows"


def test_errors():
    model, variables, x = layers()
    training = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    message = "params/Conv_0/kernel is normalized by the statistics of the batch.*use_running_average=True"
    with pytest.raises(ValueError, match=message):
        dfpjax.fold_batch_norm(training, variables, x)
    folded, new, _ = dfpjax.fold_batch_norm(model.apply, variables, x)
    with pytest.raises(ValueError, match="statistics of the batch"):
        folded(new, x, train=True, mutable=["batch_stats"])
    with pytest.raises(ValueError, match=r"there is nothing to fold in fun .*no normalization follows"):
        dfpjax.fold_batch_norm(lambda w, x: x @ w, normal(5, 5), normal(3, 5))
    with pytest.raises(TypeError, match="fold first, then freeze"):
        dfpjax.fold_batch_norm(model.apply, dfpjax.freeze(variables), x)
    with pytest.raises(TypeError, match="variables must have numbers"):
        jax.jit(lambda v: dfpjax.fold_batch_norm(model.apply, v, x).variables)(variables)
    with pytest.raises(TypeError, match="fold_batch_norm: fun must be callable"):
        dfpjax.fold_batch_norm(variables, model.apply, x)
    with pytest.raises(TypeError, match="policy must be a"):
        dfpjax.fold_batch_norm(model.apply, variables, x, policy="paper")


def test_other_normalizations_with_other_arguments():
    p, x = {"w": normal(5, 5), **with_statistics(5)}, normal(3, 5)

    def fun(p, x, plain=False):
        y = x @ p["w"]
        return y if plain else batch_norm(p, y)

    folded, new, _ = dfpjax.fold_batch_norm(fun, p, x)
    with pytest.raises(ValueError, match=r"other normalizations than the one that was folded \(w\)"):
        folded(new, x, plain=True)


def test_nnx_in_training():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense, self.norm = nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    model = Model(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        dfpjax.fold_batch_norm(lambda model, x: model(x), model, normal(3, 4))
    graph, state = nnx.split(model)
    with pytest.raises(ValueError, match="statistics of the batch"):
        dfpjax.fold_batch_norm(lambda state, x: nnx.merge(graph, state)(x), state, normal(3, 4))
