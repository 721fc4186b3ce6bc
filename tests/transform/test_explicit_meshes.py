"""On meshes with explicit axes, types and values equal those of the original function."""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED, TENSOR_WIDE
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import REALIGNED, normal, quantized, relative_error

import dfpjax
from dfpjax.policy import OpConfig, Policy
from dfpjax.transform import mixed_precision

pytestmark = pytest.mark.jax_releases

transform = functools.partial(mixed_precision, policy=FORCED)
KINDS = {"e": AxisType.Explicit, "a": AxisType.Auto}
NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
W, X = (8, 8), (4, 8)


def mesh_of(kinds: str):
    """A mesh of two devices along each axis: "d" and, for two kinds, "m"."""
    sizes, names = (2,) * len(kinds), ("d", "m")[: len(kinds)]
    devices = jax.devices()[: math.prod(sizes)]
    return jax.make_mesh(sizes, names, devices=devices, axis_types=tuple(KINDS[kind] for kind in kinds))


def entered(mesh, is_set: bool):
    return jax.set_mesh(mesh) if is_set else contextlib.nullcontext()


def placed(mesh, specs, shapes):
    arrays = (np.asarray(normal(i, *shape)) for i, shape in enumerate(shapes))
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]


def net(w, x):
    return jax.nn.relu(x @ w) @ w


def loss(fun):
    return lambda *args: (fun(*args) ** 2).sum()


def pulled_back(t, w, x):
    y, vjp = jax.vjp(t(net), w, x)
    return vjp(y)


def scanned(w, x):
    return lax.scan(lambda c, _: (jnp.tanh(c @ w), c.sum()), x, None, length=2)


def branched(w, x):
    return lax.cond(x.sum() > 0, lambda: x @ w, lambda: jnp.sin(x @ (2 * w)))


def looped(w, x):
    return lax.fori_loop(0, 2, lambda _, c: jnp.tanh(c @ w), x)


# Each entry takes a transform (the identity or mixed_precision) and returns a function of w and x.
PROGRAMS = {
    "value": lambda t: t(net),
    "grad": lambda t: jax.value_and_grad(loss(t(net)), (0, 1)),
    "grad inside": lambda t: t(jax.grad(loss(net), (0, 1))),
    "vjp": lambda t: lambda w, x: pulled_back(t, w, x),
    "jvp": lambda t: lambda w, x: jax.jvp(t(net), (w, x), (w, x)),
    "hvp": lambda t: lambda w, x: jax.jvp(jax.grad(loss(t(net)), (0, 1)), (w, x), (w, x)),
    "vmap": lambda t: lambda w, x: jax.vmap(t(net), (None, 0))(w, x[:, None]),
    "vmap of grad": lambda t: lambda w, x: jax.vmap(jax.grad(loss(t(net)), (0, 1)), (None, 0))(w, x[:, None]),
    "grad of vmap": lambda t: jax.grad(loss(jax.vmap(t(net), (None, 0))), (0, 1)),
    "scan": lambda t: t(scanned),
    "grad of scan": lambda t: jax.grad(loss(lambda w, x: t(scanned)(w, x)[0]), (0, 1)),
    "while": lambda t: t(looped),
    "grad of cond": lambda t: jax.grad(loss(t(branched)), (0, 1)),
    "grad of remat": lambda t: jax.grad(loss(jax.checkpoint(t(net))), (0, 1)),
}  # fmt: skip


def types_of(fun, *args):
    return jax.make_jaxpr(fun)(*args).out_avals


def assert_same_types(make, *args):
    expected, actual = types_of(make(lambda f: f), *args), types_of(make(transform), *args)
    assert actual == expected
    assert [aval.sharding for aval in actual] == [aval.sharding for aval in expected]


@pytest.mark.parametrize("is_set", [False, True], ids=["not set", "set"])
@pytest.mark.parametrize(
    ("kinds", "specs"),
    [
        ("e", [P(), P("d")]),
        ("a", [P(), P("d")]),
        ("ee", [P(None, "m"), P("d")]),
        ("ea", [P(), P("d")]),
    ],
)
def test_types(kinds, specs, is_set):
    mesh = mesh_of(kinds)
    if kinds == "ee":  # JAX refuses it: both contracted axes of the second product would be split
        programs = {"grad": lambda t: jax.grad(loss(t(lambda w, x: x @ w)), (0, 1))}
    else:
        programs = PROGRAMS
    with entered(mesh, is_set):
        args = placed(mesh, specs, [W, X])
        for name, make in programs.items():
            if name == "grad of scan":  # JAX 0.11 refuses the float32 program unless the mesh is set
                actual = types_of(make(transform), *args)
                assert [str(aval) for aval in actual] == [str(jax.typeof(x)) for x in args]
            else:
                assert_same_types(make, *args)


