"""Random shapes and parameters: the kernels give the reference's bits and an exact convolution's values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import COMPILED_QUICKLY
from hypothesis import given, settings
from hypothesis import strategies as st

from dfpjax.operations import conv_general_dilated, dot_general

few = st.integers(1, 3)
# Each example compiles its own programs. Examples are the same in each run, so results do not vary by chance.
few_examples = settings(deadline=None, max_examples=2, derandomize=True)
many_examples = settings(deadline=None, max_examples=8, derandomize=True)


@st.composite
def convolutions(draw):
    """Shapes and parameters of a convolution whose output is not empty."""
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3, 9]))
    batch_groups = draw(st.sampled_from([1, 2])) if groups == 1 else 1
    channels = draw(st.integers(1, 20))
    batch = batch_groups * draw(few)
    features = groups * batch_groups * draw(st.integers(1, 20))
    image, kernel, parameters = [], [], {name: [] for name in ("strides", "padding", "dilations", "taps")}
    for _ in range(spatial):
        taps, spread, inserted = draw(few), draw(few), draw(few)
        low, high = draw(st.integers(-1, 3)), draw(st.integers(-1, 3))
        reach = (taps - 1) * spread + 1
        shortest = max(1, -(-(reach - low - high - 1) // inserted) + 1)
        image.append(draw(st.integers(shortest, shortest + 6)))
        kernel.append(taps)
        for name, value in zip(parameters, (draw(few), (low, high), inserted, spread), strict=True):
            parameters[name].append(value)
    layouts = [draw(st.permutations(range(spatial + 2))) for _ in range(3)]
    numbers = jax.lax.ConvDimensionNumbers(*map(tuple, layouts))
    extents = (batch, groups * channels, *image), (features, channels, *kernel)
    shapes = [[0] * (spatial + 2) for _ in extents]
    for shape, layout, extent in zip(shapes, layouts, extents, strict=False):
        for axis, size in zip(layout, extent, strict=True):
            shape[axis] = size
    return shapes, {
        "window_strides": tuple(parameters["strides"]),
        "padding": tuple(parameters["padding"]),
        "lhs_dilation": tuple(parameters["dilations"]),
        "rhs_dilation": tuple(parameters["taps"]),
        "dimension_numbers": numbers,
        "feature_group_count": groups,
        "batch_group_count": batch_groups,
    }


def check(ours, theirs, shapes, parameters, data, seed):
    """Both backends give the same bits, forward and backward, and JAX's values on exact integers."""
    rng = np.random.default_rng(seed)
    mantissas = [oracle.DATA[data](rng, shape) for shape in shapes]
    operands = [jnp.asarray(m, jnp.float32) for m in mantissas]

    def run(x, w, backend):  # operands are arguments: XLA would fold constants while it compiles
        out, transpose = jax.vjp(lambda x, w: ours(x, w, backend=backend, **parameters), x, w)
        return out, *transpose(jnp.cos(out / 1e6))

    quick_jit = functools.partial(jax.jit, compiler_options=COMPILED_QUICKLY)
    native, reference = (quick_jit(run, static_argnums=2)(*operands, b) for b in ("auto", "reference"))
    for actual, wanted in zip(native, reference, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    theirs = quick_jit(functools.partial(theirs, **parameters))
    # Sums may cancel, so errors are relative to the sums of magnitudes.
    expected, magnitude = theirs(*operands), theirs(*map(jnp.abs, operands))
    assert (np.abs(native[0] - expected) <= 1e-4 * magnitude).all()


kinds = st.sampled_from(["gaussian", "small", "full_scale"])
seeds = st.integers(0, 2**16)


def check_convolution(problem, data, seed):
    check(conv_general_dilated, jax.lax.conv_general_dilated, *problem, data, seed)


@few_examples
@given(convolutions(), kinds, seeds)
def test_convolutions(problem, data, seed):
    check_convolution(problem, data, seed)


@pytest.mark.slow
@many_examples
@given(convolutions(), kinds, seeds)
def test_more_convolutions(problem, data, seed):
    check_convolution(problem, data, seed)


@st.composite
def products(draw):
    """Shapes and dimension numbers of a dot_general."""
    labels = "".join(draw(st.permutations("bcmnx")))
    size = {
        "b": draw(few),
        "c": draw(st.integers(1, 300)),
        "m": draw(st.integers(1, 40)),
        "n": draw(st.integers(1, 140)),
        "x": draw(few),
    }
    lhs = [x for x in labels if x in "bcmx"]
    rhs = list(draw(st.permutations("bcnx")))
    numbers = (
        ((lhs.index("c"), lhs.index("x")), (rhs.index("c"), rhs.index("x"))),
        ((lhs.index("b"),), (rhs.index("b"),)),
    )
    return [[size[x] for x in operand] for operand in (lhs, rhs)], {"dimension_numbers": numbers}


@pytest.mark.slow
@many_examples
@given(products(), kinds, seeds)
def test_products(problem, data, seed):
    check(dot_general, jax.lax.dot_general, *problem, data, seed)
