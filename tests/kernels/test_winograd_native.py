"""Winograd algorithms in native code: every path and any number of threads have the bits of the reference."""

import functools

import jax
import numpy as np
import oracle
import pytest
from blocked import everywhere, normal, problem, reference, wide
from cases import COMPILED_QUICKLY, conv, passes
from test_native import ISAS
from winograd_cases import BOTH, CASES_IN_TIERS, TILES, of_case, of_taps, same

from dfpjax import kernels
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.numbers.contraction.reference import run_plan_chain_lengths
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT


def assert_the_same_everywhere(plan, operands):
    expected = np.asarray(reference(*operands, plan=plan))
    for result in everywhere(*operands, plan=plan):
        np.testing.assert_array_equal(result, expected)
    return expected


@pytest.mark.parametrize(("name", "which", "tiles"), CASES_IN_TIERS)
def test_every_path_has_the_bits_of_the_reference(name, which, tiles):
    for data, lost in ((normal, False), (wide, True)):
        plan, operands, _ = problem(of_case(name, which), data, blocks=BOTH, lost=lost, algorithm=tiles)
        assert np.isnan(assert_the_same_everywhere(plan, operands)).any() == lost


@pytest.mark.parametrize(("tiles", "taps"), TILES)
@pytest.mark.parametrize("blocks", [(None, None), (None, Blocks()), (Blocks(rows=1, columns=16), None)])
def test_one_exponent_of_an_operand(blocks, tiles, taps):
    for which in ("fprop", "wgrad"):
        plan, operands, _ = problem(of_taps(taps, which), wide, blocks=blocks, algorithm=tiles)
        assert_the_same_everywhere(plan, operands)


@pytest.mark.parametrize(("tiles", "taps"), TILES)
@pytest.mark.parametrize("data", [oracle.full_scale, oracle.alternating])
def test_full_scale_mantissas(data, tiles, taps):
    for which in ("fprop", "wgrad"):
        case = passes(*conv((1, 8, 8, 258), (taps, taps, 258, 7), padding=same(taps)))[which]
        assert_the_same_everywhere(*problem(case, data, blocks=(None, None), algorithm=tiles)[:2])


@functools.partial(jax.jit, static_argnames=("plan", "examples", "native"), compiler_options=COMPILED_QUICKLY)
def _chain_lengths(*operands, plan, examples, native):
    if not native:
        return run_plan_chain_lengths(plan, *operands, examples=examples)
    return [kernels.contract_chain_lengths(plan, *operands, examples=examples, isa=isa) for isa in ISAS]


@pytest.mark.parametrize(("tiles", "taps"), TILES)
def test_each_example_of_vmap_has_its_own_exponents_and_chains(tiles, taps):
    contraction, lhs, rhs = of_taps(taps, "fprop")
    case = contraction.map(3, lhs=True, rhs=False), (3, *lhs), rhs
    _, (x, w, _, of_w), _ = problem(case, normal, blocks=(None, None), algorithm=tiles)
    exponents = np.array([-3, 40, NONFINITE_EXPONENT]).reshape(3, 1, 1, 1, 1)
    x = x.at[1].set(x[1] >> 6)
    plan = make_plan(case[0], x.shape, w.shape, exponents.shape, of_w.shape, algorithm=tiles)
    operands = x, w, exponents, of_w
    out, shares = _chain_lengths(*operands, plan=plan, examples=3, native=False)
    assert np.isnan(out[2]).all() and not np.array_equal(shares[0], shares[1])
    for native, found in _chain_lengths(*operands, plan=plan, examples=3, native=True):
        np.testing.assert_array_equal(native, out)
        np.testing.assert_allclose(found[:2], shares[:2], rtol=1e-5)


@pytest.mark.parametrize("which", ["fprop", "wgrad"])
def test_chain_lengths(which):
    plan, operands, _ = problem(of_case("deep", which), normal, blocks=BOTH, algorithm="winograd4")
    out, shares = _chain_lengths(*operands, plan=plan, examples=1, native=False)
    for native, found in _chain_lengths(*operands, plan=plan, examples=1, native=True):
        np.testing.assert_array_equal(native, out)
        np.testing.assert_allclose(found, shares, rtol=1e-5)
        np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)
