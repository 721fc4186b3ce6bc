"""Both accumulation modes on adversarial data, on every path: certified sums never overflow, and fixed chains
saturate, and are counted, as in an independent oracle."""

import functools
import zlib

import jax
import numpy as np
import oracle
import pytest
from cases import COMPILED_QUICKLY, contractions
from test_native import ISAS, assert_same_on_every_isa, matmul, native, problem

from dfpjax import kernels
from dfpjax.numbers.contraction.plan import BLOCK, CHAINS
from dfpjax.numbers.contraction.reference import run_plan_fixed_chain

LENGTHS = [*range(1, 4), 8, 31, 32, 33, *range(127, 130), *range(255, 259), *range(511, 514), 4097, 100_000]
CONVOLUTIONS = ["3x3", "3x3_strided", "grouped", "depthwise", "dilated_input", "nchw", "matmul_tt"]


@functools.partial(jax.jit, static_argnames=("plan", "length", "bounded", "isas", "threads"))
def _native(*operands, plan, length, bounded, isas, threads):
    run = functools.partial(kernels.contract_fixed_chain, plan, *operands, length=length, bounded=bounded)
    return [run(isa=isa, threads=count) for isa in isas for count in threads]


@functools.partial(jax.jit, static_argnames=("plan", "length"), compiler_options=COMPILED_QUICKLY)
def _reference(*operands, plan, length):
    return run_plan_fixed_chain(plan, *operands, length=length)


def native_fixed(plan, operands, length, *, bounded=False, isas=("",), threads=(0,)):
    """The result and the count of saturated chains, on each path and with each number of threads."""
    results = _native(*operands, plan=plan, length=length, bounded=bounded, isas=isas, threads=threads)
    return [(np.asarray(out), saturated.tolist()) for out, saturated in results]


def assert_fixed(plan, operands, length, expected, saturated, paths=ISAS):
    results = native_fixed(plan, operands, length, isas=tuple(paths))
    for isa, (out, count) in zip(paths, results, strict=True):
        np.testing.assert_array_equal(out, expected, err_msg=isa)
        assert count == [saturated], isa


def seed(*names):
    return np.random.default_rng(zlib.crc32(" ".join(map(str, names)).encode()))


# The error bound of float32 accumulation: each chain sum and each addition is rounded once. The shortest
# chains have two products.
def tolerance(magnitude, k):
    return 2.0**-24 * (k / 2 + 2) * magnitude