@pytest.mark.parametrize(
    "names",
    [("jvp", "grad of scan"), pytest.param(("vjp", "grad of vmap", "grad of cond"), marks=pytest.mark.slow)],
    ids=" and ".join,
)
def test_values(names):
    mesh = mesh_of("e")
    args = placed(mesh, [P(), P("d")], [W, X])
    run = jax.jit(lambda *args: {name: PROGRAMS[name](transform)(*args) for name in names})
    actual, expected = run(*args), run(*map(np.asarray, args))
    for name in names:
        assert relative_error(actual[name], expected[name]) < REALIGNED, name


def test_values_are_close_to_those_of_float64():
    args = placed(mesh_of("e"), [P(), P("d")], [W, X])
    value = jax.jit(transform(net))(*args)
    assert value.sharding.spec == P("d", None)
    w, x = (np.asarray(arg, np.float64) for arg in args)
    assert 0 < relative_error(value, np.maximum(x @ w, 0) @ w) < 1e-3


def einsum(labels, out):
    def fun(mesh, lhs, rhs):
        return jnp.einsum(labels, lhs, rhs, out_sharding=None if out is None else NamedSharding(mesh, out))

    return fun


def convolve(out, **params):
    def fun(mesh, kernel, images):
        sharding = {} if out is None else {"out_sharding": NamedSharding(mesh, out)}
        return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", **NHWC, **params, **sharding)

    return fun


IMAGES = (4, 3, 3, 4)


@pytest.mark.parametrize(
    ("fun", "specs", "shapes"),
    [
        (einsum("kn,bk->bn", None), [P(None, "m"), P("d")], [W, X]),
        (einsum("kn,bk->bn", None), [P(), P("d", "m")], [W, X]),
        (einsum("kn,bk->bn", P("d")), [P("m"), P("d", "m")], [W, X]),
        (einsum("kn,bk->bn", P("d", "m")), [P("m"), P("d", "m")], [W, X]),
        (einsum("kn,bk->nb", P(("d", "m"))), [P(None, ("d", "m")), P()], [W, X]),
        (einsum("gkn,gbk->gbn", None), [P("d"), P("d", "m")], [(2, 8, 6), (2, 4, 8)]),
        (einsum("k,bk->b", None), [P(), P("d")], [(8,), X]),
        (convolve(None), [P(), P("d")], [(3, 3, 4, 4), IMAGES]),
        (convolve(P("d", None, None, "m")), [P(None, None, None, "m"), P("d")], [(3, 3, 4, 4), IMAGES]),
        (convolve(P("d")), [P(None, None, "m"), P("d", None, None, "m")], [(3, 3, 4, 4), IMAGES]),
        (convolve(None, feature_group_count=2), [P(), P("d")], [(3, 3, 2, 4), IMAGES]),
        (convolve(P("d", None, None, "m"), feature_group_count=2), [P(), P("d")], [(3, 3, 2, 4), IMAGES]),
        (convolve(P(None, None, None, ("d", "m")), feature_group_count=2), [P()] * 2, [(3, 3, 2, 4), IMAGES]),
        (convolve(None, batch_group_count=2), [P(), P()], [(3, 3, 4, 4), IMAGES]),
    ],
)
def test_dimensions(fun, specs, shapes):
    """Split each labelled axis. The gradients have the types of the operands, as in float32."""
    mesh = mesh_of("ee")
    args = placed(mesh, specs, shapes)
    fun = functools.partial(fun, mesh)
    assert_same_types(lambda t: t(fun), *args)
    gradients = jax.make_jaxpr(jax.grad(loss(transform(fun)), (0, 1)))(*args)
    assert gradients.out_avals == [jax.typeof(x) for x in args]
    assert quantized(gradients) == 3


