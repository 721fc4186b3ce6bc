"""Contractions of operands in blocks: every path against the plain-JAX reference, bit by bit, and against
exact arithmetic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, COMPILED_QUICKLY, contractions
from test_native import ISAS
from tiers import in_tiers

from dfpjax import kernels
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.numbers.contraction.reference import (
    run_plan,
    run_plan_chain_lengths,
    run_plan_fixed_chain,
)
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT

BLOCKS = Blocks()
BOTH = (BLOCKS, BLOCKS)
OF_EVERY_KIND = ["3x3", "1x1_strided", "grouped", "depthwise", "nchw", "7x7_rgb", "matmul", "matvec"]
PASSES = ("fprop", "dgrad", "wgrad")
QUICK = {("3x3", "fprop"), ("3x3", "wgrad"), ("matmul_tt", "dgrad"), ("7x7_rgb", "wgrad"), ("nchw", "fprop")}


def wide(rng, shape):
    """Values whose blocks differ by many powers of two; some are zero."""
    x = rng.standard_normal(shape) * np.exp(6 * rng.standard_normal(shape))
    return np.where(rng.random(shape) < 0.2, 0, x)


def normal(rng, shape):
    return rng.standard_normal(shape)


def block_quantize(x, blocks):
    """Mantissas and exponents by the definition, in NumPy."""
    outer, rows, columns = blocks.view(x.shape)
    mantissas = np.zeros((outer, rows, columns), np.int16)
    exponents = np.zeros(blocks.counts(x.shape), np.int32)
    values = x.reshape(mantissas.shape)
    size = blocks.size(x.shape)
    for index in np.ndindex(exponents.shape):
        block = (
            index[0],
            slice(index[1] * size[0], (index[1] + 1) * size[0]),
            slice(index[2] * size[1], (index[2] + 1) * size[1]),
        )
        mantissas[block], exponents[index] = oracle.quantize(values[block])
    return mantissas.reshape(x.shape), exponents


def dequantized(mantissas, exponents, blocks):
    _, rows, columns = blocks.view(mantissas.shape)
    block_rows, block_columns = blocks.size(mantissas.shape)
    each = np.repeat(np.repeat(exponents, block_rows, 1), block_columns, 2)[:, :rows, :columns]
    return np.ldexp(mantissas.astype(np.float64), each.reshape(mantissas.shape))


def problem(name, which, data, *, blocks=BOTH, lost=False, seed=0):
    """A plan, its operands, and the values of lhs and rhs in float64."""
    contraction, *shapes = contractions(name)[which]
    rng = np.random.default_rng(seed)
    operands, values = [], []
    for shape, size in zip(shapes, blocks, strict=True):
        x = data(rng, shape).astype(np.float32)
        if size is None:
            mantissas, exponent = oracle.quantize(x)
            exponents = np.full((1,) * len(shape), exponent, np.int32)
            values.append(np.ldexp(mantissas.astype(np.float64), exponent))
        else:
            mantissas, exponents = block_quantize(x, size)
            values.append(dequantized(mantissas, exponents, size))
            if lost:
                exponents.reshape(-1)[rng.integers(exponents.size)] = NONFINITE_EXPONENT - 14
        operands.append((jnp.asarray(mantissas, jnp.int16), jnp.asarray(exponents)))
    (lhs, lhs_exponent), (rhs, rhs_exponent) = operands
    plan = make_plan(contraction, *shapes, lhs_exponent.shape, rhs_exponent.shape, blocks)
    if plan.swapped:
        return plan, (rhs, lhs, rhs_exponent, lhs_exponent), values
    return plan, (lhs, rhs, lhs_exponent, rhs_exponent), values


@functools.partial(jax.jit, static_argnames="plan")
def everywhere(*operands, plan):
    run = functools.partial(kernels.contract, plan, *operands)
    return [run(isa=isa, threads=threads) for isa in ISAS for threads in (1, 2)]


@functools.partial(jax.jit, static_argnames="plan", compiler_options=COMPILED_QUICKLY)
def reference(*operands, plan):
    return run_plan(plan, *operands)


def exact(name, which, lhs, rhs):
    contraction, *_ = contractions(name)[which]
    out = np.zeros(contraction.out_shape)
    for index, products in oracle.products(contraction, lhs, rhs):
        out[index] = products.sum(axis=-1)
    return out


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_values(name, which):
    plan, operands, (lhs, rhs) = problem(name, which, normal)
    expected = exact(name, which, lhs, rhs)
    results = everywhere(*operands, plan=plan)
    assert oracle.relative_error(results[0], expected) < 1.5e-4
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize(
    ("name", "which"),
    [in_tiers(name, which, quick=(name, which) in QUICK) for name in CASES for which in PASSES],
)
def test_every_path_has_the_bits_of_the_reference(name, which):
    for lost in (False, True):
        plan, operands, _ = problem(name, which, wide, lost=lost)
        expected = np.asarray(reference(*operands, plan=plan))
        assert np.isnan(expected).any() == lost
        for result in everywhere(*operands, plan=plan):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    "blocks",
    [
        (Blocks(rows=1, columns=16), Blocks(rows=32, columns=64)),
        (Blocks(rows=256, columns=256), Blocks()),
        (None, Blocks()),
        (Blocks(), None),
    ],
)
def test_blocks_of_any_size(blocks):
    plan, operands, (lhs, rhs) = problem("3x3_deep", "fprop", normal, blocks=blocks)
    results = everywhere(*operands, plan=plan)
    assert oracle.relative_error(results[0], exact("3x3_deep", "fprop", lhs, rhs)) < 2e-4
    np.testing.assert_array_equal(results[0], reference(*operands, plan=plan))


def test_counts_and_fixed_chains():
    plan, operands, _ = problem("3x3_deep", "dgrad", wide)

    @jax.jit
    def run(*operands):
        fixed = {"length": 64, "examples": 1}
        return (
            (kernels.contract_chain_lengths(plan, *operands), run_plan_chain_lengths(plan, *operands)),
            (
                kernels.contract_fixed_chain(plan, *operands, **fixed),
                run_plan_fixed_chain(plan, *operands, **fixed),
            ),
        )

    (lengths, expected_lengths), (fixed, expected_fixed) = run(*operands)
    np.testing.assert_array_equal(lengths[0], expected_lengths[0])
    np.testing.assert_allclose(lengths[1], expected_lengths[1], rtol=1e-6)
    np.testing.assert_array_equal(fixed[0], expected_fixed[0])
    np.testing.assert_array_equal(fixed[1], expected_fixed[1])


def test_rows_of_any_scale_are_exact():
    """A row's result does not depend on the scale of other rows, however far apart they are."""
    rng = np.random.default_rng(0)
    contraction, *_ = contractions("matmul")["fprop"]
    rows = rng.standard_normal((37, 300))
    scale = np.float64(2.0) ** rng.integers(-120, 100, (37, 1))
    rhs = rng.standard_normal((300, 129)) * np.float64(2.0) ** rng.integers(-20, 20, (300, 1))
    results = []
    for lhs in (rows, rows * scale):
        (a, ea), (b, eb) = (block_quantize(x.astype(np.float32), Blocks()) for x in (lhs, rhs))
        plan = make_plan(contraction, lhs.shape, rhs.shape, ea.shape, eb.shape, (Blocks(), Blocks()))
        results.append(np.asarray(everywhere(*map(jnp.asarray, (a, b, ea, eb)), plan=plan)[0], np.float64))
    np.testing.assert_array_equal(results[1], results[0] * scale)


@pytest.mark.parametrize(
    ("exponents", "message"),
    [
        (((37, 1, 9), (300, 1, 5)), r"shape \(37, 300\) must have shape \(37, 1, 10\)"),
        (((37, 1, 10), (1, 129)), "cannot be multiplied by one with exponents of shape"),
    ],
)
def test_exponents_of_other_shapes_are_refused(exponents, message):
    contraction, *shapes = contractions("matmul")["fprop"]
    blocks = (Blocks(), Blocks() if len(exponents[1]) == 3 else None)
    with pytest.raises(ValueError, match=message):
        make_plan(contraction, *shapes, *exponents, blocks)
