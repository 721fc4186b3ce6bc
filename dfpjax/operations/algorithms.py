"""Which algorithms compute a convolution and its gradients."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from dfpjax._symbolic import nominal_shape
from dfpjax.numbers import Quantizers
from dfpjax.numbers.contraction.accumulation import Accumulation
from dfpjax.numbers.contraction.algorithm import Algorithm, Choice
from dfpjax.operations.conv import conv_problem
from dfpjax.operations.dot import quantized
from dfpjax.operations.primitives import chosen_algorithm, contract_linear_p, contract_p, linear_parts


class Algorithms(NamedTuple):
    """The algorithms of an operation and of its gradients."""

    fprop: Choice
    dgrad: Choice
    wgrad: Choice


def conv_algorithms(
    lhs_shape: tuple[int, ...],
    rhs_shape: tuple[int, ...],
    *,
    quantizers: Quantizers,
    accumulation: Accumulation,
    **parameters,
) -> Algorithms:
    """The algorithms of a `conv_general_dilated` of operands of these shapes, with its other parameters. One
    that is asked for by name and not possible counts as "direct". Of symbolic shapes, the algorithms of those
    that they count as."""

    def trace(lhs, rhs):
        problem = conv_problem(lhs, rhs, quantizers=quantizers, **parameters)
        return quantized(problem, quantizers, accumulation, "auto")

    operands = (jax.ShapeDtypeStruct(nominal_shape(shape), jnp.float32) for shape in (lhs_shape, rhs_shape))
    return _traced(lambda *operands: _algorithms(*trace(*operands)), *operands)


def contraction_algorithms(*operands, **params) -> Algorithms:
    """Those of an equation of `contract_p`, given the types of its operands."""
    operands = (jax.ShapeDtypeStruct(nominal_shape(x.shape), x.dtype) for x in operands)
    contraction = params["contraction"]
    params["contraction"] = replace(contraction, out_shape=nominal_shape(contraction.out_shape))
    return _traced(lambda *operands: _algorithms(operands, params), *operands)


def algorithm_of(primitive: Primitive, *operands, **params) -> Algorithm:
    """That of an equation of `contract_p` or `contract_linear_p`, given the types of its operands."""
    operands = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands)
    return _traced(lambda *operands: chosen_algorithm(primitive, *operands, **params).algorithm, *operands)


def _traced(function, *operands):
    """A function's result that depends on its arguments' types alone."""
    found = []
    jax.eval_shape(lambda *operands: found.append(function(*operands)), *operands)
    return found[0]


def _algorithms(operands, params) -> Algorithms:
    lhs, lhs_exponent, rhs, rhs_exponent = operands
    contraction = params["contraction"]
    of_lhs, of_rhs = linear_parts(**params)
    cotangent = jnp.zeros(contraction.out_shape, jnp.float32)

    def gradient(linear, *held, contraction, **params) -> Choice:
        transposed = contraction.transpose(linear.shape)
        return chosen_algorithm(contract_linear_p, cotangent, *held, contraction=transposed, **params)

    return Algorithms(
        fprop=chosen_algorithm(contract_p, *operands, **params),
        dgrad=gradient(lhs, rhs, rhs_exponent, **of_lhs),
        wgrad=gradient(rhs, lhs, lhs_exponent, **of_rhs),
    )
