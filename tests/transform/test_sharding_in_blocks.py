"""Programs over several devices whose operands have an exponent for each block: collectives and values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_partitioning import CONV, DENSE, convolution, convolve, dense, mesh_of, product, run
from transform_helpers import REALIGNED, normal, relative_error

import dfpjax
from dfpjax.policy import OpConfig, Policy
from dfpjax.transform import mixed_precision

IN_BLOCKS = Policy(default=OpConfig(force=True, granularity="block"))
in_blocks = functools.partial(mixed_precision, policy=IN_BLOCKS)
WIDE = [(48, 128), (128, 256), (256, 128)]
"""Shards of these are whole blocks, and start at the beginning of a tile."""


def gradients(fun):
    def loss(*args):
        return (in_blocks(fun)(*args) ** 2).mean()

    return jax.grad(loss, (1, 2))


@functools.cache
def jitted(fun, transform=in_blocks):
    return jax.jit(transform(fun))


def on_one_device(fun, *args, transform=in_blocks):
    return jitted(fun, transform)(*map(np.asarray, args))


def normals(shapes):
    return [normal(i, *shape) for i, shape in enumerate(shapes)]


@pytest.mark.jax_releases
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(("fun", "shapes"), [(dense, DENSE), (convolve, CONV)], ids=["dense", "conv"])
def test_data_parallel_training_moves_what_it_moves_in_float32(fun, shapes, kind):
    args = normals(shapes)
    actual, moved = run(gradients(fun), mesh_of((4,), ("data",), kind), [P("data"), P(), P()], *args)
    assert moved == {"all-reduce": 4 * sum(w.size for w in args[1:])}
    assert relative_error(actual, on_one_device(fun, *args, transform=gradients)) < REALIGNED


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_whole_blocks_of_features(kind):
    """One device's bits: no sum is split, and shards start at the beginning of a tile."""
    x, w = normals(WIDE)[:2]
    specs = [P("data"), P(None, "model")]
    actual, moved = run(in_blocks(product), mesh_of((2, 2), ("data", "model"), kind), specs, x, w)
    # On explicit axes, an exponent's type has whole axes of blocks: 128 rows of 8 blocks.
    assert moved == ({} if kind == AxisType.Auto else {"all-gather": 4 * 128 * 8})
    np.testing.assert_array_equal(actual, on_one_device(product, x, w))


