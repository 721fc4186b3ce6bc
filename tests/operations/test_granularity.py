"""Operations whose operands have one exponent per slice, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES

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


def scaled_loss(f, x, w, weight):
    return jnp.sum(jnp.sin(f(x, w) * weight))


def derivatives(f, x, w, weight):
    """The output, its tangent, and gradients of first and second order."""
    loss = functools.partial(scaled_loss, f)

    def penalty(x, w):
        return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, w, weight))

    out, tangent = jax.jvp(f, (x, w), (x[::-1], w[::-1]))
    return out, tangent, jax.grad(loss, (0, 1))(x, w, weight), jax.grad(penalty, (0, 1))(x, w)


KINDS = ["3x3_strided", "grouped", "depthwise", "batch_grouped", "both_dilated", "nchw"]
KINDS += ["matmul_tt", "matvec", "inner", "attention", "two_contracted"]


def in_tiers(case, *, quick):
    """A case of a parametrization, in the tier `slow` unless `quick`."""
    return pytest.param(*case, marks=() if quick else pytest.mark.slow)


@functools.cache
def derivatives_in_float64(name):
    """A weight that suits the case's loss, and the derivatives in float64."""
    _, theirs, (x, w) = pair(name, Quantizers())
    weight = np.float32(1 / np.sqrt(np.mean(np.square(theirs(x, w)))))
    return weight, in_float64(functools.partial(derivatives, theirs), x, w, weight)


# One exponent per slice of every operand for every kind, and of a single operand for one dot product.
GRANULARITIES = [
    in_tiers((name, mixed), quick=mixed == "all" or name == "matmul_tt") for name in KINDS for mixed in MIXED
]


@pytest.mark.parametrize(("name", "mixed"), GRANULARITIES)
def test_values_and_derivatives_agree_with_float64(name, mixed):
    ours, _, (x, w) = pair(name, MIXED[mixed])
    weight, expected = derivatives_in_float64(name)
    actual = jax.jit(functools.partial(derivatives, ours))(x, w, weight)
    for got, wanted, tolerance in zip(actual, expected, (2e-4, 3e-4, 5e-4, 2e-3), strict=True):
        assert oracle.relative_error(got, wanted) < tolerance


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
    ("nchw", 1, 0, 1),
    ("odd_layout", 0, 2, 3),
]


SCALED_IN_TIERS = [in_tiers(case, quick=case[0] in ("matmul", "3x3_strided", "depthwise")) for case in SCALED]


@pytest.mark.parametrize(("name", "which", "axis", "out_axis"), SCALED_IN_TIERS)
def test_slices_of_very_different_scales(name, which, axis, out_axis):
    """Scales from 1e−30 to 1e30. The loss undoes them, as a normalization would, so each slice's cotangents
    have the reciprocal scale."""
    _, theirs, operands = pair(name, Quantizers())
    size = operands[which].shape[axis]
    scale = 10.0 ** np.random.default_rng(1).permutation(np.linspace(-30, 30, size))
    operands[which] = (operands[which] * per_slice(scale, operands[which].ndim, axis)).astype(np.float32)
    weight = (0.1 / per_slice(scale, operands[which].ndim, out_axis)).astype(np.float32)

    def run(f):
        def gradients(x, w):
            return jax.grad(functools.partial(scaled_loss, f), (0, 1))(x, w, jnp.asarray(weight))

        def second(x, w):  # of the other operand's gradient, which no slice dominates
            return jnp.sum(jnp.sin(gradients(x, w)[1 - which]))

        return lambda x, w: (f(x, w), gradients(x, w), jax.grad(second, (0, 1))(x, w))

    def errors(quantizers):
        out, first, second = jax.jit(run(pair(name, quantizers)[0]))(*operands)
        return {
            "value": error_per_slice(out, expected[0], out_axis),
            "scaled": error_per_slice(first[which], expected[1][which], axis),
            "other": [oracle.relative_error(first[1 - which], expected[1][1 - which])],
            "second scaled": error_per_slice(second[which], expected[2][which], axis),
            "second other": [oracle.relative_error(second[1 - which], expected[2][1 - which])],
        }

    expected = in_float64(run(theirs), *operands)
    scaled_side = {"lhs" if which == 0 else "rhs": CHANNEL}
    kept = errors(Quantizers(**scaled_side, cotangent=CHANNEL))
    assert max(kept["value"]) < 2e-4
    for of in ("scaled", "other"):
        assert max(kept[of]) < 1e-3, of
    for of in ("second scaled", "second other"):
        assert max(kept[of]) < 5e-3, of
    lost = errors(Quantizers())
    assert max(lost["value"]) > 0.9 and max(lost["scaled"]) > 0.9
    # The other operand's gradient sums over the slices, so one exponent for the cotangent suffices. It does
    # not sum over groups.
    if name not in ("grouped", "depthwise"):
        assert max(errors(Quantizers(**scaled_side))["other"]) < 1e-3


