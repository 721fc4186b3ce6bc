"""Derivatives of functions that compute on integers."""

import functools

import jax


def straight_through(integer, real, tensors: tuple, *others):
    """integer(*tensors, *others), with the derivative of real(*values) at the tensors' values.

    As in `quantize`, the derivative treats rounding as the identity.

    Arguments:
        integer: a function that returns one DFPArray or DFP32Array.
        real: the function of float32 arrays that it approximates.
        tensors: DFPArrays and DFP32Arrays.
        others: operands without derivatives.
    """
    # Integer mantissas have no tangents, so JAX does not differentiate the integer program.
    without_tangents = [x.with_mantissa(x.mantissa) for x in tensors]
    out = integer(*without_tangents, *others)
    return out.with_mantissa(_with_derivative(real, out.values, tensors))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative(real, values, tensors):
    return values


@_with_derivative.defjvp
def _with_derivative_jvp(real, primals, tangents):
    values, tensors = primals
    dequantized = [x.dequantize() for x in tensors]
    _, tangent = jax.jvp(real, dequantized, [x.values for x in tangents[1]])
    return _with_derivative(real, values, tensors), tangent
