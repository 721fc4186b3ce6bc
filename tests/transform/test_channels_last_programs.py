"""Programs in NCHW with exponents of blocks: their operations run channels-last, as those in NHWC do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_partitioning import mesh_of, run
from test_residuals import residuals, types
from transform_helpers import normal, relative_error

import dfpjax
from dfpjax.policy import OpConfig, Policy
from dfpjax.transform import mixed_precision

IN_BLOCKS = Policy(default=OpConfig(force=True, granularity="block"))
in_blocks = functools.partial(mixed_precision, policy=IN_BLOCKS)

NCHW, NHWC = ("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC")
X, W = normal(0, 4, 40, 9, 8), normal(1, 33, 40, 3, 3) / 19


def convolve(x, w, numbers=NCHW):
    with jax.named_scope("layer"):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)


def by_hand(x, w):
    """The same convolution, transposed to NHWC."""
    return convolve(x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0), NHWC).transpose(0, 3, 1, 2)


def loss(fun):
    return lambda x, w: jnp.sum(jnp.sin(fun(x, w)))


def gradient_outside(fun):
    return jax.grad(loss(in_blocks(fun)), (0, 1))


def gradient_inside(fun):
    """The transform sees the convolutions that JAX derives for the gradients."""
    return in_blocks(jax.grad(loss(fun), (0, 1)))


GRADIENTS = pytest.mark.parametrize("gradient", [gradient_outside, gradient_inside])


@GRADIENTS
def test_gradients_are_those_of_nhwc(gradient):
    actual, expected = (jax.jit(gradient(fun))(X, W) for fun in (convolve, by_hand))
    np.testing.assert_array_equal(actual[1], expected[1])
    if gradient is gradient_outside:  # JAX's own dgrad has the kernel's axes in another order
        np.testing.assert_array_equal(actual[0], expected[0])
    assert relative_error(actual, jax.jit(jax.grad(loss(convolve), (0, 1)))(X, W)) < 3e-4


@GRADIENTS
def test_native_calls_are_channels_last(gradient):
    """Each tensor is quantized once in all passes, except that JAX reverses the kernel of its own dgrad."""
    text = jax.jit(gradient(convolve)).lower(X, W).compile().as_text()
    calls = re.findall(r'"dfpjax_(quantize|contract)\w*", operand_layout_constraints=\{(.*?)\}, api', text)
    found = {"quantize": [], "contract": []}
    for name, operands in calls:
        found[name].append(re.findall(r"(?:f32|s16)(\[[\d,]*\])", operands))
    x, w, ct = "[4,9,8,40]", "[3,3,40,33]", "[4,9,8,33]"
    of_dgrad = w if gradient is gradient_outside else "[3,3,33,40]"
    assert sorted(found["contract"]) == sorted([[x, w], [ct, of_dgrad], [x, ct]])
    assert sorted(found["quantize"]) == sorted([s] for s in {x, w, ct, of_dgrad})


def test_residuals_are_the_transposed_mantissas():
    kept = types(residuals(loss(lambda x, w: in_blocks(convolve)(jnp.sin(x), jnp.sin(w))), X, W))
    floats = {"f32[4,40,9,8]", "f32[33,40,3,3]", "f32[4,33,9,8]"}  # of the sines
    assert {kind: n for kind, n in kept.items() if not kind.startswith("i32")} == {
        "dfp16[4,9,8,40]": 1,
        "dfp16[3,3,40,33]": 1,
        **dict.fromkeys(floats, 1),
    }


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@GRADIENTS
def test_data_parallel_training_adds_what_it_adds_in_float32(gradient, kind):
    def step(x, w):
        return gradient(convolve)(x, w)[1]

    actual, moved = run(step, mesh_of((2,), ("data",), kind), [P("data"), P()], X, W)
    assert moved == {"all-reduce": 4 * W.size}
    assert relative_error(actual, jax.jit(step)(np.asarray(X), np.asarray(W))) < 3e-4


def test_types_on_an_explicit_mesh():
    """They are those of the original program."""
    x, w = normal(0, 4, 40, 9, 8), normal(1, 128, 40, 3, 3)
    mesh = mesh_of((2, 2), ("data", "model"), AxisType.Explicit)

    def split(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", out_sharding=P("data", "model"))

    actual, expected = (run(fun, mesh, [P("data"), P("model")], x, w)[0] for fun in (in_blocks(split), split))
    assert actual.sharding == expected.sharding
    np.testing.assert_array_equal(actual, jax.jit(in_blocks(convolve))(np.asarray(x), np.asarray(w)))


def test_statistics_are_those_of_nhwc():
    def measured(fun):
        gradient = jax.grad(loss(fun), (0, 1))
        return jax.jit(dfpjax.with_statistics(gradient, IN_BLOCKS, shadow=True))(X, W)[1]

    actual, expected = measured(convolve), measured(by_hand)
    assert set(actual) == set(expected) == {"layer"}
    # The blocks of JAX's own dgrad lie otherwise in the kernel.
    jax.tree.map(lambda *xs: np.testing.assert_allclose(*xs, rtol=1e-2), actual, expected)
    assert 0 < actual["layer"].wgrad_error < 1e-3


def test_explain_shows_the_shapes_of_the_program():
    (op,) = dfpjax.explain(convolve, X, W, policy=IN_BLOCKS).ops
    assert (op.lhs_shape, op.rhs_shape, op.out_shape) == (X.shape, W.shape, (4, 33, 9, 8))
    assert op.granularity == ("block", "block")


def test_not_a_number_stays_within_what_depends_on_its_block():
    x = np.array(X)
    x[1, 35, 4, 5] = np.nan  # its block: the other channels from 32 on, and the 8 pixels of a row
    out = np.asarray(jax.jit(in_blocks(convolve))(x, W))
    images, _, rows, columns = (np.unique(axis).tolist() for axis in np.nonzero(np.isnan(out)))
    assert (images, rows, columns) == ([1], [3, 4, 5], list(range(8)))
    of_kernel = jax.jit(jax.grad(lambda w: in_blocks(convolve)(x, w).sum()))(W)
    assert np.unique(np.nonzero(np.isnan(of_kernel))[1]).tolist() == list(range(32, 40))
