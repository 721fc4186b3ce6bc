"""Sharded programs: types, values and gradients, with automatic, explicit and manual axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import REALIGNED, floats, normal, quantized, relative_error

import dfpjax
from dfpjax.transform import mixed_precision

COUNT = len(jax.devices())


def dense(w, x):
    return jnp.tanh(x @ w)


def convolve(w, x):
    kernel, images = w.reshape(2, 2, 2, 2), x.reshape(-1, 2, 2, 2)
    return lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.jax_releases
@pytest.mark.jax_releases
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(("fun", "width"), [(dense, 4), (convolve, 8)], ids=["dense", "conv"])
def test_sharded_batch(kind, fun, width):
    mesh = jax.make_mesh((COUNT,), ("data",), axis_types=(kind,))
    w = jax.device_put(np.asarray(normal(0, 4, 4)), NamedSharding(mesh, P()))
    x = jax.device_put(np.asarray(normal(1, 2 * COUNT, width)), NamedSharding(mesh, P("data")))

    def loss(fun):
        return lambda w, x: (fun(w, x) ** 2).sum()

    transformed = mixed_precision(fun, FORCED)
    with jax.set_mesh(mesh):
        run = jax.jit(
            lambda *args: [(f(*args), jax.grad(loss(f), (0, 1))(*args)) for f in (transformed, fun)]
        )
        actual, expected = run(w, x)
        assert jax.tree.map(jax.typeof, actual) == jax.tree.map(jax.typeof, expected)
        assert 0 < relative_error(actual[0], expected[0]) < 1e-3
        assert 0 < relative_error(actual[1], expected[1]) < 2e-3
    alone = jax.jit(transformed)(np.asarray(w), np.asarray(x))
    np.testing.assert_allclose(np.asarray(actual[0]), np.asarray(alone), rtol=1e-6, atol=1e-6)


def test_shard_map_inside_and_outside():
    mesh = jax.make_mesh((COUNT,), ("data",), axis_types=(AxisType.Auto,))

    def shard(fun):
        specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
        return jax.shard_map(fun, mesh=mesh, check_vma=False, **specs)

    w, x = normal(0, 4, 4), normal(1, 2 * COUNT, 4)
    inside, outside = mixed_precision(shard(dense), FORCED), shard(mixed_precision(dense, FORCED))
    for transformed in (inside, outside):
        jaxpr = jax.make_jaxpr(transformed)(w, x)
        assert (floats(jaxpr), quantized(jaxpr)) == (0, 1)
        assert relative_error(jax.jit(transformed)(w, x), dense(w, x)) < 1e-3
    (eqn,) = jax.make_jaxpr(inside)(w, x).eqns
    (original,) = jax.make_jaxpr(shard(dense))(w, x).eqns
    for name, value in original.params.items():
        assert name == "jaxpr" or eqn.params[name] == value


@pytest.mark.jax_releases
def test_collectives_stay():
    mesh = jax.make_mesh((COUNT,), ("data",), axis_types=(AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)
    def total(w, x):
        return lax.psum(dense(w, x).sum(), "data")

    w, x = normal(0, 4, 4), normal(1, 2 * COUNT, 4)
    assert relative_error(jax.jit(mixed_precision(total, FORCED))(w, x), total(w, x)) < 1e-3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pmap():
    w, x = normal(0, 4, 4), normal(1, COUNT, 2, 4)
    expected = jax.vmap(dense, (None, 0))(w, x)
    for transformed in (
        mixed_precision(jax.pmap(dense, in_axes=(None, 0)), FORCED),
        jax.pmap(mixed_precision(dense, FORCED), in_axes=(None, 0)),
    ):
        assert 0 < relative_error(transformed(w, x), expected) < 1e-3


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [P("data"), P(None, "data"), P()])
def test_without_jit(kind, spec):
    mesh = jax.make_mesh((COUNT,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        values = jax.device_put(np.asarray(normal(0, 2 * COUNT, 3 * COUNT)), spec)
        for q in (dfpjax.quantize(values), jax.jit(dfpjax.quantize)(values)):
            assert jax.typeof(q.values) == jax.typeof(values).update(dtype=dfpjax.dfp16)
            # The operations of `dequantize` are elementwise: one way of splitting stands for all.
            for x in (q.values, q.mantissa, *([q.dequantize()] if spec == P("data") else [])):
                assert x.sharding.is_equivalent_to(values.sharding, 2)
            np.testing.assert_array_equal(q.mantissa, dfpjax.quantize(np.asarray(values)).mantissa)
            assert dfpjax.DFPArray(q.mantissa, q.exponent).values.sharding == q.values.sharding


def test_without_jit_differentiated():
    mesh = jax.make_mesh((COUNT,), ("data",), axis_types=(AxisType.Auto,))
    w, x = normal(0, 4, 4), normal(1, 2 * COUNT, 4)
    placed = jax.device_put(w, NamedSharding(mesh, P())), jax.device_put(x, NamedSharding(mesh, P("data")))
    transformed = mixed_precision(dense, FORCED)
    expected = jax.jit(jax.grad(lambda w, x: transformed(w, x).sum(), (0, 1)))(w, x)
    for fun in (transformed, jax.jit(transformed)):  # with jit, the saved mantissas are results of a program
        actual = jax.grad(lambda w, x, fun=fun: fun(w, x).sum(), (0, 1))(*placed)
        assert relative_error(actual, expected) < REALIGNED
    with jax.disable_jit():
        assert relative_error(transformed(*placed), transformed(w, x)) < 1e-6