def test_an_input_per_example_and_a_kernel_per_feature():
    _, _, (x, w) = pair("3x3", Quantizers())
    x[0] *= 1e-20
    w[..., ::2] *= 1e-15
    ours, theirs, _ = pair("3x3", MIXED["operands"])
    actual, expected = ours(x, w), in_float64(theirs, x, w)
    for example in range(2):
        assert max(error_per_slice(actual[example], expected[example], 2)) < 2e-4


REFERENCES = [
    in_tiers((name, mixed), quick=mixed == "all" and name in ("3x3_strided", "grouped", "matmul"))
    for name in ("3x3_strided", "grouped", "depthwise", "batch_grouped", "matmul", "attention")
    for mixed in ("lhs", "rhs", "all")
]


@pytest.mark.parametrize(("name", "mixed"), REFERENCES)
def test_the_reference_lowering_gives_the_same_bits(name, mixed):
    ours, _, (x, w) = pair(name, MIXED[mixed])
    results = []
    for backend in ("auto", "reference"):
        out, transpose = jax.vjp(functools.partial(ours, backend=backend), x, w)
        results.append((out, *transpose(jnp.cos(out))))
    for native, portable in zip(*results, strict=True):
        np.testing.assert_array_equal(native, portable)


@functools.cache
def penalty_and_derivatives(name, compiled):
    """A function for second-order gradients, with output and gradients as auxiliary values; also jitted."""
    ours, _, _ = pair(name, MIXED["all"])

    # Each cotangent is a computed value times a power of two, so XLA's fusion does not change its bits.
    def penalty(x, w):
        out, transpose = jax.vjp(ours, x, w)
        gradients = transpose(out)
        return sum(jnp.sum(g**2) for g in gradients), (out, gradients)

    everything = jax.grad(penalty, (0, 1), has_aux=True)
    return everything, jax.jit(everything)


LOOPS = [
    (name, mapped, "quickly")
    for name in ("3x3_strided", "grouped", "depthwise", "matmul", "attention")
    for mapped in ((0, None), (None, 0), (0, 0))
]
LOOPS += [
    pytest.param(name, mapped, "as usual", marks=(pytest.mark.optimized, pytest.mark.slow))
    for name, mapped in (("grouped", (0, None)), ("attention", (None, 0)), ("matmul", (0, 0)))
]


@pytest.mark.parametrize(("name", "mapped", "compiled"), LOOPS)
def test_vmap_is_the_loop(name, mapped, compiled):
    batches = [
        np.stack([pair(name, Quantizers(), seed)[2][i] * 30.0**seed for seed in range(3)]) for i in (0, 1)
    ]
    operands = [x if axis == 0 else x[1] for x, axis in zip(batches, mapped, strict=True)]
    everything, one = penalty_and_derivatives(name, compiled)
    pick = lambda i: [x if axis is None else x[i] for x, axis in zip(operands, mapped, strict=True)]  # noqa: E731
    batched = jax.jit(jax.vmap(everything, mapped))
    loop = [one(*pick(i)) for i in range(3)]
    for actual, *each in zip(*map(jax.tree.leaves, (batched(*operands), *loop)), strict=True):
        assert np.isfinite(actual).all() and np.any(actual)
        np.testing.assert_array_equal(actual, jnp.stack(each))


def test_derivatives_of_a_vmapped_operation():
    ours, theirs, (x, w) = pair("3x3", MIXED["all"])
    xs = np.stack([x, 100 * x[::-1]])

    def penalty(f, w):
        def loss(w):
            return jnp.sum(jnp.sin(jax.vmap(f, (0, None))(xs.astype(w.dtype), w) * 0.01))

        return jnp.sum(jax.grad(loss)(w) ** 2)

    actual = jax.grad(functools.partial(penalty, ours))(w)
    assert oracle.relative_error(actual, in_float64(jax.grad(functools.partial(penalty, theirs)), w)) < 2e-3


