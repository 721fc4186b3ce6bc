"""Lengths of certified chains: every path counts the same as the reference and a calculation by hand."""

import functools
import zlib

import jax
import numpy as np
import oracle
import pytest
from cases import COMPILED_QUICKLY, contractions
from test_native import ISAS, matmul, problem
from tiers import in_tiers

from dfpjax import kernels
from dfpjax.numbers.contraction.plan import CHAINS
from dfpjax.numbers.contraction.reference import run_plan_chain_lengths

VARIANTS = [*({"isa": isa} for isa in ISAS), {"threads": 1}, {"threads": 3}]


@functools.partial(jax.jit, static_argnames="plan")
def _native(*operands, plan):
    """`contract`, and `contract_chain_lengths` in all variants."""
    out = kernels.contract(plan, *operands)
    return out, [kernels.contract_chain_lengths(plan, *operands, **variant) for variant in VARIANTS]


@functools.partial(jax.jit, static_argnames="plan", compiler_options=COMPILED_QUICKLY)
def _reference(*operands, plan):
    return run_plan_chain_lengths(plan, *operands)


def product_and_chain_lengths(plan, operands):
    """The product, and the shares of chains by length. Shares are the same on every path and with any number
    of threads, and the product has the bits of `contract`."""
    expected, results = _native(*operands, plan=plan)
    for variant, (out, shares) in zip(VARIANTS, results, strict=True):
        np.testing.assert_array_equal(out, expected, err_msg=str(variant))
        np.testing.assert_array_equal(shares, results[0][1], err_msg=str(variant))
    return np.asarray(expected), np.asarray(results[0][1])[0]


def chain_lengths(plan, operands):
    return product_and_chain_lengths(plan, operands)[1]


def scaled_columns(rng, shape):
    """Normally distributed values; each index of the first and of the last axis has a different scale."""
    scales = [2.0 ** rng.integers(4, 14, n).reshape(n, *(1,) * after)
              for n, after in ((shape[0], len(shape) - 1), (shape[-1], 0))]  # fmt: skip
    x = rng.standard_normal(shape) * np.minimum(*np.broadcast_arrays(*scales))
    return np.clip(np.rint(x), -32767, 32767).astype(np.int16)


MIXED = (oracle.gaussian, oracle.full_scale, oracle.one_outlier, oracle.channel_outlier, scaled_columns)


def test_by_hand():
    """6 of 7 rows and 64 of 70 columns are full scale in the first 256 of 300 products. Chains of full scale
    times full scale have two products there, chains of full scale times 3000 have 16. With sums of squares in
    units of 256, the 16 / 2 pairs of such a chain have 8 · (2 · 32767² / 256) = 6.7e7 and
    8 · (2 · 3000² / 256) = 5.6e5, and 6.7e7 · 5.6e5 < 2^46 < 4 · 6.7e7 · 5.6e5."""
    lhs, rhs = np.zeros((7, 300), np.int16), np.full((300, 70), -32767, np.int16)
    lhs[:6, :256] = 32767
    rhs[:, 64:] = 3000
    plan, operands = matmul(lhs, rhs)
    assert not plan.swapped
    macs = {2: 6 * 64 * 256, 16: 6 * 6 * 256, 256: 1 * 70 * 256 + 7 * 70 * 44}
    expected = np.array([macs.get(length, 0) for length in CHAINS]) / (7 * 70 * 300)
    np.testing.assert_array_equal(chain_lengths(plan, operands), expected.astype(np.float32))


@pytest.mark.parametrize(("m", "k", "n"), [(7, 5, 18), (50, 300, 70), (13, 513, 200), (20, 20_001, 9)])
def test_the_shares_are_the_oracles(m, k, n):
    seen = np.zeros(len(CHAINS))
    for data in MIXED:
        rng = np.random.default_rng(zlib.crc32(f"{m} {k} {n} {data.__name__}".encode()))
        lhs, rhs = data(rng, (m, k)), data(rng, (k, n))
        plan, operands = matmul(lhs, rhs)
        expected = oracle.chain_shares(*((rhs.T, lhs.T) if plan.swapped else (lhs, rhs)))
        shares = chain_lengths(plan, operands)
        np.testing.assert_allclose(shares, expected, rtol=1e-6)
        np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
        seen += shares > 0
    assert np.count_nonzero(seen) >= 3


REFERENCES = [
    in_tiers(name, which, quick=which == "fprop" or name == "grouped")
    for name in ("3x3_strided", "3x3_deep", "grouped", "depthwise", "batched", "long")
    for which in ("fprop", "dgrad", "wgrad")
]


@pytest.mark.parametrize(("name", "which"), REFERENCES)
def test_the_reference_counts_the_same(name, which):
    contraction, lhs_shape, rhs_shape = contractions(name)[which]
    for data in MIXED[:2] + MIXED[-2:]:
        rng = np.random.default_rng(zlib.crc32(f"{name} {which} {data.__name__}".encode()))
        plan, operands = problem(contraction, data(rng, lhs_shape), data(rng, rhs_shape))
        product, shares = product_and_chain_lengths(plan, operands)
        out, expected = _reference(*operands, plan=plan)
        np.testing.assert_array_equal(out, product)
        np.testing.assert_allclose(shares, expected[0], rtol=1e-5)
        np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
        if all(part.lanes for part in plan.parts):
            assert shares.tolist() == [0] * 7 + [1]


def test_several_parts_and_splits_and_lanes_are_among_the_cases():
    plans = [
        problem(contraction, np.zeros(lhs, np.int16), np.zeros(rhs, np.int16))[0]
        for name in ("3x3_strided", "depthwise", "long")
        for contraction, lhs, rhs in contractions(name).values()
    ]
    assert any(len(plan.parts) > 1 for plan in plans)
    assert any(part.lanes for plan in plans for part in plan.parts)
    long, *_ = contractions("long").values()
    plan, _ = problem(long[0], np.zeros(long[1], np.int16), np.zeros(long[2], np.int16))
    assert plan.parts[0].blocks_per_split * 256 < 5_001


@pytest.mark.parametrize("shape", [(3, 0, 4), (0, 5, 4)])
def test_there_are_no_shares_of_nothing(shape):
    m, k, n = shape
    plan, operands = matmul(np.zeros((m, k), np.int16), np.zeros((k, n), np.int16))
    assert chain_lengths(plan, operands).tolist() == [0] * 8
    assert _reference(*operands, plan=plan)[1].tolist() == [[0] * 8]
