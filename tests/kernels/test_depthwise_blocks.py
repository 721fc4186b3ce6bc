"""Depthwise convolutions of operands in blocks, which run along SIMD lanes: every path against the plain-JAX
reference, bit by bit, and against exact sums of the operands' exact values."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocked import everywhere, exact, normal, problem, reference, wide
from cases import SAME, conv, passes

from dfpjax.kernels import contract_chain_lengths, contract_fixed_chain
from dfpjax.numbers.contraction.reference import run_plan_chain_lengths, run_plan_fixed_chain
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.policy import OpConfig, Policy
from dfpjax.transform import mixed_precision

NHC, NDHWC = ("NHC", "HIO", "NHC"), ("NDHWC", "DHWIO", "NDHWC")
ONE_ROW, FEW = Blocks(rows=1, columns=32), Blocks(rows=4, columns=16)
SIZES = [Blocks(rows=rows, columns=columns) for rows, columns in ((1, 32), (8, 32), (2, 64), (16, 16))]
PASSES = ("fprop", "dgrad", "wgrad")


def depthwise(lhs, window, *args, **kwargs):
    channels = lhs[-1]
    return conv(lhs, (*window, 1, channels), *args, feature_group_count=channels, **kwargs)


CASES = {
    "same": depthwise((2, 9, 8, 40), (3, 3), padding=SAME),
    "strided": depthwise((2, 9, 8, 100), (3, 3), (2, 2), SAME),
    "dilated": depthwise((1, 11, 10, 33), (3, 3), padding=((2, 2), (1, 3)), rhs_dilation=(2, 2)),
    "merged_columns": depthwise((2, 7, 9, 8), (3, 3), padding=((0, 1), (1, 0))),
    "splits": depthwise((16, 12, 12, 12), (2, 2)),
    "large_window": depthwise((1, 19, 18, 9), (17, 17), padding=SAME),
    "1d": depthwise((3, 170, 16), (5,), (2,), ((2, 1),), NHC),
    "3d": depthwise((2, 4, 5, 4, 17), (2, 3, 2), (1, 2, 1), ((1, 1), (0, 1), (1, 0)), NDHWC),
}


def case_of(name, which):
    """A case without axes of extent 1: with them, blocks would have all channels, as those of real
    convolutions have."""
    contraction, lhs, rhs = passes(*CASES[name])[which]
    sizes = dict(zip((*contraction.lhs, *contraction.rhs), (*lhs, *rhs), strict=True))
    windowed = {label for w in contraction.windows for label in (w.lhs, w.rhs, w.out)}

    def kept(labels):
        return tuple(x for x in labels if x in windowed or sizes[x] > 1)

    def shape(labels):
        return tuple(sizes[x] for x in kept(labels))

    sizes |= dict(zip(contraction.out, contraction.out_shape, strict=True))
    dense = replace(
        contraction,
        lhs=kept(contraction.lhs), rhs=kept(contraction.rhs), out=kept(contraction.out),
        out_shape=shape(contraction.out),
    )  # fmt: skip
    return dense, shape(contraction.lhs), shape(contraction.rhs)


def far(rng, shape):
    """Values of all magnitudes from 2^-60 to 2^60, and images of zeros."""
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-60, 61, (*shape[:-1], 1)))
    return np.where(rng.random((shape[0], *(1,) * (len(shape) - 1))) < 0.2, 0, x)


def assert_same_bits(case, blocks):
    for data, lost in ((wide, False), (far, False), (wide, True)):
        plan, operands, _ = problem(case, data, blocks=blocks, lost=lost)
        assert all(part.lanes for part in plan.parts)
        expected = np.asarray(reference(*operands, plan=plan))
        assert np.isnan(expected).any() == lost
        for result in everywhere(*operands, plan=plan):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", CASES)
def test_every_path_has_the_bits_of_the_reference(name, which):
    assert_same_bits(case_of(name, which), (FEW, FEW))


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("blocks", [*((size, size) for size in SIZES), (None, SIZES[0]), (FEW, None)])
def test_bits_with_blocks_of_any_size(blocks, which):
    assert_same_bits(case_of("strided", which), blocks)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", CASES)
def test_sums_have_no_error_but_that_of_float32(name, which):
    """No mantissa is shifted, so the error is that of adding float32 numbers."""
    contraction, *_ = case = case_of(name, which)
    for size in SIZES:
        plan, operands, values = problem(case, normal, blocks=(size, size))
        magnitudes = exact(contraction, *map(np.abs, values))
        error = np.abs(reference(*operands, plan=plan) - exact(contraction, *values))
        assert (error <= 1e-6 * magnitudes).all()


def test_every_product_is_its_own_chain():
    """Products of 2^30, far more than an int32 sums."""
    case = case_of("large_window", "fprop")
    plan, operands, _ = problem(case, lambda _, shape: np.full(shape, 32767.0), blocks=(FEW, FEW))
    result, lengths = jax.jit(lambda *x: contract_chain_lengths(plan, *x))(*operands)
    expected, expected_lengths = run_plan_chain_lengths(plan, *operands)
    np.testing.assert_array_equal(result, expected)
    assert lengths.tolist() == expected_lengths.tolist() == [[0] * 7 + [1]]


@pytest.mark.parametrize("which", PASSES)
def test_channels_of_any_scale_are_exact(which):
    """A channel's result does not depend on the scale of other channels, though they are 2^200 apart."""
    case = case_of("strided", which)
    scale = np.float64(2.0) ** np.repeat([100, -100, 0, -20], (32, 32, 32, 4))
    results = []
    for factor in (1.0, scale):
        plan, operands, _ = problem(
            case,
            lambda rng, shape, factor=factor: normal(rng, shape) * (factor if shape == case[1] else 1.0),
            blocks=(ONE_ROW, ONE_ROW),
        )
        results.append(np.asarray(everywhere(*operands, plan=plan)[0], np.float64))
    np.testing.assert_array_equal(results[1], results[0] * scale)