def dot(x, w, quantizers=MIXED["all"]):
    return dot_general(x, w, dimension_numbers=(((1,), (0,)), ((), ())), quantizers=quantizers)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_slices(bad):
    rng = np.random.default_rng(0)
    x, w, ct = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((4, 6), (6, 5), (4, 5)))
    out = dot(x.at[1, 2].set(bad), w)
    assert np.isnan(out[1]).all() and np.isfinite(np.delete(out, 1, 0)).all()
    out = dot(x, w.at[0, 3].set(bad))
    assert np.isnan(out[:, 3]).all() and np.isfinite(np.delete(out, 3, 1)).all()
    # A gradient that sums over the slice is NaN throughout, even if the slice's cotangent is zero.
    for cotangent in (ct, ct.at[1].set(0).at[:, 3].set(0), 0 * ct):
        dx, dw = jax.vjp(dot, x.at[1, 2].set(bad), w)[1](cotangent)
        assert np.isfinite(dx).all() and np.isnan(dw).all()
        dx, dw = jax.vjp(dot, x, w.at[0, 3].set(bad))[1](cotangent)
        assert np.isnan(dx).all() and np.isfinite(dw).all()
    dx, dw = jax.vjp(dot, x, w)[1](ct.at[2, 4].set(bad))
    assert np.isnan(dx[2]).all() and np.isfinite(np.delete(dx, 2, 0)).all()
    assert np.isnan(dw[:, 4]).all() and np.isfinite(np.delete(dw, 4, 1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "w", "ct"])
def test_non_finite_values_surface_in_second_derivatives(bad, where):
    rng = np.random.default_rng(0)
    shapes = {"x": (4, 6), "w": (6, 5), "ct": (4, 5)}
    operands = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    operands[where] = operands[where].at[1, 2].set(bad)

    def penalty(product, x, w, ct):
        return sum(jnp.sum(g**2) for g in jax.vjp(product, x, w)[1](ct))

    actual = jax.grad(functools.partial(penalty, dot), (0, 1, 2))(*operands.values())
    expected = jax.grad(functools.partial(penalty, jnp.matmul), (0, 1, 2))(*operands.values())
    for got, wanted in zip(actual, expected, strict=True):
        assert np.isnan(got[~np.isfinite(wanted)]).all()


def test_zero_slices():
    rng = np.random.default_rng(0)
    x, w, ct = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 6), (6, 5), (4, 5)))
    x[2], w[:, 1] = 0, 0
    out, transpose = jax.vjp(dot, x, w)
    dx, dw = transpose(ct)
    for got, wanted in ((out, x @ w), (dx, ct @ w.T), (dw, x.T @ ct)):
        assert oracle.relative_error(got, wanted) < 2e-4
    assert not out[2].any() and not out[:, 1].any()


def test_inside_scan_with_gradients():
    _, _, (x, w) = pair("matmul_tt", Quantizers())
    x, w = x[:32, :32] / 6, w[:31, :32]

    def loss(product, x):
        carry, _ = jax.lax.scan(lambda h, _: (jnp.tanh(product(h, x)), None), w, None, length=3)
        return jnp.sum(carry**2)

    actual = jax.jit(jax.grad(functools.partial(loss, dot)))(x)
    assert oracle.relative_error(actual, jax.grad(functools.partial(loss, jnp.matmul))(x)) < 1e-3


def test_residuals_are_16_bits_wide():
    ours, _, (x, w) = pair("3x3", MIXED["all"])
    _, transpose = jax.vjp(ours, x, w)
    kept = [leaf for leaf in jax.tree.leaves(transpose) if leaf.size > 1]
    assert sorted(leaf.shape for leaf in kept if leaf.dtype != jnp.int32) == sorted((x.shape, w.shape))
    assert {str(leaf.dtype) for leaf in kept} == {"dfp16", "int32"}
    assert sum(leaf.size for leaf in kept if leaf.dtype == jnp.int32) == x.shape[0] + w.shape[3]