@pytest.mark.parametrize(
    "policy",
    [
        Policy(default=OpConfig(force=True, granularity="tensor")),
        Policy(default=OpConfig(force=True, granularity="channel")),
        Policy(default=OpConfig(force=True, wgrad=False)),
        Policy(default=OpConfig(force=True, accumulation=dfpjax.FixedChain(length=4, pre_shift=1))),
    ],
    ids=["tensor", "channel", "passes", "fixed chain"],
)
def test_policies(policy):
    mesh = mesh_of("ee")
    args = placed(mesh, [P("m"), P("d", "m")], [W, X])
    sharding = NamedSharding(mesh, P("d"))

    def fun(w, x):
        return jnp.einsum("bk,kn->bn", x, w, out_sharding=sharding)

    def run(t):
        return lambda *args: (t(fun)(*args), jax.grad(loss(t(fun)), (0, 1))(*args))

    t = functools.partial(mixed_precision, policy=policy)
    assert types_of(run(t), *args) == types_of(run(lambda f: f), *args)
    actual, expected = jax.jit(lambda *args: (run(t)(*args), run(lambda f: f)(*args)))(*args)
    assert relative_error(actual, expected) < 5e-3


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    ("kinds", "axis_names"), [("e", {"d"}), ("ee", {"d", "m"}), ("ee", {"d"}), ("ea", {"d"}), ("ae", {"d"})]
)
def test_manual_axes(kinds, axis_names, check_vma):
    """The transform inside and around shard_map, which is manual over all axes or some."""
    mesh = mesh_of(kinds)
    split = P(None, "m") if kinds[1:] == "e" and axis_names == {"d"} else P()
    shard = functools.partial(jax.shard_map, mesh=mesh, axis_names=axis_names, check_vma=check_vma)

    def product(w, x):
        return x @ w

    def run(fun):
        return lambda *args: (fun(*args), jax.grad(loss(fun), (0, 1))(*args))

    def inside(t):
        return shard(run(t(product)), in_specs=(P(), P("d")), out_specs=(P("d"), (P(), P("d"))))

    def outside(t):
        return run(t(shard(product, in_specs=(P(), P("d")), out_specs=P("d"))))

    with jax.set_mesh(mesh):
        args = placed(mesh, [split, P("d")], [W, X])
        for make in (inside, outside):
            assert_same_types(make, *args)


def test_axes_of_other_kinds_in_parts_of_a_program():
    def product(w, x):
        return x @ w

    def as_automatic(t):
        return t(jax.sharding.auto_axes(product, axes="m", out_sharding=P("d", "m")))

    def in_automatic(t):
        return jax.sharding.auto_axes(jax.grad(loss(t(product))), out_sharding=P(None, "m"))

    def as_explicit(t):
        return t(jax.sharding.explicit_axes(product, in_sharding=(P(), P("d"))))

    def in_explicit(t):
        return jax.sharding.explicit_axes(jax.grad(loss(t(product))), in_sharding=(P(), P("d")))

    for kinds, programs in (("ee", (as_automatic, in_automatic)), ("aa", (as_explicit, in_explicit))):
        mesh = mesh_of(kinds)
        with jax.set_mesh(mesh):
            for make in programs:
                assert_same_types(make, *placed(mesh, [P(None, "m"), P("d")], [W, X]))


@pytest.mark.parametrize(
    ("in_axes", "specs", "shapes"),
    [
        ((None, 0), [P(None, "m"), P("d")], [W, (4, 3, 8)]),
        ((None, 1), [P(), P(None, "d")], [W, (3, 4, 8)]),
        ((0, None), [P("d"), P("m")], [(4, 8, 8), X]),
        ((0, 0), [P("d", None, "m"), P("d")], [(4, 8, 8), (4, 3, 8)]),
    ],
)
def test_mapped_axes_that_are_split(in_axes, specs, shapes):
    args = placed(mesh_of("ee"), specs, shapes)

    def product(w, x):
        return x @ w

    assert_same_types(lambda t: jax.vmap(t(product), in_axes), *args)
    assert_same_types(lambda t: jax.vmap(jax.grad(loss(t(product)), (0, 1)), in_axes), *args)
    assert_same_types(lambda t: jax.grad(loss(jax.vmap(t(product), in_axes)), (0, 1)), *args)


def test_sums_that_the_devices_have_not_added():
    """Results may be unreduced; reduced operands have unreduced gradients."""
    mesh = mesh_of("e")
    whole = NamedSharding(mesh, P())
    parts = NamedSharding(mesh, P(None, None, unreduced={"d"}))
    reduced = NamedSharding(mesh, P(None, None, reduced={"d"}))

    def product(w, x):
        return jnp.einsum("bk,kn->bn", x, w, out_sharding=parts)

    def total(t):
        return lambda w, x: jax.reshard(t(product)(w, x), whole)

    def gradient(t):
        return lambda w, x: jax.grad(loss(lambda w: t(net)(w, x)))(jax.reshard(w, reduced))

    split = placed(mesh, [P("d"), P(None, "d")], [W, X])
    shared = placed(mesh, [P(), P("d")], [W, X])
    assert_same_types(lambda t: t(product), *split)
    assert_same_types(lambda t: jax.grad(loss(total(t)), (0, 1)), *split)
    assert_same_types(gradient, *shared)

    def run(t, split, shared):
        return total(t)(*split), jax.reshard(gradient(t)(*shared), whole)

    actual, expected = jax.jit(lambda *args: [run(t, *args) for t in (transform, lambda f: f)])(split, shared)
    assert 0 < relative_error(actual, expected) < 1e-3

    with pytest.raises(ValueError, match=r"quantize: x is of type f32\[4,8\]{U:d}.*jax.reshard"):
        jax.make_jaxpr(lambda *args: dfpjax.quantize(product(*args)))(*split)