def test_what_is_not_finite_stays_in_its_outputs():
    """An element makes NaN the outputs whose windows meet its block, 32 channels of a pixel."""
    x, w = np.ones((1, 12, 12, 64), np.float32), np.ones((3, 3, 1, 64), np.float32)
    x[0, 5, 6, 40] = np.inf
    policy = Policy(default=OpConfig(force=True, granularity="block", blocks=ONE_ROW))
    *_, kwargs = depthwise(x.shape, (3, 3))
    run = jax.jit(mixed_precision(lambda x, w: jax.lax.conv_general_dilated(x, w, **kwargs), policy))
    lost = np.zeros((1, 10, 10, 64), bool)
    lost[0, 3:6, 4:7, 32:] = True
    np.testing.assert_array_equal(run(x, w), np.where(lost, np.nan, 9))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_vmap_has_the_bits_of_single_examples(backend):
    _, (lhs, rhs), kwargs = depthwise((2, 6, 7, 12), (3, 3), (2, 1), SAME)
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(wide(rng, (3, *shape)), jnp.float32) for shape in (lhs, rhs))
    policy = Policy(default=OpConfig(force=True, granularity="block", blocks=FEW))
    convolve = mixed_precision(
        lambda x, w: jax.lax.conv_general_dilated(x, w, **kwargs), policy, backend=backend
    )

    def run(x, w):
        out, pullback = jax.vjp(convolve, x, w)
        return out, *pullback(jnp.cos(out))

    single = jax.jit(run)
    expected = [single(*example) for example in zip(x, w, strict=True)]
    jax.tree.map(
        lambda out, *each: np.testing.assert_array_equal(out, np.stack(each)),
        jax.jit(jax.vmap(run))(x, w), *expected,
    )  # fmt: skip


def test_fixed_chains_run_as_cells():
    plan, operands, _ = problem(case_of("splits", "wgrad"), wide, blocks=(FEW, FEW))
    for length in (2, 64):
        result, saturated = jax.jit(lambda *x, length=length: contract_fixed_chain(plan, *x, length=length))(
            *operands
        )
        expected, expected_saturated = run_plan_fixed_chain(plan, *operands, length=length)
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(saturated, expected_saturated)
