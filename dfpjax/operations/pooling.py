"""Maximum pooling of images in NHWC, in native passes forward and backward; the same bits as in JAX."""

import functools
from dataclasses import dataclass

import jax
import numpy as np
from jax import lax
from jax.interpreters import ad, batching

from dfpjax import _compat
from dfpjax.kernels import passes
from dfpjax.numbers import Quantizer
from dfpjax.operations.composites import composite
from dfpjax.operations.layouts import pooling_layout
from dfpjax.operations.operands import pooled_operand
from dfpjax.operations.partitioning import Layout, per_shard
from dfpjax.operations.passes import mapped_first, pass_primitive, transpose_by

MOST_TAPS = 1024
"""The most pixels in a window that the native pass takes."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows over height and width; each contains at least one pixel of the image."""

    sizes: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    def encode(self) -> passes.Windows:
        """The windows in the native pass's form."""
        (height, width), (down, right), ((above, _), (left, _)) = self.sizes, self.strides, self.padding
        return height, down, above, width, right, left

    def fit(self, height: int, width: int) -> bool:
        """Whether the native pass can pool images of this height and width."""
        return self.sizes[0] * self.sizes[1] <= MOST_TAPS and all(
            extent > 0 and 0 <= low < window and 0 <= high < window and low + extent + high >= window
            for extent, window, (low, high) in zip((height, width), self.sizes, self.padding, strict=True)
        )


def max_pool(
    x: jax.Array, windows: Windows, *, operand: Quantizer | None = None, kept: bool = True
) -> jax.Array:
    """Maxima over windows.

    Arguments:
        x: float32[images, height, width, channels].
        windows: windows that fit x.
        operand: quantizer of an operation that takes the result, with exponents of blocks. One native pass
            then pools and quantizes, and the quantization of the result finds that
            (`dfpjax.operations.producers`).
        kept: whether something else takes the result. If so, this pass also writes it in float32; otherwise
            float32 takes a pass of its own, should it be needed.

    Returns:
        float32[images, rows, columns, channels]. Values and gradient are bit-identical to those of
        `lax.reduce_window`.
    """
    return max_pool_p.bind(x, windows=windows, operand=operand, kept=kept)


def max_pool_gradient(ct: jax.Array, x: jax.Array, windows: Windows) -> jax.Array:
    """The gradient of `max_pool(x, windows)` by x, of x's shape, for the cotangent ct of its result."""
    return max_pool_gradient_p.bind(ct, x, windows=windows)


def _pool(x, *, windows: Windows):
    return lax.reduce_window(
        x,
        -np.inf,
        lax.max,
        (1, *windows.sizes, 1),
        (1, *windows.strides, 1),
        ((0, 0), *windows.padding, (0, 0)),
    )


def _pool_in_hlo(x, *, windows: Windows, operand, kept):
    return _pool(x, windows=windows)


def _pool_natively(x, *, windows: Windows, operand: Quantizer | None, kept: bool):
    rows = jax.eval_shape(functools.partial(_pool, windows=windows), x).shape[1:3]
    params = {"windows": windows.encode(), "rows": rows}
    if operand is None:
        return _pool_per_shard(x, **params)[0]
    of_operand = {"quantizer": operand, "blocks": operand.blocks, "kept": kept}
    mantissa, exponent, y = pooled_operand(x, **params, **of_operand)
    if kept:
        return y
    # What quantizes this finds mantissas and exponents among its operands. Nothing computes it otherwise.
    alone = composite(max_pool_p.name, lambda x, *_: _pool_per_shard(x, **params)[0])
    return alone(x, mantissa, exponent)


def _layout(x, *, rows, **_) -> Layout:
    return pooling_layout(x, out_shape=(x.shape[0], *rows, x.shape[3]), results=("out",))


@per_shard("max_pool", _layout)
def _pool_per_shard(x, *, windows, rows):
    return (passes.max_pool(x, (x.shape[0], *rows, x.shape[3]), windows),)


def _tangent(dx, x, *, windows: Windows):
    return jax.jvp(functools.partial(_pool, windows=windows), (x,), (dx,))[1]


def _gradient(ct, x, *, windows: Windows):
    return jax.vjp(functools.partial(_pool, windows=windows), x)[1](ct)[0]


def _gradient_natively(ct, x, *, windows: Windows):
    return _gradient_per_shard(ct, x, windows=windows.encode())[0]


def _gradient_layout(ct, x, **_) -> Layout:
    return pooling_layout(ct, x, out_shape=ct.shape, results=("in",))


@per_shard("max_pool_gradient", _gradient_layout)
def _gradient_per_shard(ct, x, *, windows):
    return (passes.max_pool_gradient(ct, x, windows),)


max_pool_p = pass_primitive("dfp_max_pool", _pool_in_hlo, _pool_natively)
max_pool_tangent_p = pass_primitive("dfp_max_pool_tangent", _tangent, _tangent)
max_pool_gradient_p = pass_primitive("dfp_max_pool_gradient", _gradient, _gradient_natively)


def _jvp(primals, tangents, *, windows, operand, kept):
    (x,), (dx,) = primals, tangents
    out = max_pool_p.bind(x, windows=windows, operand=operand, kept=kept)
    if isinstance(dx, ad.Zero):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, max_pool_tangent_p.bind(*_compat.vary_together(dx, x), windows=windows)


def _linear_jvp(primitive, primals, tangents, *, windows):
    """The JVP rule: linear in the first operand; the second one only says where the maxima are."""
    (v, x), (dv, _) = primals, tangents
    out = primitive.bind(v, x, windows=windows)
    if isinstance(dv, ad.Zero):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, primitive.bind(dv, x, windows=windows)


def _batch(operands, dims, *, windows, operand, kept):
    # What is quantized then has a mapped axis.
    return _pool_batch(max_pool_p, operands, dims, windows=windows, operand=None, kept=True)


def _pool_batch(primitive, operands, dims, **params):
    """The batching rule: the mapped axis is merged into the axis of images."""
    operands = mapped_first(operands, dims)
    size = len(operands[0])
    merged = [x.reshape(size * x.shape[1], *x.shape[2:]) for x in operands]
    out = primitive.bind(*merged, **params)
    return out.reshape(size, out.shape[0] // size, *out.shape[1:]), 0


def _series(primitive, tangent, primals, series, *, windows, **params):
    """The rule for `jax.experimental.jet`: the maxima are where they are in the tensor itself."""
    out = primitive.bind(*primals, windows=windows, **params)
    return out, [tangent.bind(term, primals[-1], windows=windows) for term in series[0]]


ad.primitive_jvps[max_pool_p] = _jvp
batching.primitive_batchers[max_pool_p] = _batch
for _p, _other in ((max_pool_tangent_p, max_pool_gradient_p), (max_pool_gradient_p, max_pool_tangent_p)):
    ad.primitive_jvps[_p] = functools.partial(_linear_jvp, _p)
    ad.primitive_transposes[_p] = functools.partial(transpose_by, _other)
for _p, _linear in (
    (max_pool_p, max_pool_tangent_p),
    (max_pool_tangent_p, max_pool_tangent_p),
    (max_pool_gradient_p, max_pool_gradient_p),
):
    _compat.jet_rules[_p] = functools.partial(_series, _p, _linear)
for _p in (max_pool_tangent_p, max_pool_gradient_p):
    batching.primitive_batchers[_p] = functools.partial(_pool_batch, _p)
