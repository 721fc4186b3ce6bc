"""Exact matrix products in native kernels, against NumPy's integers."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dfpjax
import dfpjax.numpy as dnp
from dfpjax.numbers.arithmetic.exact_matmul import exact_matmul, exact_matmul_in_hlo, exact_matmul_p

NATIVE = "dfpjax_contract_v1"


def as_int64(wide):
    high, low = wide
    return (np.asarray(high, np.int64) << 32) + np.asarray(low)


def reference(a, b):
    return np.matmul(a.astype(np.int64), b.astype(np.int64))


def of_both(rng, shape_a, shape_b, kinds=(np.int16, np.int16)):
    largest = {np.int16: 2**15 - 1, np.int32: 2**23 - 2**8}
    return [
        rng.integers(-largest[kind], largest[kind] + 1, shape).astype(kind)
        for shape, kind in zip((shape_a, shape_b), kinds, strict=True)
    ]


@pytest.mark.parametrize("function", [exact_matmul, exact_matmul_in_hlo])
@pytest.mark.parametrize("kinds", [(a, b) for a in (np.int16, np.int32) for b in (np.int16, np.int32)])
def test_products_of_all_kinds(function, kinds):
    a, b = of_both(np.random.default_rng(0), (3, 1100), (1100, 5), kinds)
    np.testing.assert_array_equal(as_int64(jax.jit(function)(a, b)), reference(a, b))


@pytest.mark.parametrize("k", [1, 511, 512, 513, 1024])
def test_products_of_all_lengths(k):
    a, b = of_both(np.random.default_rng(k), (7, k), (k, 3))
    np.testing.assert_array_equal(as_int64(exact_matmul(a, b)), reference(a, b))


@pytest.mark.parametrize("extremes", [(32767, 32767), (32767, -32767), (-32768, -32768), (32639, 32640)])
def test_extreme_mantissas(extremes):
    a, b = np.full((2, 70_000), extremes[0], np.int16), np.full((70_000, 1), extremes[1], np.int16)
    np.testing.assert_array_equal(as_int64(exact_matmul(a, b)), reference(a, b))


SHAPES = [
    ((4, 3, 40), (40, 2)), ((3, 40), (4, 40, 2)), ((5, 1, 3, 40), (2, 40, 2)), ((4, 3, 600), (4, 600, 2)),
    ((2, 1, 3, 40), (1, 6, 40, 2)), ((0, 40), (40, 2)), ((3, 0), (0, 2)), ((3, 40), (40, 0)),
]  # fmt: skip


@pytest.mark.parametrize("shapes", SHAPES)
def test_leading_axes_broadcast(shapes):
    a, b = of_both(np.random.default_rng(0), *shapes)
    np.testing.assert_array_equal(as_int64(exact_matmul(a, b)), reference(a, b))


@pytest.mark.parametrize("axes", [(0, None), (None, 2), (1, 0)])
@pytest.mark.parametrize("shapes", [((3, 40), (40, 2)), ((5, 3, 40), (40, 2)), ((3, 40), (5, 40, 2))])
def test_vmap_is_the_loop(axes, shapes):
    mapped = [(*shape[:axis], 4, *shape[axis:]) if axis is not None else shape
              for shape, axis in zip(shapes, axes, strict=True)]  # fmt: skip
    a, b = of_both(np.random.default_rng(0), *mapped)
    examples = [np.moveaxis(x, axis, 0) if axis is not None else [x] * 4
                for x, axis in zip((a, b), axes, strict=True)]  # fmt: skip
    expected = np.stack([reference(x, y) for x, y in zip(*examples, strict=True)])
    np.testing.assert_array_equal(as_int64(jax.vmap(exact_matmul, axes)(a, b)), expected)


def test_a_product_of_arrays_is_native_on_a_cpu_alone():
    q = dfpjax.quantize(jnp.ones((8, 8)))
    traced = jax.jit(lambda a, b: a @ b).trace(q, q)
    assert NATIVE in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert NATIVE not in traced.lower(lowering_platforms=("cuda",)).as_text()


FORMATS = {"tensor": {}, "slices": {"axis": 0}, "blocks": {"blocks": dfpjax.Blocks()}, "8 bits": {"bits": 8}}


@pytest.mark.parametrize("name", FORMATS)
def test_arrays_of_all_formats_have_the_bits_of_plain_hlo(name):
    rng = np.random.default_rng(0)
    a, b = (dfpjax.quantize(normal(rng, shape), **FORMATS[name]) for shape in ((5, 700), (700, 9)))

    def squares(a, b):
        product = a @ b
        return jnp.sum(product.dequantize() ** 2), product

    program = jax.jit(jax.value_and_grad(squares, (0, 1), has_aux=True, allow_int=True))
    found = program(a, b)
    # A program on two devices, each of which has the whole operands.
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    replicated = jax.device_put((a, b), NamedSharding(mesh, PartitionSpec()))
    assert NATIVE not in program.lower(*replicated).as_text()
    jax.tree.map(np.testing.assert_array_equal, *map(leaves, (found, program(*replicated))))
    values = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    assert oracle.relative_error(np.asarray(found[0][1], np.float64), values) < 1e-6


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def normal(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def test_partitioned_programs_compute_in_hlo():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    a, b = (dfpjax.quantize(normal(rng, shape)) for shape in ((4, 300), (300, 6)))
    split = jax.device_put(a.mantissa, NamedSharding(mesh, PartitionSpec("data")))
    multiply = jax.jit(lambda m, b: dnp.matmul(dfpjax.DFPArray(m, a.exponent), b).mantissa)
    compiled = multiply.lower(split, b).compile()
    assert NATIVE not in compiled.as_text() and "all-gather" not in compiled.as_text()
    np.testing.assert_array_equal(compiled(split, b), (a @ b).mantissa)


def test_types_on_an_explicit_mesh():
    mesh = jax.sharding.AbstractMesh((2, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        a = jax.ShapeDtypeStruct((4, 8), np.int16, sharding=NamedSharding(mesh, PartitionSpec("x")))
        b = jax.ShapeDtypeStruct((8, 6), np.int16, sharding=NamedSharding(mesh, PartitionSpec(None, "y")))
        for out in jax.eval_shape(exact_matmul, a, b):
            assert (out.shape, out.sharding.spec) == ((4, 6), PartitionSpec("x", "y"))


def test_programs_name_the_product():
    q = dfpjax.quantize(jnp.ones((3, 3)))
    assert str(jax.make_jaxpr(lambda a: a @ a)(q)).count(exact_matmul_p.name) == 1
