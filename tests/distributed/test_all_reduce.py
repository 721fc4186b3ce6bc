"""Means of gradients that travel as int16, against NumPy's in float64."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dfpjax.distributed import BLOCK, MOST_ADDED, all_reduce_mean

ROOT = Path(__file__).parents[2]
COUNTS = [2, 3, 4]
# More devices than the tests have are simulated by vmap, in which collectives are the same operations.
MANY = [8, 9, 16]


def gradients(devices: int) -> dict[str, np.ndarray]:
    """Of each device, along the first axis: leaves of different sizes and magnitudes."""
    random = np.random.default_rng(devices)
    kernel = random.normal(size=(devices, 60, 77)) * np.exp(2 * random.normal(size=(1, 60, 1)))
    tree = {"kernel": kernel, "bias": random.normal(size=(devices, 7)) * 1e-6, "scale": kernel[:, 0, 0]}
    return jax.tree.map(lambda x: x.astype(np.float32), tree | {"zero": np.zeros((devices, 3))})


def mesh_of(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])


def sharded(devices: int, mean, **options):
    """`mean` of the gradients of each device, and what every device got, along the first axis."""

    def shard(tree):
        result = mean(jax.tree.map(lambda x: x[0], tree))
        return result, jax.tree.map(lambda x: x[None], result)

    return jax.jit(
        jax.shard_map(shard, mesh=mesh_of(devices), in_specs=P("data"), out_specs=(P(), P("data")), **options)
    )


def largest(x: np.ndarray) -> np.ndarray:
    """For each number of a mean, the largest magnitude in its block on any device."""
    flat = np.abs(x).reshape(len(x), -1).max(0)
    blocks = np.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    return np.repeat(blocks.max(1), BLOCK)[: len(flat)].reshape(x.shape[1:])


def assert_close(actual, tree, devices: int) -> None:
    bits = 15 - math.ceil(math.log2(devices)) if devices <= MOST_ADDED else 14
    for name, x in tree.items():
        error = np.abs(np.asarray(actual[name], np.float64) - x.astype(np.float64).mean(0))
        assert actual[name].dtype == np.float32 and actual[name].shape == x.shape[1:]
        assert (error <= 2.0 ** (1 - bits) * largest(x)).all(), name


@pytest.mark.jax_releases
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("devices", COUNTS)
def test_every_device_gets_the_same_mean(devices, rounding):
    tree = gradients(devices)
    mean, of_each = sharded(devices, lambda t: all_reduce_mean(t, "data", rounding=rounding))(tree)
    assert_close(mean, tree, devices)
    for leaf, each in zip(jax.tree.leaves(mean), jax.tree.leaves(of_each), strict=True):
        np.testing.assert_array_equal(np.broadcast_to(leaf, each.shape), each)


@pytest.mark.parametrize("devices", MANY)
def test_any_number_of_devices(devices):
    tree = gradients(devices)
    means = jax.vmap(lambda t: all_reduce_mean(t, "data"), axis_name="data")(tree)
    assert_close(jax.tree.map(lambda x: x[0], means), tree, devices)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.broadcast_to(x[0], x.shape)), means)


@pytest.mark.jax_releases
def test_parts_are_exchanged_between_devices(monkeypatch):
    """As beyond `MOST_ADDED` devices, with their accuracy and in their bytes."""
    monkeypatch.setattr("dfpjax.distributed.MOST_ADDED", 1)
    tree = gradients(4)
    function = sharded(4, lambda t: all_reduce_mean(t, "data"))
    mean, of_each = function(tree)
    assert_close(mean, tree, 16)
    for leaf, each in zip(jax.tree.leaves(mean), jax.tree.leaves(of_each), strict=True):
        np.testing.assert_array_equal(np.broadcast_to(leaf, each.shape), each)
    program = function.lower(tree).compile().as_text()
    assert {"all-gather", "all-to-all"} <= set(re.findall(r"\b(all-gather|all-to-all)\(", program))


@pytest.mark.parametrize("devices", [2, 4, 8, 16])
def test_equal_largest_numbers_do_not_overflow(devices):
    for x in (np.float32(1) - np.float32(2**-24), np.float32(-1), np.float32(3e38)):
        tree = np.full((devices, 5), x)
        mean = jax.vmap(lambda t: all_reduce_mean(t, "data"), axis_name="data")(tree)
        np.testing.assert_allclose(mean, tree, rtol=2.0**-11)


@pytest.mark.parametrize("devices", [2, 4, 8, 9])
def test_what_is_not_finite_has_the_same_effect_as_in_float32(devices):
    tree = gradients(devices)
    kernel = tree["kernel"]
    kernel[0, 0, :4] = [np.nan, np.inf, np.inf, -np.inf]
    kernel[1, 0, :4] = [1, 2, -np.inf, 3]
    kernel[:, 1, 0], kernel[:, 1, 1], kernel[:, 1, 2] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = kernel.mean(0)
    mean = jax.vmap(lambda t: all_reduce_mean(t, "data"), axis_name="data")(tree)
    actual = np.asarray(mean["kernel"][0])
    finite = np.isfinite(expected)
    assert finite.mean() > 0.9
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    bound = 2.0**-3 * largest(np.where(np.isfinite(kernel), kernel, 0))
    assert (np.abs(actual[finite] - expected[finite]) <= bound[finite]).all()
    assert np.isfinite(mean["bias"]).all()


def test_stochastic_rounding_is_unbiased_and_differs_between_devices():
    # 1 decides the unit, of which the other numbers are 0.3.
    unit = 2.0 ** (1 - 12)
    x = jnp.full((8, 2000, BLOCK), 0.3 * unit).at[:, :, 0].set(1)
    x = x * (1 + 1e-6 * jnp.arange(2000 * BLOCK).reshape(2000, BLOCK) / x[0].size)
    mean = jax.vmap(lambda t: all_reduce_mean(t, "data", rounding="stochastic"), axis_name="data")(x)
    units = np.asarray(mean[0, :, 1:]) / unit
    assert abs(units.mean() - 0.3) < 0.003
    # Independent roundings of 8 devices vary an eighth as much as those of one.
    assert abs(units.var() - 0.3 * 0.7 / 8) < 0.002


def collective_bytes(program: str) -> int:
    """The bytes of the results of all collectives in a compiled program."""
    sizes = {"f32": 4, "s16": 2, "u8": 1}
    total = 0
    for result in re.findall(r"= (.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter)\(", program):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
            total += sizes[dtype] * math.prod(int(n) for n in shape.split(",") if n)
    return total


@pytest.mark.jax_releases
@pytest.mark.parametrize("devices", [2, 4])
def test_half_of_float32_s_bytes_travel(devices):
    tree = gradients(devices)
    half, whole = (
        collective_bytes(sharded(devices, mean).lower(tree).compile().as_text())
        for mean in (lambda t: all_reduce_mean(t, "data"), lambda t: lax.pmean(t, "data"))
    )
    assert whole == sum(x[0].nbytes for x in tree.values())
    assert half <= 0.55 * whole


@pytest.mark.slow
def test_eight_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": ":".join(sys.path)}
    program = """
