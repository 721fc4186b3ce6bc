"""Affine maps per channel, such as bias and batch normalization, whose gradients take one native pass.

Values equal those of the plain expressions to the last bit.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad

from dfpjax import _compat
from dfpjax.numbers.format.explicit import explicit_axes
from dfpjax.operations.composites import expression, of_its_first_operand, self_adjoint
from dfpjax.operations.moments import moments
from dfpjax.operations.passes import paired_sums


@jax.custom_jvp
def shift_channels(x: jax.Array, shift: jax.Array) -> jax.Array:
    """x + shift, with a gradient by `shift` that takes one native pass.

    Arguments:
        x: float32[..., channels].
        shift: float32[1, ..., 1, channels], of x's rank.

    Returns:
        float32 of x's shape.
    """
    return x + shift


@functools.partial(shift_channels.defjvp, symbolic_zeros=True)
def _shift_jvp(primals, tangents):
    x, shift = primals
    dx, dshift = tangents
    terms = [] if isinstance(dx, SymbolicZero) else [dx]
    if not isinstance(dshift, SymbolicZero):
        like = {"shape": x.shape, "sharding": jax.typeof(x).sharding}
        terms.append(broadcast_rows_p.bind(_compat.vary_together(dshift, x)[0], **like))
    return shift_channels(x, shift), functools.reduce(lax.add, terms)


@jax.custom_jvp
def normalize_channels(x: jax.Array, mean: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """(x − mean) · scale + shift, the last step of batch normalization. One native pass gives its gradients
    by `mean`, `scale` and `shift`.

    Arguments:
        x: float32[..., channels].
        mean, scale, shift: float32[1, ..., 1, channels], of x's rank.

    Returns:
        float32 of x's shape.
    """
    return (x - mean) * scale + shift


@functools.partial(normalize_channels.defjvp, symbolic_zeros=True)
def _normalize_jvp(primals, tangents):
    x, mean, scale, _ = primals
    dx, *of_channels = tangents
    terms = [] if isinstance(dx, SymbolicZero) else [scaled_p.bind(*_compat.vary_together(dx, scale))]
    if not all(isinstance(t, SymbolicZero) for t in of_channels):
        given = [jnp.zeros(t.shape, t.dtype) if isinstance(t, SymbolicZero) else t for t in of_channels]
        terms.append(normalize_tangent_p.bind(*_compat.vary_together(*given, x, mean, scale)))
    return normalize_channels(*primals), functools.reduce(lax.add, terms)


# --- the linear parts -------------------------------------------------------------------------------


def _broadcast_rows(v, *, shape, sharding):
    if explicit_axes(jax.typeof(v).sharding.mesh):
        return lax.broadcast_in_dim(v, shape, tuple(range(v.ndim)), out_sharding=sharding)
    return jnp.broadcast_to(v, shape)


def _normalize_tangent(dmean, dscale, dshift, x, mean, scale):
    return (x - mean) * dscale - dmean * scale + dshift


def _scaled(g, scale):
    return g * scale


broadcast_rows_p = expression("dfp_broadcast_rows", _broadcast_rows)
normalize_tangent_p = expression("dfp_normalize_tangent", _normalize_tangent)
scaled_p = expression("dfp_scaled", _scaled)
of_its_first_operand(scaled_p)
self_adjoint(scaled_p)


@broadcast_rows_p.def_abstract_eval
def _broadcast_rows_abstract_eval(v, *, shape, sharding):
    return _compat.result_aval(v, shape, v.dtype, sharding)


@normalize_tangent_p.def_abstract_eval
def _normalize_tangent_abstract_eval(dmean, dscale, dshift, x, mean, scale):
    return _compat.result_aval(x, x.shape, x.dtype, x.sharding)


def _broadcast_rows_transpose(ct, v, **_):
    if isinstance(ct, ad.Zero):
        return [ad.Zero(v.aval)]
    return [moments(ct)[0].reshape(v.aval.shape)]


def _normalize_tangent_transpose(ct, dmean, dscale, dshift, x, mean, scale):
    linear = (dmean, dscale, dshift)
    if isinstance(ct, ad.Zero):
        return [ad.Zero(v.aval) if ad.is_undefined_primal(v) else None for v in linear] + [None] * 3
    total, product = (s.reshape(mean.shape) for s in paired_sums(ct, x, mean.reshape(-1)))
    by = (-scale * total, product, total)
    return [g if ad.is_undefined_primal(v) else None for g, v in zip(by, linear, strict=True)] + [None] * 3


ad.deflinear2(broadcast_rows_p, _broadcast_rows_transpose)
ad.primitive_transposes[normalize_tangent_p] = _normalize_tangent_transpose
