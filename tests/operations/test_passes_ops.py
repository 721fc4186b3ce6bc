"""Sums, affine maps and pooling as JAX operations: they have the values and derivatives of plain expressions
under each transformation, and on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import COMPILED_QUICKLY
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import normal, relative_error

from dfpjax.numbers import Quantizer
from dfpjax.operations.channels import normalize_channels, shift_channels
from dfpjax.operations.local_response import local_response_norm, response_gradient_p
from dfpjax.operations.moments import measured, moments
from dfpjax.operations.passes import paired_sums, rectified_sums
from dfpjax.operations.pooling import Windows, max_pool, max_pool_gradient
from dfpjax.operations.rectified import rectify_normalized, rectify_sum
from dfpjax.operations.rectified_bias import rectify_shifted

WINDOWS = Windows(sizes=(3, 2), strides=(2, 2), padding=((1, 1), (0, 0)))
SHAPE = (4, 6, 4, 5)
ROWS = (0, 1, 2)
IN_BLOCKS = Quantizer(granularity="block")
quickly = functools.partial(jax.jit, compiler_options=COMPILED_QUICKLY)
TOLERANCE = 1e-5  # relative to the norm: the order of additions differs


def plain_pool(x):
    full = (1, *WINDOWS.sizes, 1), (1, *WINDOWS.strides, 1), ((0, 0), *WINDOWS.padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, *full)


def plain_pool_gradient(g, x):
    return jax.vjp(plain_pool, x)[1](g)[0]


def plain_rectified_sums(g, x, centre, scale, shift):
    g = jnp.where((x - centre) * scale + shift > 0, g, 0)
    return jnp.sum(g, ROWS), jnp.sum(g * (x - centre), ROWS)


def plain_response(x):
    near = np.abs(np.subtract.outer(np.arange(5), np.arange(5))) <= 1
    return x / (2 + 0.3 * x**2 @ jnp.float32(near)) ** 0.75


def response_gradient(g, x):
    return response_gradient_p.bind(g, x, size=3, k=2.0, alpha=0.3, beta=0.75)


# Name: the operation, the plain expression, the arguments, the indices of the arguments to differentiate by
OPERATIONS = {
    "moments": (
        lambda x: moments(x)[:2],
        lambda x: (jnp.sum(x, ROWS), jnp.sum(x * x, ROWS)),
        (normal(0, *SHAPE) + 1,),
        (0,),
    ),
    "measured": (
        lambda x: measured(x)[:3],
        lambda x: (x, jnp.sum(x, ROWS), jnp.sum(x * x, ROWS)),
        (normal(0, *SHAPE) + 1,),
        (0,),
    ),
    "paired_sums": (
        paired_sums,
        lambda g, x, c: (jnp.sum(g, ROWS), jnp.sum(g * (x - c), ROWS)),
        (normal(1, *SHAPE), normal(2, *SHAPE), normal(3, 5)),
        (0, 1, 2),
    ),
    "shift_channels": (
        shift_channels,
        lambda x, shift: x + shift,
        (normal(4, *SHAPE), normal(5, 1, 1, 1, 5)),
        (0, 1),
    ),
    "normalize_channels": (
        normalize_channels,
        lambda x, mean, scale, shift: (x - mean) * scale + shift,
        (normal(6, *SHAPE), *(normal(i, 1, 1, 1, 5) for i in (7, 8, 9))),
        (0, 1, 2, 3),
    ),
    "rectified_sums": (
        rectified_sums,
        plain_rectified_sums,
        (normal(13, *SHAPE), normal(14, *SHAPE), *(normal(i, 5) for i in (15, 16, 17))),
        (0, 1, 2, 3, 4),
    ),
    "rectify_normalized": (
        rectify_normalized,
        lambda x, mean, scale, shift: jax.nn.relu((x - mean) * scale + shift),
        (normal(18, *SHAPE), *(normal(i, 1, 1, 1, 5) for i in (19, 20, 21))),
        (0, 1, 2, 3),
    ),
    "rectify_sum": (
        lambda *args: rectify_sum(*args)[0],
        lambda x, mean, scale, shift, residual: jax.nn.relu((x - mean) * scale + shift + residual),
        (normal(22, *SHAPE), *(normal(i, 1, 1, 1, 5) for i in (23, 24, 25)), normal(26, *SHAPE)),
        (0, 1, 2, 3, 4),
    ),
    "rectify_shifted": (
        rectify_shifted,
        lambda x, shift: jax.nn.relu(x + shift),
        (normal(30, *SHAPE), normal(31, 1, 1, 1, 5)),
        (0, 1),
    ),
    "rectify_shifted into an operand": (
        functools.partial(rectify_shifted, operand=IN_BLOCKS),
        lambda x, shift: jax.nn.relu(x + shift),
        (normal(30, *SHAPE), normal(31, 1, 1, 1, 5)),
        (0, 1),
    ),
    "rectify_sum into an operand": (
        lambda *args: rectify_sum(*args, operand=IN_BLOCKS)[0],
        lambda x, mean, scale, shift, residual: jax.nn.relu((x - mean) * scale + shift + residual),
        (normal(22, *SHAPE), *(normal(i, 1, 1, 1, 5) for i in (23, 24, 25)), normal(26, *SHAPE)),
        (0, 1, 2, 3, 4),
    ),
    "max_pool": (lambda x: max_pool(x, WINDOWS), plain_pool, (normal(10, *SHAPE),), (0,)),
    "max_pool into an operand": (
        lambda x: max_pool(x, WINDOWS, operand=IN_BLOCKS),
        plain_pool,
        (normal(10, *SHAPE),),
        (0,),
    ),
    "max_pool into an operand alone": (
        lambda x: max_pool(x, WINDOWS, operand=IN_BLOCKS, kept=False),
        plain_pool,
        (normal(10, *SHAPE),),
        (0,),
    ),
    "max_pool_gradient": (
        lambda g, x: max_pool_gradient(g, x, WINDOWS),
        plain_pool_gradient,
        (normal(11, 4, 3, 2, 5), normal(12, *SHAPE)),
        (0,),
    ),
    "local_response_norm": (
        lambda x: local_response_norm(x, size=3, k=2.0, alpha=0.3, beta=0.75),
        plain_response,
        (normal(27, *SHAPE),),
        (0,),
    ),
    "local_response_gradient": (
        response_gradient,
        lambda g, x: jax.vjp(plain_response, x)[1](g)[0],
        (normal(28, *SHAPE), normal(29, *SHAPE)),
        (0, 1),
    ),
}


def scalar(fun):
    """A nonlinear scalar function of a function's results: its second derivatives are not zero."""

    def value(*args):
        leaves = jax.tree.leaves(fun(*args))
        return sum(jnp.sum(jnp.sin((i + 1) * leaf / 64)) for i, leaf in enumerate(leaves))

    return value


