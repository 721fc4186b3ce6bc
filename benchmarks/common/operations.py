"""The operations of a shape, ours and JAX's, and the contraction of each of their passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import shapes
from dfpjax.operations import conv_general_dilated, dot_general

PASSES = ("fprop", "dgrad", "wgrad")


def ours_and_jax(case):
    """Our operation and JAX's, as functions of (lhs, rhs)."""
    if isinstance(case, shapes.Conv):
        parameters = {
            "window_strides": (case.stride,) * 2,
            "padding": ((case.padding,) * 2,) * 2,
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
            "feature_group_count": case.groups,
        }
        functions = conv_general_dilated, jax.lax.conv_general_dilated
    elif isinstance(case, shapes.Einsum):
        lhs, rhs, out = case.axes
        batch = [axis for axis in out if axis in lhs and axis in rhs]
        numbers = [
            tuple(tuple(map(operand.index, axes)) for operand in (lhs, rhs))
            for axes in (case.contracted, batch)
        ]
        parameters = {"dimension_numbers": tuple(numbers)}
        functions = dot_general, jax.lax.dot_general
    else:
        axis = len(case.lhs) - 1
        batch = tuple(range(axis - 1))
        parameters = {"dimension_numbers": (((axis,), (axis - 1,)), (batch, batch))}
        functions = dot_general, jax.lax.dot_general
    return [functools.partial(f, **parameters) for f in functions]


def contractions(case):
    """Each pass's operand shapes and contraction, as the library's own differentiation produces them."""
    operation, _ = ours_and_jax(case)
    lhs, rhs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (case.lhs, case.rhs))
    found = {}
    for which, argument in (("dgrad", 0), ("wgrad", 1)):
        gradient = jax.grad(lambda x, w: jnp.sum(operation(x, w) ** 2), argument)
        for equation in jax.make_jaxpr(gradient)(lhs, rhs).eqns:
            shapes_of = [v.aval.shape for v in equation.invars if v.aval.dtype != jnp.int32]
            if equation.primitive.name == "dfp_contract":
                found["fprop"] = (*shapes_of, equation.params["contraction"])
            elif equation.primitive.name == "dfp_contract_linear":
                found[which] = (*shapes_of, equation.params["contraction"])
    return found


def passes(case):
    found = contractions(case)
    return [(which, found[which]) for which in PASSES]


def normal(shape) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
