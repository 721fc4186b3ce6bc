"""How a contraction of quantized operands runs: by which algorithm, and in native code or in plain JAX.

The functions take mantissas as integers. With a `RequestedAlgorithm`, a contraction is computed directly if
the algorithm cannot be had.
"""

import functools
import math
from dataclasses import replace

import jax

from dfpjax import kernels
from dfpjax._symbolic import is_symbolic, nominal_shape
from dfpjax.numbers.contraction.accumulation import is_bounded
from dfpjax.numbers.contraction.algorithm import Choice, RequestedAlgorithm, choose_algorithm
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.contraction.plan import CHAINS, DeferredPlan, Plan
from dfpjax.numbers.contraction.reference import run_plan, run_plan_chain_lengths, run_plan_fixed_chain
from dfpjax.operations.layouts import contraction_layout, contraction_of_shard
from dfpjax.operations.partitioning import per_shard
from dfpjax.operations.shaped import plan_of


def chosen(
    contraction: Contraction, lhs, lhs_exponent, rhs, rhs_exponent,
    *, blocks, accumulation, algorithm: RequestedAlgorithm,
) -> Choice:  # fmt: skip
    """The algorithm of a contraction of operands of these shapes; of symbolic ones, that of those that they
    count as."""
    shapes = (nominal_shape(x.shape) for x in (lhs, rhs, lhs_exponent, rhs_exponent))
    contraction = replace(contraction, out_shape=nominal_shape(contraction.out_shape))
    certified = accumulation == "certified"
    return choose_algorithm(contraction, *shapes, blocks, certified=certified, requested=algorithm)


def settled(contraction: Contraction, *operands, blocks, algorithm: RequestedAlgorithm) -> RequestedAlgorithm:
    """The algorithm of a contraction with certified chains. It is chosen before the contraction is
    partitioned, so from the shapes of the whole. That of symbolic shapes is chosen when the program runs."""
    if is_symbolic(contraction.out_shape, *(x.shape for x in operands)):
        return algorithm
    found = chosen(contraction, *operands, blocks=blocks, accumulation="certified", algorithm=algorithm)
    return found.algorithm


@per_shard("contraction", contraction_layout(), of_shard=contraction_of_shard)
def run_certified(
    *operands, contraction: Contraction, blocks, algorithm: RequestedAlgorithm, native: bool
) -> tuple[jax.Array]:
    """The result with certified chains."""
    run = kernels.contract if native else run_plan
    return (run(*planned(contraction, blocks, algorithm, *operands)),)


@per_shard("contraction_and_lengths", contraction_layout("mean"), of_shard=contraction_of_shard)
def run_counting(
    *operands, contraction: Contraction, blocks, algorithm: RequestedAlgorithm, native: bool
) -> tuple[jax.Array, jax.Array]:
    """The result with certified chains, and their lengths. Of several devices, those of each count alike."""
    examples = examples_of(contraction)
    run = kernels.contract_chain_lengths if native else run_plan_chain_lengths
    operands = planned(contraction, blocks, algorithm, *operands)
    out, lengths = run(*operands, examples=math.prod(examples))
    return out, lengths.reshape(*examples, len(CHAINS))


@per_shard("contraction_of_fixed_chains", contraction_layout("count"), of_shard=contraction_of_shard)
def run_fixed_chain(
    *operands, contraction: Contraction, length: int, bits: tuple[int, int], blocks, native: bool
) -> tuple[jax.Array, jax.Array]:
    """The result with chains of one length, and the number of saturated ones. On each device the chains begin
    with the first element of its shard."""
    examples = examples_of(contraction)
    chains = {"length": length, "examples": math.prod(examples)}
    if native:
        run = functools.partial(kernels.contract_fixed_chain, bounded=is_bounded(length, *bits))
    else:
        run = run_plan_fixed_chain
    out, saturated = run(*planned(contraction, blocks, "direct", *operands), **chains)
    return out, saturated.reshape(examples)


def examples_of(contraction: Contraction) -> tuple[int, ...]:
    """Extents of the axes that vmap added, which come first."""
    return contraction.out_shape[: len(contraction.mapped)]


def planned(
    contraction: Contraction, blocks, algorithm: RequestedAlgorithm, lhs, lhs_exponent, rhs, rhs_exponent
) -> tuple[Plan | DeferredPlan, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The plan, and the operands in its order."""
    shapes = (lhs.shape, rhs.shape, lhs_exponent.shape, rhs_exponent.shape)
    plan = plan_of(contraction, shapes, blocks, algorithm)
    if isinstance(plan, Plan) and plan.swapped:
        lhs, lhs_exponent, rhs, rhs_exponent = rhs, rhs_exponent, lhs, lhs_exponent
    return plan, lhs, rhs, lhs_exponent, rhs_exponent