def many(args):
    """Four examples of each argument."""
    return tuple(x * (np.float32([1, 2, 3, 4]) / 3).reshape(-1, *(1,) * x.ndim) for x in args)


def tangents(args):
    return tuple(normal(100 + i, *x.shape) for i, x in enumerate(args))


def uses(fun, by, args):
    """All tested uses of a function, as (name, function of its arguments)."""
    gradient = jax.grad(scalar(fun), by)

    def mapped_gradient(*args):
        return jax.grad(lambda *args: jax.vmap(scalar(fun))(*args).sum(), by)(*args)

    def one_mapped(*args):
        return jax.vmap(fun, (0, *(None,) * (len(args) - 1)))(many(args[:1])[0], *args[1:])

    def last_mapped(*args):
        return jax.vmap(fun, (*(None,) * (len(args) - 1), -1), -1)(
            *args[:-1], jnp.stack([args[-1], 2 * args[-1]], -1)
        )

    def second(*args):
        return jax.jvp(gradient, args, tangents(args))[1]

    def second_reversed(*args):
        ours = [t for i, t in enumerate(tangents(args)) if i in by]
        inner = lambda *args: sum(  # noqa: E731
            jnp.vdot(g, t) for g, t in zip(gradient(*args), ours, strict=True)
        )
        return jax.grad(inner, by)(*args)

    return {
        "value": fun,
        "jvp": lambda *args: jax.jvp(fun, args, tangents(args)),
        "grad": gradient,
        "vmap": lambda *args: jax.vmap(fun)(*many(args)),
        "vmap of one": one_mapped,
        "vmap of the last": last_mapped,
        "vmap of vmap": lambda *args: jax.vmap(jax.vmap(fun))(*many(many(args))),
        "vmap of grad": lambda *args: jax.vmap(gradient)(*many(args)),
        "grad of vmap": lambda *args: mapped_gradient(*many(args)),
        "jvp of grad": second,
        "grad of grad": second_reversed,
        "grad of remat": jax.grad(jax.checkpoint(scalar(fun)), by),
    }


