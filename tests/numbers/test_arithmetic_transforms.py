import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import PartitionSpec
from tensors import make

import dfpjax
import dfpjax.numpy as dnp
from dfpjax import DFP32Array, DFPArray
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT


def everything(a, b):
    return dnp.down_convert(a @ b.T), a * b, a + b, dnp.fma(a, b, a - b)


def test_jit_gives_the_same_bits():
    rng = np.random.default_rng(0)
    a, b = (dfpjax.quantize(rng.standard_normal((3, 4)).astype(np.float32)) for _ in range(2))
    eager, jitted = everything(a, b), jax.jit(everything)(a, b)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)


compiled_everything = jax.jit(everything)


@pytest.mark.parametrize("mapped", [True, False])
def test_vmap_is_the_loop(mapped):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-32767, 32768, (5, 3, 4)).astype(np.int16) for _ in range(2))
    exponent = np.array([0, -9, 4, NONFINITE_EXPONENT, 30]) if mapped else np.array(-7)
    a[1] = 0
    x = make(DFPArray, a, exponent[:, None, None] if mapped else exponent)
    y = make(DFPArray, b[0], 3)
    batched = jax.jit(jax.vmap(everything, in_axes=(0, None)))(x, y)
    for i in range(5):
        expected = compiled_everything(make(DFPArray, a[i], exponent[i] if mapped else exponent), y)
        jax.tree.map(
            lambda actual, expected, i=i: np.testing.assert_array_equal(np.asarray(actual)[i], expected),
            batched,
            expected,
        )


@pytest.mark.parametrize("mapped_seed", [True, False])
def test_stochastic_rounding_under_vmap_is_the_loop(mapped_seed):
    m = np.random.default_rng(0).integers(-(2**30), 2**30, (4, 50))
    seeds = np.arange(4, dtype=np.uint32)

    def one(m, seed):
        return dnp.down_convert(DFP32Array(m, 0), rounding="stochastic", seed=seed).mantissa

    m = m.astype(np.int32)
    batched = jax.jit(jax.vmap(one, (0, 0 if mapped_seed else None)))(m, seeds if mapped_seed else seeds[2])
    loop = [one(m[i], seeds[i if mapped_seed else 2]) for i in range(4)]
    np.testing.assert_array_equal(batched, np.stack(loop))


REAL = {
    "multiply": (lambda a, b: a * b, lambda x, y: x * y),
    "add": (lambda a, b: a + b, lambda x, y: x + y),
    "subtract": (lambda a, b: a - b, lambda x, y: x - y),
    "matmul": (lambda a, b: a @ b.T, lambda x, y: x @ y.T),
    "fma": (lambda a, b: dnp.fma(a, b, a), lambda x, y: x * y + x),
    "maximum": (dnp.maximum, jnp.maximum),
    "chain": (lambda a, b: dnp.down_convert(-(a * b)) * abs(a) + b, lambda x, y: -(x * y) * abs(x) + y),
}


@pytest.mark.parametrize("name", REAL)
def test_derivatives_are_straight_through(name):
    integer, real = REAL[name]
    rng = np.random.default_rng(0)
    x, y, shift = (rng.standard_normal((3, 3)).astype(np.float32) for _ in range(3))
    x, y = (np.asarray(dfpjax.quantize(z)) for z in (x, y))  # nothing left to round

    def of_integers(x, y):
        return (integer(dfpjax.quantize(x), dfpjax.quantize(y)).dequantize() * shift).sum()

    def of_reals(x, y):
        return (real(x, y) * shift).sum()

    derivatives = jax.jit(
        lambda x, y: [[of(f, (0, 1))(x, y) for f in (of_integers, of_reals)] for of in (jax.grad, jax.jacfwd)]
    )
    gradients, forward = derivatives(x, y)
    assert oracle.relative_error(*gradients) < 1e-4
    assert oracle.relative_error(*forward) < 1e-4


@pytest.mark.parametrize("name", ["matmul", "chain"])
def test_second_derivatives(name):
    integer, real = REAL[name]
    x, y = (np.float32([[0.5, -2.0], [1.5, 0.25]]) + np.float32(offset) for offset in (0, 1))

    def of_integers(x, y):
        return (integer(dfpjax.quantize(x), dfpjax.quantize(y)).dequantize() ** 2).sum()

    functions = of_integers, lambda x, y: (real(x, y) ** 2).sum()
    hessians = jax.jit(lambda x, y: [jax.hessian(f, (0, 1))(x, y) for f in functions])(x, y)
    assert oracle.relative_error(*hessians) < 1e-3


def test_derivatives_outside_of_jit():
    x, y = np.float32([1, 0.5]), np.float32([3, -4])

    def product(x, y):
        return (dfpjax.quantize(x) @ dfpjax.quantize(y)).dequantize()

    gradients = jax.grad(product, (0, 1))(x, y)
    np.testing.assert_array_equal(gradients, [y, x])
    _, tangent = jax.jvp(product, (x, y), (y, x))
    assert tangent == 1 + 0.25 + 9 + 16


def test_derivatives_with_vmap_inside_and_outside():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3)).astype(np.float32)

    def one(x):
        q = dfpjax.quantize(x)
        return dnp.down_convert(q * q + q).dequantize().sum()

    expected = 2 * np.asarray(dfpjax.quantize(x)) + 1
    outside, inside = jax.vmap(jax.grad(one)), jax.grad(lambda x: jax.vmap(one)(x).sum())
    for gradient in jax.jit(lambda x: (outside(x), inside(x)))(x):
        np.testing.assert_allclose(gradient, expected, rtol=1e-3)


def test_inside_shard_map():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 600), (600, 3)))

    def f(x, w):
        q, r = dfpjax.quantize(x), dfpjax.quantize(w)
        return dnp.max_pool(dnp.relu(dnp.down_convert(q @ r + q @ r)), (2,), (2,), [(1, 0)]).dequantize()

    specs = {"in_specs": (PartitionSpec("d"), PartitionSpec()), "out_specs": PartitionSpec("d")}

    def value_and_gradients(g):
        def total(x, w):
            out = g(x, w)
            return out.sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, w)
        return out, gradients

    (actual, gradients), (expected, expected_gradients) = (
        value_and_gradients(g) for g in (jax.shard_map(f, mesh=mesh, **specs), f)
    )
    np.testing.assert_array_equal(actual, expected)
    assert oracle.relative_error(gradients, expected_gradients) < 1e-5


def test_integers_are_what_a_program_computes_on():
    q = dfpjax.quantize(jnp.ones((3, 3)))
    text = str(jax.make_jaxpr(lambda a: dnp.down_convert(a @ a + a * a))(q))
    assert "f32" not in text and "dfp32" in text