def test_quantized_arrays():
    """Mantissas are split like the array, exponents along the axis whose slices have one exponent each."""
    mesh = mesh_of("e")
    (x,) = placed(mesh, [P("d")], [X])
    seeds = jax.device_put(np.arange(4, dtype=np.uint32), NamedSharding(mesh, P("d")))
    whole = jax.device_put(x, NamedSharding(mesh, P()))

    def make(x, seeds, whole):
        by_seed = functools.partial(dfpjax.quantize, whole, rounding="stochastic")
        slices = dfpjax.quantize(x, axis=0)
        return {
            "whole": dfpjax.quantize(x),
            "slices": slices,
            "other slices": dfpjax.quantize(x, axis=1),
            "mapped": jax.vmap(dfpjax.quantize)(x),
            "mapped seeds": jax.vmap(lambda seed: by_seed(seed=seed))(seeds),
        }, slices.dequantize()

    split = {
        "whole": (P("d", None), P()),
        "slices": (P("d", None), P("d", None)),
        "other slices": (P("d", None), P(None, None)),
        "mapped": (P("d", None), P("d", None)),
        "mapped seeds": (P("d", None, None), P("d", None, None)),
    }
    actual, dequantized = jax.jit(make)(x, seeds, whole)
    expected, _ = jax.jit(make)(*map(np.asarray, (x, seeds, whole)))
    for name, q in actual.items():
        assert (jax.typeof(q.values).sharding.spec, jax.typeof(q.exponent).sharding.spec) == split[name], name
        np.testing.assert_array_equal(q.mantissa, expected[name].mantissa)
        np.testing.assert_array_equal(q.exponent, expected[name].exponent)
    assert jax.typeof(dequantized) == jax.typeof(x)

    @jax.jit
    def mapped(tensors, x):
        names = ("whole", "slices", "other slices", "mapped")
        return {name: jax.vmap(lambda q, x: (q, q.dequantize() + x))(tensors[name], x) for name in names}

    of_split, of_plain = mapped(actual, x), mapped(expected, np.asarray(x))
    jax.tree.map(np.testing.assert_array_equal, of_split, of_plain)
    for name, (q, total) in of_split.items():
        assert [jax.typeof(y).sharding.spec for y in (q.values, total)] == [P("d", None)] * 2, name


def test_without_jit():
    """The mesh is not set. Zeros, for example, have no operand from which JAX could infer their devices."""
    args = placed(mesh_of("e"), [P(), P("d")], [W, X])

    def fun(w, x):
        return jnp.where(x @ w > 0, x @ w, jnp.zeros_like(x))

    value, tangent = jax.jvp(transform(fun), tuple(args), tuple(args))
    gradient = jax.vjp(transform(fun), *args)[1](value)
    assert [jax.typeof(y) for y in (value, tangent, *gradient)] == [jax.typeof(args[i]) for i in (1, 1, 0, 1)]
    w, x = (np.asarray(arg, np.float64) for arg in args)
    assert 0 < relative_error(value, np.maximum(x @ w, 0)) < 1e-3
    assert relative_error(tangent, 2 * np.maximum(x @ w, 0)) < 1e-3


@pytest.mark.parametrize(
    ("policy", "tolerance", "of_errors"), [(TENSOR_WIDE, 1e-6, 1e-4), (FORCED, REALIGNED, 0.3)]
)
def test_statistics(policy, tolerance, of_errors):
    """The program has a weight gradient whose contracted axes are both split."""
    args = placed(mesh_of("e"), [P(), P("d")], [W, X])
    gradient = jax.grad(loss(lambda w, x: x @ w), (0, 1))
    measured = jax.jit(dfpjax.with_statistics(gradient, policy=policy, shadow=True))
    (value, statistics), (expected, alike) = measured(*args), measured(*map(np.asarray, args))
    assert [jax.typeof(g) for g in value] == [jax.typeof(x) for x in args]
    assert relative_error(value, expected) < tolerance
    # The errors are differences of results that are rounded in another order on two devices.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=of_errors, atol=1e-7), statistics, alike)
    ops = dfpjax.explain(net, *args, policy=policy).ops
    assert [op.dtype for op in ops] == ["dfp16"] * 2