def expected_uses(plain, by, args):
    """The results of all uses of a plain expression. Those of vmap are loops over one compiled program."""
    single = {use: f for use, f in uses(plain, by, args).items() if "vmap" not in use}
    del single["grad of remat"]
    run = quickly(lambda *args: {use: f(*args) for use, f in single.items()})
    expected = run(*args)

    def loop(use, batches, axis=0):
        return jax.tree.map(lambda *xs: np.stack(xs, axis), *(run(*batch)[use] for batch in batches))

    examples = list(zip(*many(args), strict=True))
    outer = [loop("value", list(zip(*batch, strict=True))) for batch in zip(*many(many(args)), strict=True)]
    return {
        **expected,
        "grad of remat": expected["grad"],
        "vmap": loop("value", examples),
        "vmap of one": loop("value", [(x, *args[1:]) for x in many(args[:1])[0]]),
        "vmap of the last": loop("value", [(*args[:-1], x) for x in (args[-1], 2 * args[-1])], -1),
        "vmap of vmap": jax.tree.map(lambda *xs: np.stack(xs), *outer),
        "vmap of grad": loop("grad", examples),
        "grad of vmap": loop("grad", examples),
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_everything_is_that_of_the_plain_expression(name):
    fun, plain, args, by = OPERATIONS[name]
    # One program contains all uses, because compiling them one by one takes longer.
    actual = quickly(lambda *args: {use: f(*args) for use, f in uses(fun, by, args).items()})(*args)
    expected = expected_uses(plain, by, args)
    assert actual.keys() == expected.keys()
    for use, result in actual.items():
        assert jax.tree.map(np.shape, result) == jax.tree.map(np.shape, expected[use]), use
        assert relative_error(result, expected[use]) < TOLERANCE, use


@pytest.mark.parametrize("name", ["shift_channels", "normalize_channels", "rectify_normalized", "max_pool"])
def test_values_have_the_plain_expressions_bits(name):
    fun, plain, args, _ = OPERATIONS[name]
    np.testing.assert_array_equal(jax.jit(fun)(*args), jax.jit(plain)(*args))
    np.testing.assert_array_equal(
        fun(*args), (jax.jit(plain) if name == "rectify_normalized" else plain)(*args)
    )


def test_extremes():
    x = np.array(normal(0, 2, *SHAPE))
    x[0, 1, 2, 3, 4] = np.nan
    plain = jax.jit(lambda x: (jnp.min(x, (1, 2, 3)), jnp.max(x, (1, 2, 3))))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(jax.vmap(moments))(x)[2:], plain(x))
    assert not jax.jit(jax.grad(lambda x: sum(map(jnp.sum, moments(x)[2:]))))(x).any()
    sums, squares, low, high = moments(jnp.zeros((0, 3, 5)))
    assert not sums.any() and not squares.any()
    assert (low == jnp.inf).all() and (high == -jnp.inf).all()


def test_transposes():
    x, centre = normal(0, *SHAPE), normal(1, 5)
    cts = normal(2, 5), normal(3, 5)
    plain = jnp.broadcast_to(cts[0], SHAPE) + cts[1] * (x - centre)
    (actual,) = jax.linear_transpose(lambda g: paired_sums(g, x, centre), x)(cts)
    np.testing.assert_allclose(actual, plain, rtol=1e-6)
    g = normal(4, 4, 3, 2, 5)
    (actual,) = jax.linear_transpose(lambda g: max_pool_gradient(g, x, WINDOWS), g)(x)
    (expected,) = jax.linear_transpose(lambda g: plain_pool_gradient(g, x), g)(x)
    np.testing.assert_array_equal(actual, expected)


def test_ties_go_to_the_first():
    x = jnp.round(normal(0, *SHAPE)).at[0].set(jnp.nan)
    g = normal(1, 4, 3, 2, 5)
    actual, expected = (
        jax.jit(lambda x, g, pool=pool: jax.vjp(pool, x)[1](g)[0])(x, g)
        for pool in (lambda x: max_pool(x, WINDOWS), plain_pool)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size"), [((7,), 3), ((2, 3), 9), ((4, 0), 5), ((0, 6), 5), ((2, 3, 4, 6), 1)]
)
def test_local_response_of_any_rank_and_window(shape, size):
    x = normal(0, *shape)
    near = np.abs(np.subtract.outer(*2 * [np.arange(shape[-1])])) <= size // 2
    expected = x / (1 + 0.5 * np.float64(x) ** 2 @ near) ** 0.75
    y = local_response_norm(x, size=size, k=1.0, alpha=0.5, beta=0.75)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "beta"), [(jnp.bfloat16, 0.75), (jnp.float32, 0.5)])
def test_local_response_in_other_dtypes_and_powers_is_plain_hlo(dtype, beta):
    fun = jax.jit(functools.partial(local_response_norm, size=3, k=2.0, alpha=0.3, beta=beta))
    x = normal(0, *SHAPE).astype(dtype)
    assert NATIVE not in fun.lower(x).as_text()
    assert fun(x).dtype == dtype
    plain = x / (2 + 0.3 * np.float64(x) ** 2 @ (np.eye(5) + np.eye(5, k=1) + np.eye(5, k=-1))) ** beta
    np.testing.assert_allclose(np.float64(fun(x)), np.float64(plain), rtol=2e-2 if beta == 0.75 else 1e-6)


