"""Contractions of operands in blocks: every path against the plain-JAX reference, bit by bit, and against
exact arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from blocked import block_quantize, everywhere, exact, normal, problem, reference, wide
from cases import CASES, contractions
from tiers import in_tiers

from dfpjax import kernels
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.numbers.contraction.reference import run_plan_chain_lengths, run_plan_fixed_chain
from dfpjax.numbers.format.blocks import Blocks

BLOCKS = Blocks()
BOTH = (BLOCKS, BLOCKS)
OF_EVERY_KIND = ["3x3", "1x1_strided", "grouped", "depthwise", "nchw", "7x7_rgb", "matmul", "matvec"]
PASSES = ("fprop", "dgrad", "wgrad")
QUICK = {("3x3", "fprop"), ("3x3", "wgrad"), ("matmul_tt", "dgrad"), ("7x7_rgb", "wgrad"), ("nchw", "fprop")}


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_values(name, which):
    case = contractions(name)[which]
    plan, operands, values = problem(case, normal, blocks=BOTH)
    expected = exact(case[0], *values)
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
        plan, operands, _ = problem(contractions(name)[which], wide, blocks=BOTH, lost=lost)
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
    case = contractions("3x3_deep")["fprop"]
    plan, operands, values = problem(case, normal, blocks=blocks)
    results = everywhere(*operands, plan=plan)
    assert oracle.relative_error(results[0], exact(case[0], *values)) < 2e-4
    np.testing.assert_array_equal(results[0], reference(*operands, plan=plan))


def test_counts_and_fixed_chains():
    plan, operands, _ = problem(contractions("3x3_deep")["dgrad"], wide, blocks=BOTH)

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