import jax, test_all_reduce as t
tree = t.gradients(8)
functions = [t.sharded(8, mean) for mean in (lambda x: t.all_reduce_mean(x, "data"),
                                             lambda x: t.lax.pmean(x, "data"))]
mean, of_each = functions[0](tree)
t.assert_close(mean, tree, 8)
jax.tree.map(lambda x, y: t.np.testing.assert_array_equal(t.np.broadcast_to(x, y.shape), y), mean, of_each)
half, whole = (t.collective_bytes(f.lower(tree).compile().as_text()) for f in functions)
assert half <= 0.55 * whole
"""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | flags, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_axis_of_one_device_and_an_empty_tree_change_nothing():
    x = np.float32([[1 / 3, np.nan]])
    mean, _ = sharded(1, lambda t: all_reduce_mean(t, "data"), check_vma=False)(x)
    np.testing.assert_array_equal(mean, x[0])
    assert jax.vmap(lambda x: all_reduce_mean({}, "data"), axis_name="data")(x) == {}


def test_several_axes():
    x = gradients(6)["kernel"]
    mean = jax.vmap(jax.vmap(lambda t: all_reduce_mean(t, ("a", "b")), axis_name="b"), axis_name="a")(
        x.reshape(2, 3, *x.shape[1:])
    )
    assert_close({"kernel": mean[1, 2]}, {"kernel": x}, 6)


@pytest.mark.jax_releases
def test_bad_arguments_are_named():
    ones = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="all_reduce_mean: rounding must be one of 'nearest', 'stochastic'"):
        sharded(2, lambda t: all_reduce_mean(t, "data", rounding="up"))(ones)
    with pytest.raises(
        TypeError, match=r"all_reduce_mean: tree must be a tree of arrays of float32, .*int32"
    ):
        sharded(2, lambda t: all_reduce_mean(t.astype(jnp.int32), "data"))(ones)

    def step(x):
        """A gradient by a replicated number, which JAX adds over the devices."""
        return all_reduce_mean(jax.grad(lambda w: (w * x).sum())(jnp.float32(2)), "data")

    with pytest.raises(ValueError, match=r"all_reduce_mean: tree must vary over data, .* jax\.lax\.pcast"):
        sharded(2, step)(ones)
    mean, _ = sharded(2, step, check_vma=False)(ones)
    assert mean == pytest.approx(3)
