"""Operations whose operands have one exponent per slice, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, COMPILED_QUICKLY
from tiers import in_tiers

from dfpjax.numbers import Quantizer, Quantizers
from dfpjax.operations import conv_general_dilated, dot_general

JAX = {conv_general_dilated: jax.lax.conv_general_dilated, dot_general: jax.lax.dot_general}
TENSOR, CHANNEL = Quantizer(), Quantizer(granularity="channel")
MIXED = {
    "lhs": Quantizers(lhs=CHANNEL),
    "rhs": Quantizers(rhs=CHANNEL),
    "cotangent": Quantizers(cotangent=CHANNEL),
    "operands": Quantizers(lhs=CHANNEL, rhs=CHANNEL),
    "all": Quantizers(lhs=CHANNEL, rhs=CHANNEL, cotangent=CHANNEL),
}


def pair(name, quantizers, seed=0):
    """Our operation, JAX's, and operands of normally distributed values."""
    function, shapes, kwargs = CASES[name]
    rng = np.random.default_rng(seed)
    operands = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return (
        functools.partial(function, **kwargs, quantizers=quantizers),
        functools.partial(JAX[function], **kwargs),
        operands,
    )


def in_float64(f, *operands):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(f)(*(np.asarray(x, np.float64) for x in operands)))


def derivatives(f, x, w):
    """Gradients of second order, and (output, tangent of the output, gradients of sum(out²) / 2).

    Each cotangent is a computed value times a power of two, so XLA's fusion does not change its bits.
    """

    def penalty(x, w):
        out, transpose = jax.vjp(f, x, w)
        gradients = transpose(out)
        return sum(jnp.sum(g**2) for g in gradients), (out, gradients)

    _, tangent = jax.jvp(f, (x, w), (x[::-1], w[::-1]))
    second, (out, gradients) = jax.grad(penalty, (0, 1), has_aux=True)(x, w)
    return second, (out, tangent, gradients)


@functools.cache
def our_derivatives(name, mixed, compiled):
    """`derivatives` of our operation, and the same jitted. `compiled` says how XLA compiles it."""
    ours, _, _ = pair(name, MIXED[mixed])
    everything = functools.partial(derivatives, ours)
    return everything, jax.jit(everything)


KINDS = ["3x3_strided", "grouped", "depthwise", "batch_grouped", "both_dilated", "nchw"]
KINDS += ["matmul_tt", "matvec", "inner", "attention", "two_contracted"]


@functools.cache
def derivatives_in_float64(name):
    _, theirs, operands = pair(name, Quantizers())
    return in_float64(functools.partial(derivatives, theirs), *operands)


# One exponent per slice of every operand for every kind, and of some operands for kinds with different axes:
# spatial ones, groups and batches.
SOME_OPERANDS = ["3x3_strided", "grouped", "attention"]
GRANULARITIES = [
    in_tiers(name, mixed, quick=mixed == "all" and name not in ("both_dilated", "nchw", "matvec"))
    for name in KINDS
    for mixed in MIXED
    if mixed == "all" or name in SOME_OPERANDS
]


@pytest.mark.parametrize(("name", "mixed"), GRANULARITIES)
def test_values_and_derivatives_agree_with_float64(name, mixed):
    _, _, operands = pair(name, Quantizers())
    second, firsts = our_derivatives(name, mixed, "quickly")[1](*operands)
    expected_second, expected_firsts = derivatives_in_float64(name)
    for got, wanted, tolerance in zip(firsts, expected_firsts, (2e-4, 3e-4, 5e-4), strict=True):
        assert oracle.relative_error(got, wanted) < tolerance
    assert oracle.relative_error(second, expected_second) < 2e-3


def per_slice(values, ndim, axis):
    """`values`, one per slice along the axis, in a shape that broadcasts with `ndim` axes."""
    return np.reshape(values, [-1 if a == axis else 1 for a in range(ndim)])


def error_per_slice(actual, expected, axis):
    """Relative error of every slice along the axis."""
    actual, expected = (np.moveaxis(np.asarray(x, np.float64), axis, 0) for x in (actual, expected))
    actual, expected = (x.reshape(len(x), -1) for x in (actual, expected))
    return np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)


# A case, the operand whose slices get different scales, and the axis of the slices in it and in the output.
SCALED = [
    ("matmul", 0, 0, 0),
    ("matmul", 1, 1, 1),
    ("attention", 0, 1, 2),
    ("attention", 1, 1, 3),
    ("3x3_strided", 1, 3, 3),
    ("grouped", 1, 3, 3),
    ("depthwise", 1, 3, 3),
    ("odd_layout", 0, 2, 3),
]


SCALED_IN_TIERS = [in_tiers(*case, quick=case[:2] in (("matmul", 0), ("3x3_strided", 1))) for case in SCALED]


