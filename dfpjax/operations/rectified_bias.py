"""Rectified tensors with a bias, as after a convolution without normalization.

Values and gradients are those of `jax.nn.relu(x + shift)`. For the gradient, a mask with one byte per number
says where the result is positive; neither x nor the result is kept.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching

from dfpjax import _compat
from dfpjax.kernels import passes
from dfpjax.numbers import Quantizer
from dfpjax.operations.composites import composite, expression, of_its_first_operand, self_adjoint
from dfpjax.operations.layouts import rows_layout
from dfpjax.operations.operands import rectified_operand
from dfpjax.operations.partitioning import per_shard
from dfpjax.operations.passes import (
    grouped,
    mapped_first,
    pass_primitive,
    rows_of,
    series_in_hlo,
    ungrouped,
)


def rectify_shifted(x: jax.Array, shift: jax.Array, *, operand: Quantizer | None = None) -> jax.Array:
    """max(x + shift, 0).

    Arguments:
        x: float32[..., channels].
        shift: float32[1, ..., 1, channels], of x's rank.
        operand: quantizer of an operation that takes the result, with exponents of blocks. One native pass
            then quantizes it and gives the mask, and the quantization of the result finds that
            (`dfpjax.operations.producers`).

    Returns:
        float32 of x's shape.
    """
    given = _compat.vary_together(x, shift)
    return rectified_shift_p.bind(*given, masked=False, operand=operand)[0]


def _rectified_shift(x, shift, *, masked, operand):
    y = jax.nn.relu(x + shift)  # whose derivative vmap keeps
    return y, (y > 0 if masked else jnp.zeros(0, jnp.bool_))


def _natively(x, shift, *, masked, operand):
    if operand is None:
        return _rectified_shift(x, shift, masked=masked, operand=None)
    params = {"quantizer": operand, "blocks": operand.blocks, "masked": masked}
    mantissa, exponent, positive = rectified_operand(x, shift.reshape(-1), **params)
    # What quantizes this finds mantissas and exponents among its operands. Nothing computes it otherwise.
    y = composite(rectified_shift_p.name, lambda x, shift, *_: jnp.maximum(x + shift, 0))
    return y(x, shift, mantissa, exponent), positive


rectified_shift_p = pass_primitive("dfp_rectified_shift", _rectified_shift, _natively, several=True)


def _masked(g, positive):
    return jnp.where(positive, g, 0)


def _masked_rows(v, positive):
    return jnp.where(positive, v, jnp.zeros(positive.shape, v.dtype))


masked_p = expression("dfp_masked", _masked)
of_its_first_operand(masked_p)
self_adjoint(masked_p)
masked_rows_p = expression("dfp_masked_rows", _masked_rows)


@masked_rows_p.def_abstract_eval
def _masked_rows_abstract_eval(v, positive):
    return _compat.result_aval(positive, positive.shape, v.dtype, positive.sharding)


def _masked_rows_transpose(ct, v, positive):
    if isinstance(ct, ad.Zero):
        return [ad.Zero(v.aval), None]
    total = masked_sums_p.bind(*_compat.vary_together(ct, positive), mapped=0)
    return [total.reshape(v.aval.shape), None]


ad.primitive_transposes[masked_rows_p] = _masked_rows_transpose


def _masked_sums(g, positive, *, mapped):
    return jnp.sum(jnp.where(positive, g, 0), rows_of(g, mapped))


@per_shard("masked_sums", functools.partial(rows_layout, results=("sum",)))
def _masked_sums_natively(g, positive, *, mapped):
    sums = passes.masked_sums(grouped(g, mapped), grouped(positive, mapped))
    return ungrouped([sums], g, mapped)


masked_sums_p = pass_primitive(
    "dfp_masked_sums",
    _masked_sums,
    lambda *operands, mapped: _masked_sums_natively(*operands, mapped=mapped)[0],
)


def _masked_sums_jvp(primals, tangents, *, mapped):
    # It is linear in g, and no gradient flows through the mask.
    out = masked_sums_p.bind(*primals, mapped=mapped)
    if isinstance(tangents[0], ad.Zero):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, _masked_sums(tangents[0], primals[1], mapped=mapped)


def _masked_sums_transpose(ct, g, positive, *, mapped):
    if isinstance(ct, ad.Zero):
        return [ad.Zero(g.aval), None]
    return [_masked_rows(jnp.expand_dims(ct, rows_of(positive, mapped)), positive), None]


def _masked_sums_batch(operands, dims, *, mapped):
    return masked_sums_p.bind(*mapped_first(operands, dims), mapped=mapped + 1), 0


def _jvp(primals, tangents, *, masked, operand):
    y, positive = rectified_shift_p.bind(*primals, masked=True, operand=operand)
    out = [y, positive if masked else jnp.zeros(0, jnp.bool_)]
    zero = ad.Zero(jax.typeof(out[1]).to_tangent_aval())
    of_x, of_shift = tangents
    terms = []
    if not isinstance(of_x, ad.Zero):
        terms.append(masked_p.bind(*_compat.vary_together(of_x, positive)))
    if not isinstance(of_shift, ad.Zero):
        terms.append(masked_rows_p.bind(*_compat.vary_together(of_shift, positive)))
    if not terms:
        return out, [ad.Zero(jax.typeof(y).to_tangent_aval()), zero]
    return out, [functools.reduce(lax.add, terms), zero]


def _series(primals, series, *, masked, operand):
    """The rule for `jax.experimental.jet`."""
    y, positive = rectified_shift_p.bind(*primals, masked=True, operand=operand)
    terms = series_in_hlo(lax.add, primals, series)[1]
    terms = [_masked(term, positive) for term in terms]
    return [y, positive if masked else jnp.zeros(0, jnp.bool_)], [terms, _compat.zero_series]


def _batch(operands, dims, *, masked, operand):
    fun = functools.partial(_rectified_shift, masked=masked, operand=None)
    out_dims = 0, 0 if masked else None
    return jax.vmap(fun, in_axes=tuple(dims), out_axes=out_dims)(*operands), out_dims


ad.primitive_jvps[masked_sums_p] = _masked_sums_jvp
ad.primitive_transposes[masked_sums_p] = _masked_sums_transpose
batching.primitive_batchers[masked_sums_p] = _masked_sums_batch
ad.primitive_jvps[rectified_shift_p] = _jvp
_compat.jet_rules[rectified_shift_p] = _series
batching.primitive_batchers[rectified_shift_p] = _batch
