"""Rectified normalized tensors, with or without a residual, as at the end of a residual network's blocks.

Values and gradients are those of `jax.nn.relu` of the plain expressions; sums of products may differ by one
rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad, batching

from dfpjax import _compat
from dfpjax.kernels import passes
from dfpjax.numbers import Quantizer
from dfpjax.operations.channels import broadcast_rows_p, normalize_tangent_p, scaled_p
from dfpjax.operations.composites import expression, of_its_first_operand, self_adjoint
from dfpjax.operations.layouts import rows_layout
from dfpjax.operations.operands import rectified_operand
from dfpjax.operations.partitioning import Layout, per_shard
from dfpjax.operations.passes import (
    batch_as_groups,
    grouped,
    grouped_channels,
    pass_primitive,
    rectified_sums,
    rows_of,
    series_in_hlo,
    ungrouped,
)

# --- without a residual -----------------------------------------------------------------------------


@jax.custom_jvp
def rectify_normalized(x: jax.Array, mean: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """max((x − mean) · scale + shift, 0). One native pass rectifies the cotangent and gives the gradients by
    `mean`, `scale` and `shift`.

    Arguments:
        x: float32[..., channels].
        mean, scale, shift: float32[1, ..., 1, channels], of x's rank.

    Returns:
        float32 of x's shape.
    """
    return rectify_normalized_p.bind(*_compat.vary_together(x, mean, scale, shift))


def _rectify_normalized(x, mean, scale, shift):
    return jnp.maximum((x - mean) * scale + shift, 0)


def _rectified_scaled(g, x, mean, scale, shift):
    return jnp.where((x - mean) * scale + shift > 0, g, 0) * scale


rectify_normalized_p = expression("dfp_rectify_normalized", _rectify_normalized)
rectified_scaled_p = expression("dfp_rectified_scaled", _rectified_scaled)
for _p in (rectify_normalized_p, rectified_scaled_p):
    of_its_first_operand(_p)
self_adjoint(rectified_scaled_p)


@functools.partial(rectify_normalized.defjvp, symbolic_zeros=True)
def _rectify_jvp(primals, tangents):
    x, mean, scale, shift = primals
    dx, *of_channels = tangents
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(rectified_scaled_p.bind(*_compat.vary_together(dx, x, mean, scale, shift)))
    if not all(isinstance(t, SymbolicZero) for t in of_channels):
        operands = _compat.vary_together(*map(_instantiated, of_channels), x, mean, scale, shift)
        terms.append(rectified_tangent_p.bind(*operands))
    return rectify_normalized(*primals), functools.reduce(lax.add, terms)


def _instantiated(tangent):
    return jnp.zeros(tangent.shape, tangent.dtype) if isinstance(tangent, SymbolicZero) else tangent


def _rectified_tangent(dmean, dscale, dshift, x, mean, scale, shift):
    tangent = (x - mean) * dscale - dmean * scale + dshift
    return jnp.where((x - mean) * scale + shift > 0, tangent, 0)


rectified_tangent_p = expression("dfp_rectified_tangent", _rectified_tangent)


@rectified_tangent_p.def_abstract_eval
def _rectified_tangent_abstract_eval(dmean, dscale, dshift, x, mean, scale, shift):
    return _compat.result_aval(x, x.shape, x.dtype, x.sharding)


def _rectified_tangent_transpose(ct, *operands):
    *linear, x, mean, scale, shift = operands
    if isinstance(ct, ad.Zero):
        return [ad.Zero(v.aval) if ad.is_undefined_primal(v) else None for v in linear] + [None] * 4
    sums = rectified_sums(ct, x, *(v.reshape(-1) for v in (mean, scale, shift)))
    total, product = (s.reshape(mean.shape) for s in sums)
    by = (-scale * total, product, total)
    return [g if ad.is_undefined_primal(v) else None for g, v in zip(by, linear, strict=True)] + [None] * 4


ad.primitive_transposes[rectified_tangent_p] = _rectified_tangent_transpose


# --- with a residual --------------------------------------------------------------------------------


def rectify_sum(
    x: jax.Array, mean: jax.Array, scale: jax.Array, shift: jax.Array, residual: jax.Array,
    *, operand: Quantizer | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """y = max((x − mean) · scale + shift + residual, 0) and its extremes, in one native pass.

    For the gradient, a mask with one byte per number says where y is positive.

    Arguments:
        x, residual: float32[..., channels].
        mean, scale, shift: float32[1, ..., 1, channels], of x's rank.
        operand: quantizer of an operation that takes y, with exponents of blocks. The pass also quantizes y
            by it, and the quantization of y finds that (`dfpjax.operations.producers`).

    Returns:
        y as float32 of x's shape, and the least and the greatest y of each channel as float32[channels], NaN
        where a channel has a NaN. No gradient flows through the last two.
    """
    of_channels = (v.reshape(-1) for v in (mean, scale, shift))
    given = _compat.vary_together(x, residual, *of_channels)
    y, _, low, high = rectified_sum_p.bind(*given, mapped=0, masked=False, operand=operand)
    return y, low, high


def rectify_shifted_sum(
    x: jax.Array, shift: jax.Array, residual: jax.Array, *, operand: Quantizer | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """y = max(x + shift + residual, 0) and its extremes, as `rectify_sum`."""
    return rectify_sum(x, jnp.zeros_like(shift), jnp.ones_like(shift), shift, residual, operand=operand)


def _sum_in_hlo(x, residual, mean, scale, shift, *, mapped, masked, operand):
    rows = rows_of(x, mapped)
    y = jnp.maximum(_plain_sum(x, residual, mean, scale, shift, mapped=mapped), 0)
    low, high = jnp.min(y, rows, initial=np.inf), jnp.max(y, rows, initial=0)
    return y, (y > 0 if masked else jnp.zeros(0, jnp.bool_)), low, high


def _plain_sum(x, residual, mean, scale, shift, *, mapped):
    mean, scale, shift = (jnp.expand_dims(v, rows_of(x, mapped)) for v in (mean, scale, shift))
    return (x - mean) * scale + shift + residual


def _sum_natively(x, residual, *of_channels, mapped, masked, operand):
    if operand is not None and not mapped:
        mean, scale, shift = of_channels
        params = {"quantizer": operand, "blocks": operand.blocks, "masked": masked}
        produced = rectified_operand(x, shift, mean=mean, scale=scale, residual=residual, **params)
        _, _, positive, y, *extremes = produced
        return y, positive, *extremes
    return _sum_per_shard(x, residual, *of_channels, mapped=mapped, masked=masked)


def _layout(*operands, mapped, masked) -> Layout:
    results = ("rows", "rows" if masked else "empty", "least", "greatest")
    return rows_layout(*operands, results=results, mapped=mapped)


@per_shard("rectified_sum", _layout)
def _sum_per_shard(x, residual, *of_channels, mapped, masked):
    of_channels = (grouped_channels(v, mapped) for v in of_channels)
    given = grouped(x, mapped), grouped(residual, mapped), *of_channels
    y, positive, *extremes = passes.rectified_sum(*given, masked=masked)
    positive = positive.reshape(x.shape) if masked else positive
    return y.reshape(x.shape), positive, *ungrouped(extremes, x, mapped)


rectified_sum_p = pass_primitive("dfp_rectified_sum", _sum_in_hlo, _sum_natively, several=True)


def _sum_jvp(primals, tangents, *, mapped, masked, operand):
    x, _, *of_channels = primals
    y, positive, low, high = rectified_sum_p.bind(*primals, mapped=mapped, masked=True, operand=operand)
    out = [y, positive if masked else jnp.zeros(0, jnp.bool_), low, high]
    zeros = [ad.Zero(jax.typeof(v).to_tangent_aval()) for v in out]
    if all(isinstance(t, ad.Zero) for t in tangents):
        return out, zeros
    if mapped:
        plain = functools.partial(_plain_sum, mapped=mapped)
        tangent = jax.jvp(plain, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))[1]
    else:
        tangent = _sum_tangent(x, of_channels, tangents)
    return out, [lax.select(positive, tangent, jnp.zeros_like(y)), *zeros[1:]]


def _sum_tangent(x, of_channels, tangents):
    """The tangent of the sum before rectification. The normalized part has `normalize_channels`'s tangent."""
    dx, dresidual, *dof_channels = tangents
    terms = [] if isinstance(dresidual, ad.Zero) else [dresidual]
    if not all(isinstance(t, ad.Zero) for t in (dx, *dof_channels)):
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        mean, scale, _ = (v.reshape(shape) for v in of_channels)
        if not isinstance(dx, ad.Zero):
            terms.append(scaled_p.bind(*_compat.vary_together(dx, scale)))
        dmean, dscale, dshift = dof_channels
        if isinstance(dmean, ad.Zero) and isinstance(dscale, ad.Zero):  # as of a bias
            if not isinstance(dshift, ad.Zero):
                like = {"shape": x.shape, "sharding": jax.typeof(x).sharding}
                rows = _compat.vary_together(dshift.reshape(shape), x)[0]
                terms.append(broadcast_rows_p.bind(rows, **like))
        else:
            given = (ad.instantiate_zeros(t).reshape(shape) for t in dof_channels)
            terms.append(normalize_tangent_p.bind(*_compat.vary_together(*given, x, mean, scale)))
    return functools.reduce(lax.add, terms)


def _sum_series(primals, series, *, mapped, masked, operand):
    """The rule for `jax.experimental.jet`."""
    y, positive, low, high = rectified_sum_p.bind(*primals, mapped=mapped, masked=True, operand=operand)
    terms = series_in_hlo(functools.partial(_plain_sum, mapped=mapped), primals, series)[1]
    terms = [lax.select(positive, term, jnp.zeros_like(y)) for term in terms]
    out = [y, positive if masked else jnp.zeros(0, jnp.bool_), low, high]
    return out, [terms, *[_compat.zero_series] * 3]


def _sum_batch(given, dims, *, mapped, masked, operand):
    params = {"mapped": mapped, "masked": masked, "operand": operand}
    out, out_dims = batch_as_groups(rectified_sum_p, given, dims, **params)
    return out, out_dims if masked else [out_dims[0], None, *out_dims[2:]]


ad.primitive_jvps[rectified_sum_p] = _sum_jvp
_compat.jet_rules[rectified_sum_p] = _sum_series
batching.primitive_batchers[rectified_sum_p] = _sum_batch
