"""`transformed_sqnr_db`: what a Winograd algorithm loses where it quantizes the transformed operands."""

import functools

import jax
from jax.extend.core import Primitive

from dfpjax.numbers.contraction import transformed
from dfpjax.numbers.contraction.plan import Plan
from dfpjax.numbers.format.dtype import to_integers
from dfpjax.numbers.format.explicit import automatic, with_partitions
from dfpjax.operations.evaluation import planned
from dfpjax.operations.primitives import all_quantized, contract_linear_p


def transformed_sqnr_db(primitive: Primitive, *operands, **params) -> tuple[jax.Array, jax.Array]:
    """The signal to quantization noise of lhs and of rhs after their transform, as
    `dfpjax.numbers.contraction.transformed` defines it, over all axes that vmap added.

    Arguments:
        primitive, operands, params: those of an equation of `contract_p` or `contract_linear_p` that is
            computed by a Winograd algorithm.
    """
    if primitive is contract_linear_p:
        operands, params = all_quantized(*operands, **params)
    lhs, lhs_exponent, rhs, rhs_exponent = operands
    operands = to_integers(lhs), lhs_exponent, to_integers(rhs), rhs_exponent
    plan, *operands = planned(params["contraction"], params["blocks"], params["algorithm"], *operands)
    of_one = with_partitions(jax.typeof(lhs).sharding, ())
    measure = automatic(functools.partial(_of_a_and_b, plan=plan), (of_one, of_one))
    a, b = measure(*operands)
    return (b, a) if plan.swapped else (a, b)


@functools.partial(jax.jit, static_argnames="plan")
def _of_a_and_b(a, b, exponent_a, exponent_b, *, plan: Plan) -> tuple[jax.Array, jax.Array]:
    (part,) = plan.parts
    of_a, of_b = transformed.operands_of(part, plan.grids)
    return (
        transformed.transformed_sqnr_db(of_a, a.ravel(), exponent_a.ravel()),
        transformed.transformed_sqnr_db(of_b, b.ravel(), exponent_b.ravel()),
    )
