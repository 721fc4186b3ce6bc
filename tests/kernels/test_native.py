"""The native kernels against the plain-JAX reference, bit by bit, and against exact arithmetic."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, COMPILED_QUICKLY, contractions
from tiers import in_tiers

from dfpjax import kernels
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.numbers.contraction.reference import run_plan
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT

ISAS = kernels.runtime_info().usable


def problem(contraction, lhs, rhs, lhs_exponent=0, rhs_exponent=0):
    """A plan and its operands. Exponents may be scalars, or arrays of the operand's rank."""
    exponents = [
        jnp.asarray(e, jnp.int32) if np.ndim(e) else jnp.full((1,) * x.ndim, e, jnp.int32)
        for x, e in ((lhs, lhs_exponent), (rhs, rhs_exponent))
    ]
    plan = make_plan(contraction, lhs.shape, rhs.shape, exponents[0].shape, exponents[1].shape)
    if plan.swapped:
        return plan, (rhs, lhs, *reversed(exponents))
    return plan, (lhs, rhs, *exponents)


@functools.partial(jax.jit, static_argnames="plan")
def _native(*operands, plan):
    return kernels.contract(plan, *operands)


@functools.partial(jax.jit, static_argnames="plan")
def _native_with_threads(*operands, plan):
    return [kernels.contract(plan, *operands, threads=threads) for threads in (1, 2, 3, 0)]


@functools.partial(jax.jit, static_argnames="plan")
def _native_on_every_isa(*operands, plan):
    return [kernels.contract(plan, *operands, isa=isa) for isa in ISAS]


@functools.partial(jax.jit, static_argnames="plan", compiler_options=COMPILED_QUICKLY)
def _reference(*operands, plan):
    return run_plan(plan, *operands)


def native(plan, operands):
    return np.asarray(_native(*operands, plan=plan))


def reference(plan, operands):
    return np.asarray(_reference(*operands, plan=plan))


def assert_same_on_every_isa(plan, operands):
    expected = reference(plan, operands)
    for isa, out in zip(ISAS, _native_on_every_isa(*operands, plan=plan), strict=True):
        np.testing.assert_array_equal(out, expected, err_msg=isa)
    return expected


BACKWARD = ("3x3_strided", "both_dilated", "grouped", "depthwise", "matmul_tt")
PASSES = [
    in_tiers(name, which, quick=which == "fprop" or name in BACKWARD)
    for name in CASES
    for which in ("fprop", "dgrad", "wgrad")
]


@pytest.mark.parametrize(("name", "which"), PASSES)
def test_every_isa_gives_the_references_bits(name, which):
    contraction, lhs_shape, rhs_shape = contractions(name)[which]
    rng = np.random.default_rng(zlib.crc32(f"{name} {which}".encode()))
    for data in oracle.DATA.values():
        plan, operands = problem(contraction, data(rng, lhs_shape), data(rng, rhs_shape))
        assert_same_on_every_isa(plan, operands)


def matmul(lhs, rhs, **exponents):
    contraction = Contraction(lhs=(0, 1), rhs=(1, 2), out=(0, 2), out_shape=(lhs.shape[0], rhs.shape[1]))
    return problem(contraction, lhs, rhs, **exponents)


ROWS, COLUMNS = (1, 5, 6, 7, 12, 13, 97), (1, 15, 16, 17, 48, 63, 64, 65, 130)
TILES = [(rows, columns) for rows in ROWS for columns in COLUMNS if rows == 7 or columns in (17, 65)]
TILES += [in_tiers(*tile, quick=False) for tile in itertools.product((1, 97), (1, 16, 64, 130))]


@pytest.mark.parametrize(("rows", "columns"), TILES)
def test_tile_remainders(rows, columns):
    rng = np.random.default_rng(rows * 1000 + columns)
    k = (1, 2, 31, 33, 255, 257, 530)[(rows + columns) % 7]
    plan, operands = matmul(oracle.gaussian(rng, (rows, k)), oracle.gaussian(rng, (k, columns)))
    assert_same_on_every_isa(plan, operands)


@pytest.mark.parametrize(
    "exponents", [(0, 0), (-100, -60), (-163, -163), (-80, -75), (60, 50), (113, 113), (-163, 113)]
)
def test_scaling_rounds_once(exponents):
    rng = np.random.default_rng(0)
    lhs, rhs = oracle.gaussian(rng, (7, 40)), oracle.gaussian(rng, (40, 9))
    plan, operands = matmul(lhs, rhs, lhs_exponent=exponents[0], rhs_exponent=exponents[1])
    unscaled = native(*matmul(lhs, rhs)).astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        expected = np.ldexp(unscaled, sum(exponents)).astype(np.float32)
    np.testing.assert_array_equal(assert_same_on_every_isa(plan, operands), expected)


