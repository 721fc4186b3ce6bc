"""Contractions whose operands have symbolic extents, in programs that `jax.export` makes.

XLA knows the extents before it compiles, but then no Python runs. So the native call has the contraction as
text instead of a plan. When it first runs with operands of some shapes, it asks `plan_for` for their plan,
which is the one that a program for these shapes alone has. The kernels keep it
(`cpp_ops/python/plans.cc`).
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

from dfpjax._symbolic import is_symbolic
from dfpjax.numbers import Blocks
from dfpjax.numbers.contraction.algorithm import RequestedAlgorithm, choose_algorithm
from dfpjax.numbers.contraction.contraction import Contraction, Shape
from dfpjax.numbers.contraction.plan import DeferredPlan, Plan, make_plan
from dfpjax.operations.partitioning import descriptions

AllBlocks = tuple[Blocks | None, Blocks | None]


def plan_of(
    contraction: Contraction,
    shapes: tuple[Shape, Shape, Shape, Shape],
    blocks: AllBlocks,
    algorithm: RequestedAlgorithm,
) -> Plan | DeferredPlan:
    """The plan of a contraction, or what stands for it if an extent is symbolic.

    Arguments:
        shapes: of lhs, of rhs, and of their exponents.
        algorithm: what is wanted; the contraction is computed directly if it cannot be had.
    """
    if is_symbolic(contraction.out_shape, *shapes):
        return deferred_plan(contraction, blocks, algorithm)
    chosen = choose_algorithm(contraction, *shapes, blocks, requested=algorithm).algorithm
    return make_plan(contraction, *shapes, blocks, chosen)


def deferred_plan(
    contraction: Contraction, blocks: AllBlocks, algorithm: RequestedAlgorithm, rhs: Sequence[Shape] = ()
) -> DeferredPlan:
    """What stands for the plan of operands with symbolic extents.

    Arguments:
        rhs: the shapes of rhs and of its exponents, if the call will not have these.
    """
    without_shape = replace(contraction, out_shape=())
    described = {"contraction": without_shape, "blocks": blocks, "algorithm": algorithm, "rhs": rhs}
    return DeferredPlan(out_shape=contraction.out_shape, text=descriptions.write(described))


def plan_for(text: str, shapes: Sequence[Sequence[int]]) -> tuple[bool, tuple[int, ...]]:
    """The plan for a call of a native kernel, which has the text of a `DeferredPlan`.

    Arguments:
        shapes: of lhs and of its exponents, the same of rhs unless the text says them, and of the result.

    Returns:
        whether the plan swaps lhs and rhs, and its integers.
    """
    found = _read(text)
    lhs, lhs_exponent, *rhs, out = map(tuple, shapes)
    rhs, rhs_exponent = rhs or found["rhs"]
    contraction = replace(found["contraction"], out_shape=out)
    shapes = lhs, rhs, lhs_exponent, rhs_exponent
    plan = plan_of(contraction, shapes, found["blocks"], found["algorithm"])
    return plan.swapped, plan.encode()


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> dict:
    return descriptions.read(text)
