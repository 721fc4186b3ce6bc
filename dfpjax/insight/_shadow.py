"""A contraction in float32, by JAX's own operations: the reference for a result in dynamic fixed point."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from dfpjax.numbers.contraction.contraction import Contraction


def contract_float32(lhs: jax.Array, rhs: jax.Array, contraction: Contraction) -> jax.Array:
    """The result of `contraction` on float32 operands, in float32."""
    if not contraction.windows:
        return jnp.einsum(
            lhs, contraction.lhs, rhs, contraction.rhs, contraction.out, precision=lax.Precision.HIGHEST
        )
    return _convolve(lhs, rhs, contraction)


def _convolve(lhs: jax.Array, rhs: jax.Array, c: Contraction) -> jax.Array:
    """As a convolution of [N, C, ...] with [O, C, ...] whose feature groups are the batch labels."""
    windows = [(w.lhs, w.rhs, w.out) for w in c.windows]
    in_windows = {label for window in windows for label in window}
    batch = [label for label in c.lhs if label in c.rhs and label in c.out]
    contracted = [label for label in c.lhs if label in c.rhs and label not in c.out]
    lhs_free = [label for label in c.lhs if label not in c.rhs and label not in in_windows]
    rhs_free = [label for label in c.rhs if label not in c.lhs and label not in in_windows]
    sizes = dict(zip((*c.out, *c.lhs, *c.rhs), (*c.out_shape, *lhs.shape, *rhs.shape), strict=True))

    def extents(labels) -> list[int]:
        return [sizes[label] for label in labels]

    def arranged(x, labels, *groups):
        """x with its axes in the groups' order, each group one axis."""
        x = x.transpose([labels.index(label) for group in groups for label in group])
        return x.reshape([math.prod(extents(group)) for group in groups])

    lhs_windows, rhs_windows, out_windows = (
        [[label] for label in column] for column in zip(*windows, strict=True)
    )
    x = arranged(lhs, c.lhs, lhs_free, [*batch, *contracted], *lhs_windows)
    kernel = arranged(rhs, c.rhs, [*batch, *rhs_free], contracted, *rhs_windows)

    strides, padding, lhs_dilation, rhs_dilation, reversed_out = [], [], [], [], []
    for axis, w in enumerate(c.windows, start=2):
        taps, size, out_size = sizes[w.rhs], sizes[w.lhs], sizes[w.out]
        sign = 1 if w.lhs_coef > 0 else -1
        a, b, o, offset = (sign * value for value in (w.lhs_coef, w.rhs_coef, w.out_coef, w.offset))
        # In JAX's convolution only the input's coefficient is positive: reverse the axes of the others.
        if b > 0:
            kernel, offset = jnp.flip(kernel, axis), offset - b * (taps - 1)
        if o > 0:
            reversed_out.append(axis)
            offset = offset - o * (out_size - 1)
        b, o = abs(b), abs(o)
        needed = (out_size - 1) * o + (taps - 1) * b + 1
        strides.append(o)
        padding.append((-offset, needed - ((size - 1) * a + 1) + offset))
        lhs_dilation.append(a)
        rhs_dilation.append(b)
    out = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        feature_group_count=math.prod(extents(batch)),
        precision=lax.Precision.HIGHEST,
    )
    out = jnp.flip(out, reversed_out)
    order = [*lhs_free, *batch, *rhs_free, *(label for (label,) in out_windows)]
    return out.reshape(extents(order)).transpose([order.index(label) for label in c.out])