@pytest.mark.parametrize("side", ["lhs_exponent", "rhs_exponent"])
def test_a_non_finite_operand_makes_everything_nan(side):
    zeros = np.zeros((7, 40), np.int16), np.zeros((40, 9), np.int16)
    plan, operands = matmul(*zeros, **{side: NONFINITE_EXPONENT})
    assert np.isnan(assert_same_on_every_isa(plan, operands)).all()


def test_exponents_along_free_axes():
    rng = np.random.default_rng(0)
    lhs, rhs = oracle.gaussian(rng, (13, 300)), oracle.gaussian(rng, (300, 70))
    rows = rng.integers(-30, 5, (13, 1))
    rows[4], rows[5] = -170, NONFINITE_EXPONENT
    columns = rng.integers(-30, 5, (1, 70))
    plan, operands = matmul(lhs, rhs, lhs_exponent=rows, rhs_exponent=columns)
    out = assert_same_on_every_isa(plan, operands)
    assert np.isnan(out[5]).all() and np.isfinite(np.delete(out, 5, axis=0)).all()


SLICED = [
    "3x3_strided",
    "grouped",
    "depthwise",
    "depthwise_strided",
    "batch_grouped",
    "odd_layout",
    "attention",
]


@pytest.mark.parametrize("which", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize(
    "name",
    [in_tiers(name, quick=name in ("3x3_strided", "depthwise")) for name in SLICED],
)
def test_exponents_of_every_slice(name, which):
    """Both operands have one exponent per slice along their free and batch axes."""
    contraction, lhs_shape, rhs_shape = contractions(name)[which]
    rng = np.random.default_rng(0)
    exponents = []
    for labels, shape in ((contraction.lhs, lhs_shape), (contraction.rhs, rhs_shape)):
        axes = contraction.slice_axes(labels)
        own = rng.integers(-40, 10, [size if a in axes else 1 for a, size in enumerate(shape)])
        own.flat[0] = -170
        exponents.append(own)
    lhs, rhs = oracle.gaussian(rng, lhs_shape), oracle.gaussian(rng, rhs_shape)
    plan, operands = problem(contraction, lhs, rhs, *exponents)
    out = assert_same_on_every_isa(plan, operands)
    # Independently of the reference, each output must have the exponents of its own slices.
    unscaled = reference(*problem(contraction, lhs, rhs, *map(np.zeros_like, exponents))).astype(np.float64)
    total = np.zeros([1] * out.ndim, np.int64)
    for labels, own in zip((contraction.lhs, contraction.rhs), exponents, strict=True):
        sizes = dict(zip(labels, own.shape, strict=True))
        kept = [label for label in contraction.out if label in sizes]
        axes = [labels.index(label) for label in kept]
        rest = [axis for axis in range(own.ndim) if axis not in axes]
        moved = own.transpose([*axes, *rest]).reshape([sizes[label] for label in kept])
        total = total + moved.reshape([sizes.get(label, 1) for label in contraction.out])
    with np.errstate(under="ignore"):
        np.testing.assert_array_equal(out, np.ldexp(unscaled, total).astype(np.float32))


@pytest.mark.parametrize("shapes", [((0, 5), (5, 3)), ((4, 5), (5, 0)), ((4, 0), (0, 3))])
def test_empty(shapes):
    lhs, rhs = (np.zeros(shape, np.int16) for shape in shapes)
    plan, operands = matmul(lhs, rhs)
    out = assert_same_on_every_isa(plan, operands)
    assert out.shape == (shapes[0][0], shapes[1][1]) and not out.any()


@pytest.mark.parametrize("name", ["3x3", "matmul", "long", "depthwise", "3x3_strided"])
def test_any_number_of_threads_gives_the_same_bits(name):
    for contraction, lhs_shape, rhs_shape in contractions(name).values():
        rng = np.random.default_rng(0)
        operands = oracle.gaussian(rng, lhs_shape), oracle.gaussian(rng, rhs_shape)
        plan, operands = problem(contraction, *operands)
        one, *others = _native_with_threads(*operands, plan=plan)
        for other in others:
            np.testing.assert_array_equal(other, one)
