"""Mantissas of −32768. `quantize` never makes them, but sums must not wrap if they come from elsewhere."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_native import ISAS, assert_same_on_every_isa, matmul, problem

from dfpjax import kernels
from dfpjax.numbers.contraction.accumulation import is_bounded
from dfpjax.numbers.contraction.contraction import Contraction, Window

LOWEST = -32768


def depthwise(lhs, rhs):
    """A 1-D depthwise convolution: lhs[time, channel], rhs[tap, channel]."""
    times, taps = lhs.shape[0], rhs.shape[0]
    window = Window(lhs=0, rhs=2, out=3, lhs_coef=1, out_coef=-1, rhs_coef=-1, offset=0)
    return problem(
        Contraction(
            lhs=(0, 1), rhs=(2, 1), out=(3, 1), out_shape=(times - taps + 1, lhs.shape[1]), windows=(window,)
        ),
        lhs,
        rhs,
    )


@pytest.mark.parametrize("k", [1, 2, 3, 4, 300])
def test_every_path_sums_exactly(k):
    plan, operands = matmul(np.full((7, k), LOWEST, np.int16), np.full((k, 66), LOWEST, np.int16))
    expected = np.full((7, 66), k * 2.0**30, np.float32)
    np.testing.assert_array_equal(assert_same_on_every_isa(plan, operands), expected)


def test_few_of_them_among_others():
    rng = np.random.default_rng(0)
    lhs = np.where(rng.random((13, 90)) < 0.8, LOWEST, 32767).astype(np.int16)
    rhs = np.where(rng.random((90, 20)) < 0.8, LOWEST, 32767).astype(np.int16)
    plan, operands = matmul(lhs, rhs)
    pairs = np.einsum("mpk,pkn->pmn", *(x.astype(np.int64).reshape(s) for x, s in
                                        ((lhs, (13, 45, 2)), (rhs, (45, 2, 20)))))  # fmt: skip
    expected = np.zeros((13, 20), np.float32)
    for pair in pairs:  # in chains of 2: such data certifies no longer ones
        expected += pair.astype(np.float32)
    np.testing.assert_array_equal(assert_same_on_every_isa(plan, operands), expected)


def test_depthwise():
    plan, operands = depthwise(np.full((9, 21), LOWEST, np.int16), np.full((4, 21), LOWEST, np.int16))
    assert all(part.lanes for part in plan.parts)
    expected = np.full((6, 21), 2.0**32, np.float32)
    np.testing.assert_array_equal(assert_same_on_every_isa(plan, operands), expected)


def test_chains_of_two_saturate_even_where_they_are_bounded():
    assert is_bounded(2, 16, 16)
    plan, operands = matmul(np.full((3, 8), LOWEST, np.int16), np.full((8, 5), LOWEST, np.int16))
    for isa in ISAS:
        out, saturated = kernels.contract_fixed_chain(plan, *operands, length=2, bounded=True, isa=isa)
        np.testing.assert_array_equal(out, jnp.full((3, 5), 2.0**33), err_msg=isa)
        assert saturated.tolist() == [3 * 5 * 4]