# --- several devices --------------------------------------------------------------------------------

NATIVE = "dfpjax_"


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(kind,))


ONLY_GRADIENTS = (
    "rectify_shifted",
    "shift_channels",
    "normalize_channels",
    "rectify_normalized",
)  # are native passes


def specs(args):
    return tuple(P("data") if x.shape[0] == 4 else P() for x in args)


def value_and_gradient(fun, by):
    return lambda *args: (fun(*args), jax.grad(scalar(fun), by)(*args))


@pytest.mark.parametrize("name", OPERATIONS)
def test_partitioned_programs(name):
    """The devices run the native passes on their shards."""
    fun, plain, args, by = OPERATIONS[name]
    placed = [jax.device_put(x, NamedSharding(mesh(), s)) for x, s in zip(args, specs(args), strict=True)]
    fun = quickly(value_and_gradient(fun, by))
    assert NATIVE in fun.lower(*args).as_text()
    partitioned = fun.lower(*placed).compile()
    assert NATIVE in partitioned.as_text() and "all-gather" not in partitioned.as_text()
    expected = quickly(value_and_gradient(plain, by))(*args)
    assert relative_error(partitioned(*placed), expected) < TOLERANCE


@functools.cache
def plain_on_each_device(name):
    """The arguments that devices split, and the plain expression's values and gradients by them, of the parts
    that four devices have. JAX sums gradients by shared arguments if it tracks varying axes, so none of those
    are there."""
    _, plain, args, by = OPERATIONS[name]
    by = tuple(i for i in by if specs(args)[i] == P("data"))
    alone = quickly(value_and_gradient(plain, by))
    parts = (
        [x[i : i + 1] if s == P("data") else x for x, s in zip(args, specs(args), strict=True)]
        for i in range(4)
    )
    return by, jax.tree.map(lambda *xs: np.stack(xs), *(alone(*part) for part in parts))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_shard_map(name, check_vma):
    """Each device has its own tensor and runs native passes on it."""
    fun, _, args, _ = OPERATIONS[name]
    by, (expected_value, expected_gradients) = plain_on_each_device(name)

    def on_devices(fun):
        def each(*args):
            """The results with a leading axis, along which those of all devices are stacked."""
            return jax.tree.map(lambda x: x[None], fun(*args))

        return quickly(
            jax.shard_map(each, mesh=mesh(), in_specs=specs(args), out_specs=P("data"), check_vma=check_vma)
        )

    assert NATIVE in on_devices(fun).lower(*args).as_text() or name in ONLY_GRADIENTS
    value, gradients = on_devices(value_and_gradient(fun, by))(*args)
    assert relative_error(value, expected_value) < TOLERANCE
    assert relative_error(gradients, expected_gradients) < TOLERANCE


def test_gradients_by_what_devices_share_are_added():
    fun, plain, args, by = OPERATIONS["normalize_channels"]

    def loss(fun):
        mapped = jax.shard_map(
            lambda *args: lax.psum(scalar(fun)(*args), "data"),
            mesh=mesh(),
            in_specs=specs(args),
            out_specs=P(),
        )
        return quickly(jax.grad(mapped, by))

    assert relative_error(loss(fun)(*args), jax.grad(scalar(plain), by)(*args)) < TOLERANCE


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_plain_hlo(platform):
    fun = functools.partial(_all, [(f, args, by) for f, _, args, by in OPERATIONS.values()])
    exported = jax.export.export(jax.jit(fun), platforms=[platform])()
    assert "custom_call" not in exported.mlir_module()


def _all(operations):
    return [value_and_gradient(fun, by)(*args) for fun, args, by in operations]


# --- windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"padding": ((1, 2), (0, 1))}, True),
        ({"padding": ((3, 0), (0, 0))}, False),
        ({"padding": ((0, 3), (0, 0))}, False),
        ({"padding": ((-1, 0), (0, 0))}, False),
        ({"sizes": (7, 2)}, True),
        ({"sizes": (9, 2), "padding": ((1, 1), (0, 0))}, True),
        ({"sizes": (9, 2), "padding": ((1, 0), (0, 0))}, False),
        ({"sizes": (1025, 1), "padding": ((1024, 1024), (0, 0))}, False),
    ],
)
def test_windows_that_fit(change, fits):
    windows = Windows(**{"sizes": (3, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0)), **change})
    assert windows.fit(7, 4) == fits
    assert not windows.fit(0, 4)