@pytest.mark.parametrize(("name", "which", "axis", "out_axis"), SCALED_IN_TIERS)
def test_slices_of_very_different_scales(name, which, axis, out_axis):
    """Scales from 1e−30 to 1e30. The loss undoes them, as a normalization would, so each slice's cotangents
    have the reciprocal scale."""
    _, theirs, operands = pair(name, Quantizers())
    size = operands[which].shape[axis]
    scale = 10.0 ** np.random.default_rng(1).permutation(np.linspace(-30, 30, size))
    operands[which] = (operands[which] * per_slice(scale, operands[which].ndim, axis)).astype(np.float32)
    weight = (0.1 / per_slice(scale, operands[which].ndim, out_axis)).astype(np.float32)

    def first(f):
        def value_and_gradients(x, w):
            out, transpose = jax.vjp(f, x, w)
            return out, transpose(jnp.cos(out * weight) * weight)  # of the loss sum(sin(out · weight))

        return value_and_gradients

    def all_orders(f):
        def penalty(x, w):  # of the other operand's gradient, which no slice dominates
            out, gradients = first(f)(x, w)
            return jnp.sum(jnp.sin(gradients[1 - which])), (out, gradients)

        return jax.grad(penalty, (0, 1), has_aux=True)

    def error(actual, expected):
        """Of the scaled operand's gradient per slice, and of the other operand's gradient."""
        other = oracle.relative_error(actual[1 - which], expected[1 - which])
        return max(error_per_slice(actual[which], expected[which], axis)), other

    scaled_side = {"lhs" if which == 0 else "rhs": CHANNEL}
    kept, lost, one_for_the_cotangent = (
        pair(name, Quantizers(**sides))[0]
        for sides in ({**scaled_side, "cotangent": CHANNEL}, {}, scaled_side)
    )
    expected_second, (expected_out, expected) = in_float64(all_orders(theirs), *operands)
    second, (out, gradients) = jax.jit(all_orders(kept))(*operands)
    assert max(error_per_slice(out, expected_out, out_axis)) < 2e-4
    assert max(error(gradients, expected)) < 1e-3
    assert max(error(second, expected_second)) < 5e-3
    lost, one_for_the_cotangent = jax.jit(
        lambda x, w: (first(lost)(x, w), first(one_for_the_cotangent)(x, w))
    )(*operands)
    assert max(error_per_slice(lost[0], expected_out, out_axis)) > 0.9
    assert error(lost[1], expected)[0] > 0.9
    # The other operand's gradient sums over the slices, so one exponent for the cotangent suffices. It does
    # not sum over groups.
    if name not in ("grouped", "depthwise"):
        assert error(one_for_the_cotangent[1], expected)[1] < 1e-3


def test_an_input_per_example_and_a_kernel_per_feature():
    _, _, (x, w) = pair("3x3", Quantizers())
    x[0] *= 1e-20
    w[..., ::2] *= 1e-15
    ours, theirs, _ = pair("3x3", MIXED["operands"])
    actual, expected = jax.jit(ours)(x, w), in_float64(theirs, x, w)
    for example in range(2):
        assert max(error_per_slice(actual[example], expected[example], 2)) < 2e-4


REFERENCES = [
    in_tiers(name, "all", quick=name == "matmul")
    for name in ("3x3_strided", "grouped", "depthwise", "batch_grouped", "matmul", "attention")
]
REFERENCES += [in_tiers("attention", mixed, quick=False) for mixed in ("lhs", "rhs")]


@pytest.mark.parametrize(("name", "mixed"), REFERENCES)
def test_the_reference_lowering_gives_the_same_bits(name, mixed):
    ours, _, operands = pair(name, MIXED[mixed])

    def value_and_gradients(x, w, backend):
        out, transpose = jax.vjp(functools.partial(ours, backend=backend), x, w)
        return out, *transpose(out)

    both = jax.jit(
        lambda *operands: [value_and_gradients(*operands, backend) for backend in ("auto", "reference")],
        compiler_options=COMPILED_QUICKLY,
    )
    for native, portable in zip(*both(*operands), strict=True):
        np.testing.assert_array_equal(native, portable)


QUICK_LOOPS = [("grouped", (0, None)), ("depthwise", (None, 0)), ("matmul", (0, 0)), ("attention", (0, 0))]
LOOPS = [
    in_tiers(name, mapped, "quickly", quick=(name, mapped) in QUICK_LOOPS)
    for name in ("grouped", "depthwise", "matmul", "attention")
    for mapped in ((0, None), (None, 0), (0, 0))
]
LOOPS += [
    pytest.param(name, mapped, "as usual", marks=(pytest.mark.optimized, pytest.mark.slow))
    for name, mapped in (("grouped", (0, None)), ("attention", (0, 0)))
]


@pytest.mark.parametrize(("name", "mapped", "compiled"), LOOPS)
def test_vmap_is_the_loop(name, mapped, compiled):
    batches = [
        np.stack([pair(name, Quantizers(), seed)[2][i] * 30.0**seed for seed in range(3)]) for i in (0, 1)
    ]
    operands = [x if axis == 0 else x[1] for x, axis in zip(batches, mapped, strict=True)]
    everything, one = our_derivatives(name, "all", compiled)
    pick = lambda i: [x if axis is None else x[i] for x, axis in zip(operands, mapped, strict=True)]  # noqa: E731
    batched = jax.jit(jax.vmap(everything, mapped))
    loop = [one(*pick(i)) for i in range(3)]
    for actual, *each in zip(*map(jax.tree.leaves, (batched(*operands), *loop)), strict=True):
        assert np.isfinite(actual).all() and np.any(actual)
        np.testing.assert_array_equal(actual, np.stack(each))


