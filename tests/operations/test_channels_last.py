"""Convolutions with exponents of blocks in layouts whose channels are not last: they run channels-last."""

import functools

import jax
import numpy as np
import oracle
import pytest
from cases import COMPILED_QUICKLY

from dfpjax import FixedChain
from dfpjax.numbers import Quantizer, Quantizers
from dfpjax.operations import conv_general_dilated, saturated_chains

BLOCK = Quantizer(granularity="block")
IN_BLOCKS = Quantizers(lhs=BLOCK, rhs=BLOCK, cotangent=BLOCK)

SIZES = {"N": 4, "I": 40, "O": 34, "H": 9, "W": 8, "D": 5}

CASES = {
    "nchw": (("NCHW", "OIHW", "NCHW"), {"window_strides": (1, 2)}),
    "ncw": (("NCW", "OIW", "NCW"), {}),
    "ncdhw": (("NCDHW", "OIDHW", "NCDHW"), {"window_strides": (2, 2, 2)}),
    "oihw": (("NHWC", "OIHW", "NHWC"), {}),
    "ohwi": (("NHWC", "OHWI", "NHWC"), {}),
    "only lhs": (("NCHW", "HWIO", "NHWC"), {}),
    "only out": (("NHWC", "HWIO", "NCHW"), {"rhs_dilation": (1, 2)}),
    "odd": (("NHCW", "IHOW", "CNHW"), {"lhs_dilation": (2, 1)}),
    "feature groups": (("NCHW", "OIHW", "NCHW"), {"feature_group_count": 2}),
    "batch groups": (("NCHW", "OIHW", "NCHW"), {"batch_group_count": 2}),
}


def case(name):
    """The dimension numbers, the other parameters and the operands."""
    numbers, parameters = CASES[name]
    windows = len(numbers[0]) - 2
    parameters = {"window_strides": (1,) * windows, "padding": ((1, 1),) * windows, **parameters}
    lhs = {**SIZES, "C": SIZES["I"]}
    rhs = {**SIZES, "I": SIZES["I"] // parameters.get("feature_group_count", 1)} | dict.fromkeys("DHW", 3)
    shapes = [tuple(sizes[c] for c in spec) for spec, sizes in zip(numbers, (lhs, rhs), strict=False)]
    rng = np.random.default_rng(0)
    return numbers, parameters, [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def in_layout(x, spec, other):
    """A tensor with axes as in `spec`, with its axes as in `other`."""
    return x.transpose([spec.index(c) for c in other])


def by_hand(function, numbers):
    """The function in N…C and …IO, for tensors with their axes as in `numbers`."""
    spatial = "".join(c for c in numbers[1] if c not in "IO")
    last = f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"
    lhs, rhs, out = zip(numbers, last, strict=True)

    def run(x, w, *rest):
        rest = [in_layout(y, *out) for y in rest]
        result = function(in_layout(x, *lhs), in_layout(w, *rhs), *rest, dimension_numbers=last)
        return in_layout(result, *out[::-1]) if hasattr(result, "ndim") else result

    return run


def derivatives(function):
    """The function's value, its gradients for a cotangent, and its tangent for tangents of both operands."""

    def run(cotangent, *operands):
        out, transpose = jax.vjp(function, *operands)
        return out, *transpose(cotangent), jax.jvp(function, operands, tuple(y[::-1] for y in operands))[1]

    return run


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name):
    numbers, parameters, operands = case(name)
    ours = functools.partial(conv_general_dilated, **parameters, quantizers=IN_BLOCKS)
    theirs = functools.partial(jax.lax.conv_general_dilated, **parameters, dimension_numbers=numbers)
    shape = jax.eval_shape(theirs, *operands).shape
    cotangent = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    actual = jax.jit(derivatives(functools.partial(ours, dimension_numbers=numbers)))(cotangent, *operands)
    jax.tree.map(
        np.testing.assert_array_equal,
        actual,
        jax.jit(derivatives(by_hand(ours, numbers)))(cotangent, *operands),
    )
    with jax.enable_x64(True):
        wide = [x.astype(np.float64) for x in (cotangent, *operands)]
        expected = jax.jit(derivatives(theirs), compiler_options=COMPILED_QUICKLY)(*wide)
    assert oracle.relative_error(actual, expected) < 2e-4


@pytest.mark.parametrize("role", ["lhs", "rhs", "cotangent"])
def test_one_role_in_blocks(role):
    numbers, parameters, operands = case("nchw")
    ours = functools.partial(conv_general_dilated, **parameters, quantizers=Quantizers(**{role: BLOCK}))
    cotangent = np.ones(jax.eval_shape(by_hand(ours, numbers), *operands).shape, np.float32)
    runs = functools.partial(ours, dimension_numbers=numbers), by_hand(ours, numbers)
    actual, expected = (jax.jit(derivatives(run))(cotangent, *operands) for run in runs)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("mapped", [(True, True), (True, False), (False, True)])
def test_vmap_equals_the_loop(mapped):
    numbers, parameters, operands = case("nchw")
    ours = functools.partial(
        conv_general_dilated, **parameters, dimension_numbers=numbers, quantizers=IN_BLOCKS
    )
    scales = np.array([1, 1e-6], np.float32)
    x, w = (np.multiply.outer(scales, x) if m else x for x, m in zip(operands, mapped, strict=True))
    cotangent = np.ones(jax.eval_shape(ours, *operands).shape, np.float32)
    axes = [0 if m else None for m in mapped]
    together = jax.jit(jax.vmap(derivatives(ours), (None, *axes)))(cotangent, x, w)
    one = jax.jit(derivatives(ours))
    for i in range(2):
        expected = one(cotangent, x[i] if mapped[0] else x, w[i] if mapped[1] else w)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, expected)


@pytest.mark.parametrize("name", ["nchw", "feature groups"])
def test_saturated_chains(name):
    numbers, parameters, operands = case(name)
    operands = [np.abs(x) for x in operands]
    out = jax.eval_shape(
        lambda *xs: jax.lax.conv_general_dilated(*xs, **parameters, dimension_numbers=numbers), *operands
    )
    count = functools.partial(
        saturated_chains,
        conv_general_dilated,
        **parameters,
        quantizers=IN_BLOCKS,
        accumulation=FixedChain(32, 0, saturate=True),
    )
    args = *operands, np.ones(out.shape, np.float32)
    actual = jax.jit(functools.partial(count, dimension_numbers=numbers))(*args)
    assert min(actual) > 0
    assert actual == jax.jit(by_hand(count, numbers))(*args)


@pytest.mark.parametrize(
    ("numbers", "quantizers"),
    [
        (("NCHW", "OIHW", "NCHW"), Quantizers()),
        (("NCHW", "OIHW", "NCHW"), Quantizers(lhs=Quantizer(granularity="channel"))),
        (("NHWC", "HWIO", "NHWC"), IN_BLOCKS),
        (("CHWN", "HWOI", "HWNC"), IN_BLOCKS),
    ],
)
def test_nothing_else_is_transposed(numbers, quantizers):
    shapes = [tuple(SIZES[c.replace("C", "I")] for c in spec) for spec in numbers[:2]]
    convolve = functools.partial(
        conv_general_dilated,
        window_strides=(1, 1),
        padding=((4, 4), (4, 4)),
        dimension_numbers=numbers,
        quantizers=quantizers,
    )
    operands = [np.zeros(shape, np.float32) for shape in shapes]
    text = str(jax.make_jaxpr(lambda *xs: jax.vjp(convolve, *xs)[1](convolve(*xs)))(*operands))
    assert "dfp_contract_linear" in text and "transpose[" not in text