def test_tensor_parallel_training_adds_what_it_adds_in_float32():
    args = normals(WIDE)
    mesh, specs = mesh_of((2, 2), ("data", "model")), [P("data"), P(None, "model"), P("model")]
    actual, moved = run(in_blocks(dense), mesh, specs, *args)
    assert moved == {"all-reduce": 4 * actual.size // 2}
    assert relative_error(actual, on_one_device(dense, *args)) < REALIGNED
    actual, moved = run(gradients(dense), mesh, specs, *args)
    assert set(moved) == {"all-reduce"}
    assert relative_error(actual, on_one_device(dense, *args, transform=gradients)) < REALIGNED


def test_weights_split_like_the_batch_are_gathered_as_mantissas():
    x, w = normals(WIDE)[:2]
    actual, moved = run(in_blocks(product), mesh_of((4,), ("data",)), [P("data"), P("data")], x, w)
    assert moved == {"all-gather": 2 * w.size + 4 * 128 * 8}  # and the exponents
    np.testing.assert_array_equal(actual, on_one_device(product, x, w))


@pytest.mark.parametrize(
    ("specs", "shapes", "expected"),
    [
        ([P(None, "data"), P("data")], [(24, 256), (256, 36)], {"all-reduce": 4 * 24 * 36}),
        ([P(None, "data"), P("data")], [(24, 200), (200, 36)], None),  # 50 columns are no whole blocks
        ([P(), P(None, "data")], [(24, 40), (40, 48)], None),  # nor are 12
        ([P("data"), P()], [(13, 40), (40, 24)], None),
    ],
)
def test_shards_that_are_no_whole_blocks_are_gathered(specs, shapes, expected):
    args = [np.asarray(normal(i, *shape)) for i, shape in enumerate(shapes)]

    def fun(*args):
        mesh = mesh_of((4,), ("data",))
        split = (
            lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
            for x, spec in zip(args, specs, strict=True)
        )
        return product(*split)

    actual, moved = run(in_blocks(fun), mesh_of((4,), ("data",)), [P(), P()], *args)
    alone = on_one_device(product, *args)
    if expected is None:
        np.testing.assert_array_equal(actual, alone)
    else:
        assert moved == expected
        assert relative_error(actual, alone) < REALIGNED


def attend(q, k):
    return jnp.einsum("bqhd,bkhd->bhqk", q, k)


def project(x, w):
    return jnp.einsum("btk,khd->bthd", x, w)


def merge(x, w):
    return jnp.einsum("bthd,hdn->btn", x, w)


@pytest.mark.parametrize(
    ("fun", "specs", "shapes"),
    [
        (attend, [P("a", None, "b")] * 2, [(2, 6, 16, 32)] * 2),  # heads are inner rows
        (attend, [P("a", "b"), P("a")], [(2, 8, 8, 32)] * 2),
        (attend, [P(None, None, ("b", "a"))] * 2, [(2, 3, 32, 32)] * 2),
        (project, [P("a"), P(None, "b")], [(2, 6, 40), (40, 16, 32)]),
        (project, [P("a"), P(None, None, "b")], [(2, 6, 40), (40, 2, 64)]),
        (merge, [P("a", None, "b"), P("b")], [(2, 6, 16, 32), (16, 32, 12)]),
        (merge, [P(None, "a", "b"), P("b")], [(2, 8, 16, 32), (16, 32, 12)]),  # both axes of rows
        (merge, [P(None, "a", "b"), P("b")], [(2, 2, 16, 32), (16, 32, 12)]),
    ],
)
def test_axes_that_count_rows_or_columns_of_blocks(fun, specs, shapes):
    args = [np.array(normal(i, *shape)) for i, shape in enumerate(shapes)]
    for x in args:  # every block has another exponent
        x *= 2.0 ** np.random.default_rng(0).integers(-2, 3, x.shape[:-1])[..., None].astype(np.float32)
    actual, moved = run(in_blocks(fun), mesh_of((2, 2), ("a", "b")), specs, *args)
    # Nothing is gathered but exponents, four bytes for 256 elements, where an inner axis of rows is split.
    assert moved.pop("all-gather", 0) <= sum(x.size for x in args) // 64
    assert moved == ({"all-reduce": actual.nbytes // 2} if fun is merge else {})
    assert relative_error(actual, on_one_device(fun, *args)) < REALIGNED


def test_axes_that_count_columns_together_stay_whole():
    """A block of (40, 16, 8) has all 128 columns."""
    x, w = normals([(2, 6, 40), (40, 16, 8)])
    actual, moved = run(in_blocks(project), mesh_of((2, 2), ("a", "b")), [P("a"), P(None, "b")], x, w)
    assert moved == {"all-gather": 4 * w.size}
    assert relative_error(actual, on_one_device(project, x, w)) < REALIGNED


@pytest.mark.parametrize(
    ("specs", "groups", "expected"),
    [
        ([P("data"), P(None, None, None, "model")], 1, {}),  # output features
        # Input features, the inner axis of the kernel's rows: its exponents are gathered.
        ([P("data", None, None, "model"), P(None, None, "model")], 1,
         {"all-reduce": 4 * 4 * 4 * 4 * 128, "all-gather": 4 * 3 * 24 * 4}),
        # Groups of 8 and 16 features: a block has those of all groups, so they are gathered in float32.
        ([P("data", None, None, "model"), P(None, None, None, "model")], 8,
         {"all-gather": 4 * 4 * 4 * 4 * 64 + 4 * 3 * 3 * 8 * 128}),
        ([P("data", "model"), P()], 1, {"all-gather": 2 * 4 * 4 * 4 * 64 + 4 * 4 * 2 * 2}),  # mantissas
    ],
    ids=["out", "in", "groups", "window"],
)  # fmt: skip
def test_convolutions(specs, groups, expected):
    x, w = normal(0, 8, 4, 4, 64), normal(1, 3, 3, 64 // groups, 128)
    actual, moved = run(in_blocks(convolution(groups)), mesh_of((2, 2), ("data", "model")), specs, x, w)
    assert moved == expected
    assert relative_error(actual, on_one_device(convolution(groups), x, w)) < REALIGNED


def test_shards_of_shard_map_are_one_devices_examples():
    x, w = normals(WIDE)[:2]
    mesh = mesh_of((4,), ("data",))
    shard = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    expected = on_one_device(product, x, w)
    for fun in (in_blocks(shard(product)), shard(in_blocks(product))):
        actual, moved = run(fun, mesh, [P("data"), P()], x, w)
        assert moved == {}
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("spec", [P(), P("data")], ids=["weights shared", "weights mapped"])
def test_examples_of_vmap_are_bit_identical(spec):
    x, w = normal(0, 8, 5, 300), normal(1, *((8,) * len(spec)), 300, 12)
    fun = jax.vmap(in_blocks(product), (0, 0 if spec else None))
    actual, moved = run(fun, mesh_of((4,), ("data",)), [P("data"), spec], x, w)
    assert moved == {}
    np.testing.assert_array_equal(actual, jax.jit(fun)(*map(np.asarray, (x, w))))


def test_not_a_number_stays_in_its_row():
    x = np.array(normal(0, 16, 64))
    x[3, 3] = np.nan
    actual, _ = run(in_blocks(product), mesh_of((4,), ("data",)), [P("data"), P()], x, normal(1, 64, 12))
    assert np.flatnonzero(np.isnan(actual).any(axis=1)).tolist() == [3]


def test_without_shardy():
    args = normals(WIDE)
    specs = [P("data"), P(None, "model"), P("model")]
    shardy = jax.config.jax_use_shardy_partitioner
    jax.config.update("jax_use_shardy_partitioner", False)
    try:
        actual, moved = run(gradients(dense), mesh_of((2, 2), ("data", "model")), specs, *args)
    finally:
        jax.config.update("jax_use_shardy_partitioner", shardy)
    assert set(moved) == {"all-reduce"}
    assert relative_error(actual, on_one_device(dense, *args, transform=gradients)) < REALIGNED


@pytest.mark.parametrize("rounding", ["nearest", "biased", "truncate", "stochastic"])
def test_quantization_has_one_devices_bits(rounding):
    """However the tensor is split: in whole blocks along the batch, along both axes of rows, or neither. Of
    images with 3 channels a block has all columns."""

    def parts(x):
        seed = 7 if rounding == "stochastic" else None
        q = dfpjax.quantize(x, rounding=rounding, seed=seed, blocks=dfpjax.Blocks())
        return q.mantissa, q.block_exponent

    mesh = mesh_of((2, 2), ("a", "b"))
    specs = [P("a"), P(None, "a", "b"), P("b", None, "a")]
    for shape, of_shape in (
        ((4, 2, 8, 64), [*specs, P(None, None, None, ("a", "b"))]),
        ((4, 8, 16, 3), specs),
    ):
        x = np.array(normal(0, *shape))
        x[2, 0, 5, -1], x[3, 1] = np.inf, 1e-40
        expected = jax.jit(parts)(x)
        for spec in of_shape:
            actual, _ = run(parts, mesh, [spec], x)
            jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_exported_programs_are_partitioned():
    x, w = normals(WIDE)[:2]
    mesh = mesh_of((4,), ("data",))
    args = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
        for a, spec in ((x, P("data")), (w, P()))
    ]
    fun = jax.jit(in_blocks(product))
    exported = export.export(fun, platforms=["cpu"], disabled_checks=dfpjax.export_checks())(*args)
    assert exported.nr_devices == 4
    actual, moved = run(exported.call, mesh, [P("data"), P()], x, w)
    assert moved == {}
    np.testing.assert_array_equal(actual, on_one_device(product, x, w))