def test_derivatives_of_a_vmapped_operation():
    ours, theirs, (x, w) = pair("3x3", MIXED["all"])
    xs = np.stack([x, 100 * x[::-1]])

    def penalty(f, w):
        def loss(w):
            return jnp.sum(jnp.sin(jax.vmap(f, (0, None))(xs.astype(w.dtype), w) * 0.01))

        return jnp.sum(jax.grad(loss)(w) ** 2)

    actual = jax.jit(jax.grad(functools.partial(penalty, ours)))(w)
    assert oracle.relative_error(actual, in_float64(jax.grad(functools.partial(penalty, theirs)), w)) < 2e-3


def dot(x, w, quantizers=MIXED["all"]):
    return dot_general(x, w, dimension_numbers=(((1,), (0,)), ((), ())), quantizers=quantizers)


def product_and_gradients(x, w, ct):
    out, transpose = jax.vjp(dot, x, w)
    return out, *transpose(ct)


compiled_product_and_gradients = jax.jit(product_and_gradients)


def normal_operands():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 6), (6, 5), (4, 5))]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_slices(bad):
    x, w, ct = normal_operands()
    bad_x, bad_w, bad_ct = x.copy(), w.copy(), ct.copy()
    bad_x[1, 2] = bad_w[0, 3] = bad_ct[2, 4] = bad
    zero_slices = ct.copy()
    zero_slices[1] = zero_slices[:, 3] = 0
    # A gradient that sums over the slice is NaN throughout, even if the slice's cotangent is zero.
    for cotangent in (ct, zero_slices, 0 * ct):
        out, dx, dw = compiled_product_and_gradients(bad_x, w, cotangent)
        assert np.isnan(out[1]).all() and np.isfinite(np.delete(out, 1, 0)).all()
        assert np.isfinite(dx).all() and np.isnan(dw).all()
        out, dx, dw = compiled_product_and_gradients(x, bad_w, cotangent)
        assert np.isnan(out[:, 3]).all() and np.isfinite(np.delete(out, 3, 1)).all()
        assert np.isnan(dx).all() and np.isfinite(dw).all()
    _, dx, dw = compiled_product_and_gradients(x, w, bad_ct)
    assert np.isnan(dx[2]).all() and np.isfinite(np.delete(dx, 2, 0)).all()
    assert np.isnan(dw[:, 4]).all() and np.isfinite(np.delete(dw, 4, 1)).all()


@functools.cache
def second_derivatives():
    """Of our dot product and of JAX's."""

    def penalty(product, x, w, ct):
        return sum(jnp.sum(g**2) for g in jax.vjp(product, x, w)[1](ct))

    return jax.jit(
        lambda *operands: [
            jax.grad(functools.partial(penalty, product), (0, 1, 2))(*operands)
            for product in (dot, jnp.matmul)
        ]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["x", "w", "ct"])
def test_non_finite_values_surface_in_second_derivatives(bad, where):
    operands = normal_operands()
    operands[where][1, 2] = bad
    actual, expected = second_derivatives()(*operands)
    assert not all(np.isfinite(wanted).all() for wanted in expected)
    for got, wanted in zip(actual, expected, strict=True):
        assert np.isnan(got[~np.isfinite(wanted)]).all()


def test_zero_slices():
    x, w, ct = normal_operands()
    x[2], w[:, 1] = 0, 0
    out, dx, dw = compiled_product_and_gradients(x, w, ct)
    for got, wanted in ((out, x @ w), (dx, ct @ w.T), (dw, x.T @ ct)):
        assert oracle.relative_error(got, wanted) < 2e-4
    assert not out[2].any() and not out[:, 1].any()


def test_inside_scan_with_gradients():
    _, _, (x, w) = pair("matmul_tt", Quantizers())
    x, w = x[:32, :32] / 6, w[:31, :32]

    def loss(product, x):
        carry, _ = jax.lax.scan(lambda h, _: (jnp.tanh(product(h, x)), None), w, None, length=3)
        return jnp.sum(carry**2)

    actual, expected = jax.jit(
        lambda x: [jax.grad(functools.partial(loss, product))(x) for product in (dot, jnp.matmul)]
    )(x)
    assert oracle.relative_error(actual, expected) < 1e-3


def test_residuals_are_16_bits_wide():
    ours, _, (x, w) = pair("3x3", MIXED["all"])
    transpose = jax.eval_shape(lambda x, w: jax.vjp(ours, x, w)[1], x, w)
    kept = [leaf for leaf in jax.tree.leaves(transpose) if leaf.size > 1]
    assert sorted(leaf.shape for leaf in kept if leaf.dtype != jnp.int32) == sorted((x.shape, w.shape))
    assert {str(leaf.dtype) for leaf in kept} == {"dfp16", "int32"}
    assert sum(leaf.size for leaf in kept if leaf.dtype == jnp.int32) == x.shape[0] + w.shape[3]
