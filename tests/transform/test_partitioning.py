"""Operations on tensors with one exponent that XLA partitions over several devices: their collectives and
their values."""

import contextlib
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED, TENSOR_WIDE
from jax import export, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import normal, relative_error

import dfpjax
from dfpjax.transform import mixed_precision

forced = functools.partial(mixed_precision, policy=TENSOR_WIDE)
NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
WIDTHS = {"f32": 4, "s32": 4, "s16": 2, "pred": 1}
PARTITIONED, NATIVE = "dfpjax_per_shard_v1", "dfpjax_contract_v1"


def mesh_of(sizes, names, kind=AxisType.Auto):
    devices = jax.devices()[: math.prod(sizes)]
    return jax.make_mesh(sizes, names, devices=devices, axis_types=(kind,) * len(names))


def collectives(compiled) -> dict[str, int]:
    """Bytes per device of the results of each kind of collective, without scalars."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found: dict[str, int] = {}
    for types, kind in re.findall(rf"= (\(.*?\)|\S+) ({kinds})(?:-start)?\(", compiled.as_text()):
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]+)\]", types):
            size = math.prod(map(int, sizes.split(",")))
            found[kind] = found.get(kind, 0) + WIDTHS[dtype] * size * (size > 1)
    return {kind: total for kind, total in found.items() if total}


def run(fun, mesh, specs, *args, is_set=True, **options):
    """Compile and run with these shardings. Returns the result and the bytes of the collectives."""
    # From NumPy, because JAX compiles a program to split an array that is on a device.
    placed = [
        jax.device_put(np.asarray(x), NamedSharding(mesh, spec)) for x, spec in zip(args, specs, strict=True)
    ]
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        compiled = jax.jit(fun, **options).lower(*placed).compile()
        return compiled(*placed), collectives(compiled)


def dense(x, w, v):
    return jnp.tanh(x @ w) @ v


def convolve(x, w, v):
    hidden = jax.nn.relu(lax.conv_general_dilated(x, w, (1, 1), "SAME", **NHWC))
    return lax.conv_general_dilated(hidden, v, (2, 2), "SAME", **NHWC)


def step(fun):
    """A training step: (x, w, v) -> (loss, new w, new v)."""

    def stepped(x, *weights):
        def loss(*weights):
            return (forced(fun)(x, *weights) ** 2).mean()

        value, gradients = jax.value_and_grad(loss, (0, 1))(*weights)
        return value, *(w - 0.1 * g for w, g in zip(weights, gradients, strict=True))

    return stepped


@functools.cache
def jitted(transform, fun):
    return jax.jit(transform(fun))


def on_one_device(fun, *args, transform=forced):
    """The result of the transformed function, compiled once for all tests with arguments of these shapes."""
    return jitted(transform, fun)(*map(np.asarray, args))


DENSE = [(64, 40), (40, 24), (24, 12)]
CONV = [(8, 6, 6, 4), (3, 3, 4, 10), (3, 3, 10, 12)]


@pytest.mark.jax_releases
@pytest.mark.parametrize(
    ("fun", "shapes", "kind", "is_set"),
    [
        (dense, DENSE, AxisType.Auto, True),
        (dense, DENSE, AxisType.Explicit, False),
        (convolve, CONV, AxisType.Auto, True),
        (convolve, CONV, AxisType.Explicit, True),
    ],
    ids=["dense-auto", "dense-explicit", "conv-auto", "conv-explicit"],
)
def test_data_parallel_training_adds_weight_gradients_and_gathers_nothing(fun, shapes, kind, is_set):
    args = [normal(i, *shape) for i, shape in enumerate(shapes)]
    mesh = mesh_of((4,), ("data",), kind)
    actual, moved = run(step(fun), mesh, [P("data"), P(), P()], *args, is_set=is_set)
    assert moved == {"all-reduce": 4 * sum(w.size for w in args[1:])}
    assert relative_error(actual, on_one_device(fun, *args, transform=step)) < 1e-6


def test_tensor_parallel_layers_add_the_output_alone():
    args = [normal(i, *shape) for i, shape in enumerate(DENSE)]
    specs = [P("data"), P(None, "model"), P("model")]
    actual, moved = run(forced(dense), mesh_of((2, 2), ("data", "model")), specs, *args)
    assert moved == {"all-reduce": 4 * actual.size // 2}
    assert actual.sharding.spec == P("data")
    assert relative_error(actual, on_one_device(dense, *args)) < 1e-6
    actual, moved = run(step(dense), mesh_of((2, 2), ("data", "model")), specs, *args)
    assert set(moved) == {"all-reduce"}
    assert relative_error(actual, on_one_device(dense, *args, transform=step)) < 1e-6


@functools.cache
def convolution(groups):
    return lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=groups, **NHWC)


@pytest.mark.parametrize(
    ("specs", "groups", "expected"),
    [
        ([P("data"), P(None, None, None, "model")], 1, {}),  # output features
        ([P("data", None, None, "model"), P(None, None, "model")], 1, {"all-reduce": 4 * 4 * 6 * 6 * 8}),
        ([P("data", None, None, "model"), P(None, None, None, "model")], 2, {}),
        ([P("data", "model"), P()], 1, {"all-gather": 2 * 4 * 6 * 6 * 4}),  # mantissas: windows are whole
    ],
    ids=["out", "in", "groups", "window"],
)
def test_convolutions(specs, groups, expected):
    x, w = normal(0, 8, 6, 6, 4), normal(1, 3, 3, 4 // groups, 8)
    fun = convolution(groups)
    actual, moved = run(forced(fun), mesh_of((2, 2), ("data", "model")), specs, x, w)
    assert moved == expected
    assert relative_error(actual, on_one_device(fun, x, w)) < 1e-6


def product(x, w):
    return x @ w


@pytest.mark.parametrize(
    ("sizes", "specs", "expected"),
    [
        ((2, 2), [P(("a", "b")), P()], {}),
        ((2, 2), [P(("b", "a")), P()], {}),
        ((1, 3), [P("b"), P()], {}),
        ((4, 1), [P(None, "a"), P()], {"all-reduce": 4 * 24 * 36}),
        ((4, 1), [P("a"), P("a")], {"all-gather": 2 * 24 * 36}),  # the weights' mantissas
    ],
)
def test_meshes_and_axes(sizes, specs, expected):
    x, w = normal(0, 24, 24), normal(1, 24, 36)
    actual, moved = run(forced(product), mesh_of(sizes, ("a", "b")), specs, x, w)
    assert moved == expected
    assert relative_error(actual, on_one_device(product, x, w)) < 1e-6


def test_an_axis_of_the_mesh_split_over_two_dimensions():
    def fun(x, w):
        return jnp.einsum("gbk,gkn->bn", x.reshape(2, 8, 24), w)

    x, w = normal(0, 16, 24), normal(1, 2, 24, 12)
    actual, _ = run(forced(fun), mesh_of((4,), ("data",)), [P("data"), P()], x, w)
    assert relative_error(actual, jax.jit(forced(fun))(x, w)) < 1e-6


def test_sizes_that_the_devices_do_not_divide():
    mesh = mesh_of((4,), ("data",))

    @forced
    def fun(x, w):
        rows = lax.with_sharding_constraint(x[:13], NamedSharding(mesh, P("data")))
        columns = lax.with_sharding_constraint(x[:, :23], NamedSharding(mesh, P(None, "data")))
        return rows @ w, columns @ w[:23]

    x, w = normal(0, 16, 24), normal(1, 24, 12)
    actual, _ = run(fun, mesh, [P("data"), P()], x, w)
    assert relative_error(actual, jax.jit(fun)(*map(np.asarray, (x, w)))) < 1e-6


def test_the_exponent_is_that_of_the_whole_tensor():
    x, w, v = (np.array(normal(i, *shape)) for i, shape in enumerate(DENSE))
    x[50] *= 2.0**12  # the last shard has much larger values
    mesh = mesh_of((4,), ("data",))

    def parts(x):
        q = dfpjax.quantize(x)
        return q.mantissa, q.exponent

    actual, _ = run(parts, mesh, [P("data")], x)
    jax.tree.map(np.testing.assert_array_equal, actual, jax.jit(parts)(x))
    actual, _ = run(step(dense), mesh, [P("data"), P(), P()], x, w, v)
    assert relative_error(actual, on_one_device(dense, x, w, v, transform=step)) < 1e-6


def test_what_cannot_be_split_is_said_once(caplog):
    x, w = normal(0, 4, 8, 6, 4), normal(1, 3, 3, 4, 8)
    fun = mixed_precision(convolution(1), FORCED)
    mesh = mesh_of((4,), ("data",))
    with caplog.at_level("WARNING", logger="dfpjax"):
        actual, _ = run(fun, mesh, [P(None, "data"), P()], x, w)
        run(lambda *args: 2 * fun(*args), mesh, [P(None, "data"), P()], x, w)
    (said,) = [record.message for record in caplog.records if "split over" in record.message]
    assert said.startswith(
        "quantization: float32[4,8,6,4] is split over 4 devices along axis 1, where a part"
    )
    assert relative_error(actual, jax.jit(fun)(*map(np.asarray, (x, w)))) < 1e-6


@pytest.mark.parametrize("policy", [TENSOR_WIDE, FORCED], ids=["tensor", "blocks"])
def test_shard_map_over_some_axes(policy, caplog):
    """Results are right where XLA partitions between the devices of other axes, and the log says what is not
    partitioned."""
    mesh = mesh_of((2, 2), ("data", "model"))
    fun = mixed_precision(dense, policy)
    specs = {"in_specs": (P("data"), P(), P()), "out_specs": P("data"), "axis_names": {"data"}}
    shard = jax.shard_map(fun, mesh=mesh, check_vma=False, **specs)
    args = [normal(i, *shape) for i, shape in enumerate([(16, 32), (32, 64), (64, 8)])]
    with caplog.at_level("WARNING", logger="dfpjax"):
        actual, _ = run(shard, mesh, [P("data"), P(None, "model"), P("model")], *args)
    assert any("contraction" in r.message and "over some axes of a mesh" in r.message for r in caplog.records)
    parts = [jax.jit(fun)(part, *args[1:]) for part in np.split(np.asarray(args[0]), 2)]
    assert relative_error(actual, np.concatenate(parts)) < 1e-6


@pytest.mark.jax_releases
@pytest.mark.parametrize("policy", [TENSOR_WIDE, FORCED], ids=["tensor", "blocks"])
def test_reference(policy):
    """The arithmetic in plain HLO has the bits of the kernels on several devices, too."""
    args = [normal(i, *shape) for i, shape in enumerate(DENSE)]
    mesh, specs = mesh_of((4,), ("data",)), [P("data"), P(), P()]

    def gradients(backend):
        fun = mixed_precision(dense, policy, backend=backend)
        return jax.grad(lambda *args: (fun(*args) ** 2).mean(), (1, 2))

    actual, moved = run(gradients("reference"), mesh, specs, *args)
    assert moved == {"all-reduce": 4 * sum(w.size for w in args[1:])}
    expected, _ = run(gradients("auto"), mesh, specs, *args)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_not_a_number_on_one_device_surfaces_on_all():
    x = np.array(normal(0, 16, 24))
    x[3, 3] = np.nan
    actual, _ = run(forced(product), mesh_of((4,), ("data",)), [P("data"), P()], x, normal(1, 24, 12))
    assert np.isnan(actual).all()


@pytest.mark.parametrize("spec", [P(), P("data")], ids=["weights shared", "weights mapped"])
def test_examples_of_vmap_are_bit_identical(spec):
    x, w = normal(0, 8, 5, 300), normal(1, *((8,) * len(spec)), 300, 12)
    fun = jax.vmap(forced(product), (0, 0 if spec else None))
    actual, moved = run(fun, mesh_of((4,), ("data",)), [P("data"), spec], x, w)
    assert moved == {}
    np.testing.assert_array_equal(actual, jax.jit(fun)(x, w))


def test_loops_and_rematerialization():
    @jax.checkpoint
    def layer(carry, w):
        return jnp.tanh(carry @ w), carry.sum()

    def loss(x, w):
        return forced(lambda x, w: lax.scan(layer, x, w))(x, w)[0].sum()

    x, w = normal(0, 16, 24), normal(1, 3, 24, 24)
    fun = jax.grad(loss, (0, 1))
    actual, moved = run(fun, mesh_of((4,), ("data",)), [P("data"), P()], x, w)
    assert set(moved) == {"all-reduce"}
    assert relative_error(actual, jax.jit(fun)(x, w)) < 1e-6


@pytest.mark.jax_releases
@pytest.mark.jax_releases
def test_donation():
    def update(w, x):
        return w - 0.1 * forced(lambda w: x.T @ (x @ w))(w)

    w, x = normal(1, 24, 24), normal(0, 16, 24)
    expected = jax.jit(update)(w, x)
    mesh = mesh_of((4,), ("data",))
    # In memory of its own and without a NumPy view: a buffer with other references cannot be donated.
    w = jax.device_put(w, NamedSharding(mesh, P()), may_alias=False)
    x = jax.device_put(x, NamedSharding(mesh, P("data")))
    actual = jax.jit(update, donate_argnums=0)(w, x)
    assert w.is_deleted()
    assert relative_error(actual, expected) < 1e-6


def test_without_shardy():
    args = [normal(i, *shape) for i, shape in enumerate(DENSE)]
    shardy = jax.config.jax_use_shardy_partitioner
    jax.config.update("jax_use_shardy_partitioner", False)
    try:
        actual, moved = run(step(dense), mesh_of((4,), ("data",)), [P("data"), P(), P()], *args)
    finally:
        jax.config.update("jax_use_shardy_partitioner", shardy)
    assert set(moved) == {"all-reduce"}
    assert relative_error(actual, on_one_device(dense, *args, transform=step)) < 1e-6


def test_a_rule_only_where_xla_partitions():
    x, w = normal(0, 16, 24), normal(1, 24, 12)
    mesh = mesh_of((4,), ("data",))
    fun = jax.jit(forced(product))

    def lowered(fun, spec):
        return fun.lower(jax.device_put(x, NamedSharding(mesh, spec)), w).as_text()

    inside = jax.shard_map(forced(product), mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert PARTITIONED in lowered(fun, P("data")) and NATIVE not in lowered(fun, P("data"))
    for text in (fun.lower(x, w).as_text(), lowered(jax.jit(inside), P("data"))):
        assert NATIVE in text and PARTITIONED not in text


@pytest.mark.jax_releases
@pytest.mark.parametrize("abstract", [False, True], ids=["mesh", "abstract mesh"])
def test_exported_programs_are_partitioned(abstract):
    mesh = mesh_of((4,), ("data",))
    x, w = normal(0, 16, 24), normal(1, 24, 12)
    args = [
        jax.ShapeDtypeStruct(
            a.shape, a.dtype, sharding=NamedSharding(mesh.abstract_mesh if abstract else mesh, spec)
        )
        for a, spec in ((x, P("data")), (w, P()))
    ]
    fun = jax.jit(forced(product))
    exported = export.export(fun, platforms=["cpu"], disabled_checks=dfpjax.export_checks())(*args)
    assert exported.nr_devices == 4
    actual, moved = run(exported.call, mesh, [P("data"), P()], x, w)
    assert moved == {}
    assert relative_error(actual, fun(x, w)) < 1e-6
