"""Contractions that together reach every path of the kernels: layouts, strides, phases, groups, remainders
and splits."""

import functools

import jax
import jax.numpy as jnp

from dfpjax.operations import conv_general_dilated, dot_general

# Compiling the plain-JAX reference takes far longer than running it. XLA's lowest optimization level compiles
# it fastest and gives the same bits. test_operations.py tests it at the default level.
COMPILED_QUICKLY = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later releases have no such option
    COMPILED_QUICKLY["xla_cpu_use_fusion_emitters"] = False

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")
SAME = ((1, 1), (1, 1))


def conv(lhs, rhs, strides=(1, 1), padding=((0, 0), (0, 0)), numbers=NHWC, **kwargs):
    kwargs.update(window_strides=strides, padding=padding, dimension_numbers=numbers)
    return conv_general_dilated, (lhs, rhs), kwargs


def dot(lhs, rhs, contracting, batch=((), ())):
    return dot_general, (lhs, rhs), {"dimension_numbers": (contracting, batch)}


CASES = {
    "1x1": conv((2, 5, 7, 33), (1, 1, 33, 70)),
    "1x1_strided": conv((2, 7, 8, 16), (1, 1, 16, 24), (2, 2)),
    "3x3": conv((2, 7, 6, 20), (3, 3, 20, 65), padding=SAME),
    "3x3_deep": conv((1, 6, 6, 130), (3, 3, 130, 64), padding=SAME),
    "3x3_strided": conv((2, 8, 7, 18), (3, 3, 18, 40), (2, 2), SAME),
    "7x7_rgb": conv((2, 20, 19, 3), (7, 7, 3, 16), (2, 2), ((3, 3), (3, 2))),
    "asymmetric": conv((2, 9, 8, 5), (3, 2, 5, 6), (1, 2), ((0, 3), (2, -1))),
    "negative": conv((2, 9, 8, 4), (2, 2, 4, 6), padding=((-2, 1), (1, -3))),
    "dilated_kernel": conv((2, 11, 10, 6), (3, 3, 6, 8), padding=((2, 2), (2, 2)), rhs_dilation=(2, 2)),
    "dilated_input": conv((2, 5, 6, 6), (3, 3, 6, 8), padding=((2, 2), (1, 2)), lhs_dilation=(2, 3)),
    "both_dilated": conv(
        (1, 5, 6, 6), (3, 2, 6, 8), (2, 1), ((4, 4), (3, 3)), lhs_dilation=(3, 2), rhs_dilation=(2, 3)
    ),
    "grouped": conv((2, 6, 7, 24), (3, 3, 6, 32), (2, 1), SAME, feature_group_count=4),
    "depthwise": conv((2, 9, 8, 19), (3, 3, 1, 19), padding=SAME, feature_group_count=19),
    "depthwise_strided": conv((2, 9, 8, 32), (3, 3, 1, 32), (2, 2), SAME, feature_group_count=32),
    "depthwise_multiplier": conv((2, 6, 5, 9), (3, 3, 1, 27), padding=SAME, feature_group_count=9),
    "batch_grouped": conv((6, 6, 7, 5), (3, 3, 5, 9), (1, 2), SAME, batch_group_count=3),
    "nchw": conv((2, 9, 8, 7), (5, 9, 3, 3), (1, 2), SAME, NCHW),
    "odd_layout": conv((7, 6, 2, 5), (5, 3, 9, 3), padding=SAME, numbers=("HWNC", "IHOW", "CHWN")),
    "1d": conv((3, 17, 12), (5, 12, 10), (2,), ((2, 1),), ("NHC", "HIO", "NHC")),
    "3d": conv(
        (2, 5, 6, 4, 7), (3, 2, 3, 7, 9), (1, 2, 1), ((1, 1), (0, 1), (1, 0)), ("NDHWC", "DHWIO", "NDHWC")
    ),
    "kernel_larger_than_image": conv((2, 2, 3, 4), (5, 5, 4, 6), padding=((3, 2), (2, 3))),
    "matmul": dot((37, 300), (300, 129), ((1,), (0,))),
    "matmul_nt": dot((20, 515), (70, 515), ((1,), (1,))),
    "matmul_tn": dot((515, 20), (515, 70), ((0,), (0,))),
    "matmul_tt": dot((64, 33), (31, 64), ((0,), (1,))),
    "matvec": dot((50, 77), (77,), ((1,), (0,))),
    "vecmat": dot((77,), (77, 50), ((0,), (0,))),
    "inner": dot((1000,), (1000,), ((0,), (0,))),
    "batched": dot((3, 20, 17), (3, 17, 30), ((2,), (1,)), ((0,), (0,))),
    "attention": dot((2, 9, 4, 16), (2, 11, 4, 16), ((3,), (3,)), ((0, 2), (0, 2))),
    "two_contracted": dot((4, 3, 5, 2), (5, 4, 6, 3), ((1, 2), (3, 0))),
    "long": dot((7, 5_001), (5_001, 9), ((1,), (0,))),
    "one_element": dot((1, 1), (1, 1), ((1,), (0,))),
    "single_row": dot((1, 260), (260, 200), ((1,), (0,))),
}


@functools.cache
def contractions(name):
    """A case's contractions in fprop, dgrad and wgrad: {"fprop": (Contraction, lhs_shape, rhs_shape), …}."""
    return passes(*CASES[name])


def passes(function, shapes, kwargs):
    """The contractions of `conv` or `dot`, as `contractions` returns them."""
    lhs, rhs = shapes
    x, w = jnp.zeros(lhs), jnp.zeros(rhs)
    found = {}
    for which, argument in (("dgrad", 0), ("wgrad", 1)):
        gradient = jax.grad(lambda x, w: jnp.sum(function(x, w, **kwargs) ** 2), argument)
        for eqn in jax.make_jaxpr(gradient)(x, w).eqns:
            if eqn.primitive.name == "dfp_contract":
                operands = (eqn.invars[0].aval.shape, eqn.invars[2].aval.shape)
                found["fprop"] = (eqn.params["contraction"], *operands)
            elif eqn.primitive.name == "dfp_contract_linear":
                operands = (eqn.invars[0].aval.shape, eqn.invars[1].aval.shape)
                found[which] = (eqn.params["contraction"], *operands)
    return found