@pytest.mark.parametrize("which", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_certified_sums_are_exact(name, which):
    contraction, lhs_shape, rhs_shape = contractions(name)[which]
    for lhs_data in oracle.ADVERSARIAL.values():
        for rhs_data in (lhs_data, oracle.full_scale):
            rng = seed(name, which, lhs_data.__name__)
            lhs, rhs = lhs_data(rng, lhs_shape), rhs_data(rng, rhs_shape)
            out = native(*problem(contraction, lhs, rhs))
            for position, terms in oracle.products(contraction, lhs, rhs):
                error = np.abs(out[position] - terms.sum(axis=1))
                assert (error <= tolerance(np.abs(terms).sum(axis=1), terms.shape[1])).all()


@pytest.mark.parametrize("which", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_fixed_chains_are_the_oracles(name, which):
    contraction, lhs_shape, rhs_shape = contractions(name)[which]
    saturations = 0
    for data in (*oracle.ADVERSARIAL.values(), oracle.gaussian):
        rng = seed(name, which, data.__name__)
        lhs, rhs = data(rng, lhs_shape), oracle.full_scale(rng, rhs_shape)
        plan, operands = problem(contraction, lhs, rhs)
        assert all(
            part.blocks_per_split >= np.prod([d.extent for d in part.k]) / BLOCK for part in plan.parts
        )
        a, b, ordered = (rhs, lhs, contraction.swap()) if plan.swapped else (lhs, rhs, contraction)
        for length in (4, 256):
            expected, saturated = oracle.fixed_chain(ordered, a, b, length)
            assert_fixed(plan, operands, length, expected, saturated)
            saturations += saturated
    assert saturations > 0


def products(lhs, rhs):
    """The products that a matrix product adds, as [rows · columns, k]."""
    terms = lhs[:, None, :].astype(np.int64) * rhs.T[None].astype(np.int64)
    return terms.reshape(-1, lhs.shape[1])


@pytest.mark.parametrize(("k", "length"), [(k, CHAINS[i % len(CHAINS)]) for i, k in enumerate(LENGTHS)])
def test_fixed_chains_of_every_contraction_length(k, length):
    for data in oracle.ADVERSARIAL.values() if k < 10_000 else (oracle.same_sign, oracle.channel_outlier):
        rng = seed(k, data.__name__)
        lhs, rhs = data(rng, (7, k)), oracle.full_scale(rng, (k, 18))
        plan, operands = matmul(lhs, rhs)
        (part,) = plan.parts
        for chain in {length, 256}:
            split = part.blocks_per_split * BLOCK
            total, saturated = oracle.add_saturated_chains(products(lhs, rhs), chain, split)
            assert_fixed(plan, operands, chain, total.reshape(7, 18), saturated)


@pytest.mark.parametrize("k", LENGTHS)
def test_certified_sums_are_exact_for_every_contraction_length(k):
    for data in oracle.ADVERSARIAL.values():
        rng = seed(k, data.__name__)
        for lhs_data, rhs_data in ((data, oracle.full_scale), (oracle.same_sign, data)):
            lhs, rhs = lhs_data(rng, (7, k)), rhs_data(rng, (k, 18))
            plan, operands = matmul(lhs, rhs)
            exact_lhs, exact_rhs = lhs.astype(np.float64), rhs.astype(np.float64)
            error = np.abs(native(plan, operands) - exact_lhs @ exact_rhs)
            assert (error <= tolerance(np.abs(exact_lhs) @ np.abs(exact_rhs), k)).all()


SLOW_REFERENCES = [pytest.param(name, marks=pytest.mark.slow) for name in ("nchw", "depthwise", "long")]


@pytest.mark.parametrize("name", ["3x3_strided", *SLOW_REFERENCES])
def test_the_reference_gives_the_same_bits(name):
    for which, (contraction, lhs_shape, rhs_shape) in contractions(name).items():
        for data in (oracle.gaussian, oracle.full_scale, oracle.small):
            rng = seed(name, which, data.__name__)
            plan, operands = problem(contraction, data(rng, lhs_shape), data(rng, rhs_shape))
            for length in (2, 128):
                expected, saturated = _reference(*operands, plan=plan, length=length)
                assert_fixed(plan, operands, length, expected, int(saturated[0]), paths=ISAS[:1])


@pytest.mark.parametrize("length", [2, 32, 256])
def test_chains_that_are_known_to_be_bounded_give_the_same_bits(length):
    for name in ("3x3", "matvec"):
        for contraction, lhs_shape, rhs_shape in contractions(name).values():
            rng = seed(name, length)
            plan, operands = problem(contraction, oracle.small(rng, lhs_shape), oracle.small(rng, rhs_shape))
            ((expected, _),) = native_fixed(plan, operands, length)
            for out, count in native_fixed(plan, operands, length, bounded=True, isas=tuple(ISAS)):
                np.testing.assert_array_equal(out, expected)
                assert count == [0]


@pytest.mark.parametrize("name", ["3x3", "long", "grouped"])
def test_any_number_of_threads_gives_the_same_bits_and_count(name):
    for contraction, lhs_shape, rhs_shape in contractions(name).values():
        rng = seed(name)
        data = oracle.full_scale(rng, lhs_shape), oracle.full_scale(rng, rhs_shape)
        plan, operands = problem(contraction, *data)
        one, *others = native_fixed(plan, operands, 64, threads=(1, 2, 3, 0))
        assert one[1][0] > 0
        for other in others:
            np.testing.assert_array_equal(other[0], one[0])
            assert other[1] == one[1]


def test_where_no_chain_can_overflow_both_modes_agree():
    contraction, lhs_shape, rhs_shape = contractions("3x3")["fprop"]
    rng = seed("agree")
    plan, operands = problem(contraction, oracle.small(rng, lhs_shape), oracle.small(rng, rhs_shape))
    ((out, count),) = native_fixed(plan, operands, 256)  # every tile is certified for that length
    np.testing.assert_array_equal(out, assert_same_on_every_isa(plan, operands))
    assert count == [0]
