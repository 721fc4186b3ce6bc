"""The moments of a tensor's channels, and the gradient that comes back through them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dfpjax import _compat
from dfpjax.kernels import passes
from dfpjax.numbers.format.explicit import lower_fun
from dfpjax.operations.composites import expression, of_its_first_operand
from dfpjax.operations.layouts import rows_layout
from dfpjax.operations.partitioning import per_shard
from dfpjax.operations.passes import (
    batch_as_groups,
    grouped,
    pass_primitive,
    rows_of,
    series_in_hlo,
    ungrouped,
)


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The sum, sum of squares, least and greatest value of each channel, in one pass.

    Arguments:
        x: float32[..., channels].

    Returns:
        Four float32[channels], NaN where a channel has a NaN. No gradient flows through the last two.
    """
    return measured(x)[1:]


def measured(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """x and the `moments` of its channels.

    What is computed from x should take the first result instead. Its gradient and those of the sums are then
    added in one expression, g + (gradient of the sum) + 2x · (gradient of the sum of squares), which a
    convolution before it can quantize as its cotangent in the same pass.

    Arguments:
        x: float32[..., channels].

    Returns:
        x, and four float32[channels]. No gradient flows through the last two.
    """
    return tuple(moments_p.bind(x, mapped=0))


def _moments_in_hlo(x, *, mapped):
    rows = rows_of(x, mapped)
    low, high = jnp.min(x, rows, initial=np.inf), jnp.max(x, rows, initial=-np.inf)
    return x, jnp.sum(x, rows), jnp.sum(x * x, rows), low, high


@per_shard("moments", functools.partial(rows_layout, results=("sum", "sum", "least", "greatest")))
def _moments_natively(x, *, mapped):
    return ungrouped(passes.moments(grouped(x, mapped)), x, mapped)


moments_p = pass_primitive(
    "dfp_moments",
    _moments_in_hlo,
    lambda x, *, mapped: (x, *_moments_natively(x, mapped=mapped)),
    several=True,
)


def _moments_jvp(primals, tangents, *, mapped):
    (x,), (dx,) = primals, tangents
    out = moments_p.bind(x, mapped=mapped)
    zeros = [ad.Zero(jax.typeof(y).to_tangent_aval()) for y in out]
    if isinstance(dx, ad.Zero):
        return out, zeros
    spread = spread_p.bind if mapped == 0 else functools.partial(_spread, mapped=mapped)
    return out, [*spread(*_compat.vary_together(dx, x)), *zeros[3:]]


def _moments_series(primals, series, *, mapped):
    """The rule for `jax.experimental.jet`."""
    rows, of_x = rows_of(primals[0], mapped), list(series[0])
    _, terms = _compat.jet(
        lambda x: (jnp.sum(x, rows), jnp.sum(x * x, rows)), primals, [of_x], factorial_scaled=False
    )
    return moments_p.bind(*primals, mapped=mapped), [of_x, *terms, *[_compat.zero_series] * 2]


ad.primitive_jvps[moments_p] = _moments_jvp
_compat.jet_rules[moments_p] = _moments_series
batching.primitive_batchers[moments_p] = functools.partial(batch_as_groups, moments_p)


# --- the linear parts -------------------------------------------------------------------------------


def _spread(dx, x, mapped=0):
    rows = rows_of(x, mapped)
    return dx, jnp.sum(dx, rows), jnp.sum(dx * (2.0 * x), rows)


def _add_affine(g, x, offset, slope):
    return g + offset + slope * x


spread_p = Primitive("dfp_spread")
"""The tangents of x and of its sums."""
spread_p.multiple_results = True
add_affine_p = expression("dfp_add_affine", _add_affine)
of_its_first_operand(add_affine_p)


@spread_p.def_abstract_eval
def _spread_abstract_eval(dx, x):
    sums = _compat.result_aval(x, x.shape[-1:], x.dtype)
    return [_compat.result_aval(x, x.shape, x.dtype, x.sharding), sums, sums]


def _spread_transpose(cts, dx, x):
    g, *of_sums = cts
    if all(isinstance(ct, ad.Zero) for ct in of_sums):
        return [g, None]
    of_channels = (1,) * (x.ndim - 1) + x.shape[-1:]
    offset, half = (ad.instantiate_zeros(ct).reshape(of_channels) for ct in of_sums)
    operands = _compat.vary_together(ad.instantiate_zeros(g), x, offset, 2 * half)
    return [add_affine_p.bind(*operands), None]


def _spread_jvp(primals, tangents):
    # Second derivatives are rare and take ordinary operations.
    out = spread_p.bind(*primals)
    return out, jax.jvp(_spread, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))[1]


def _spread_batch(operands, dims):
    return jax.vmap(_spread, in_axes=tuple(dims))(*operands), (0, 0, 0)


def _add_affine_transpose(ct, *operands):
    """It is linear in all operands but x, and in g and x."""
    linear = [i for i, v in enumerate(operands) if ad.is_undefined_primal(v)]

    def of_linear(*given):
        values = dict(zip(linear, given, strict=True))
        return _add_affine(*(values.get(i, v) for i, v in enumerate(operands)))

    transpose = jax.linear_transpose(of_linear, *(operands[i].aval for i in linear))
    found = dict(zip(linear, transpose(ad.instantiate_zeros(ct)), strict=True))
    return [found.get(i) for i in range(len(operands))]


spread_p.def_impl(functools.partial(_compat.apply_primitive, spread_p))
mlir.register_lowering(spread_p, lower_fun(_spread, multiple_results=True))
ad.primitive_jvps[spread_p] = _spread_jvp
ad.primitive_transposes[spread_p] = _spread_transpose
ad.primitive_transposes[add_affine_p] = _add_affine_transpose
batching.primitive_batchers[spread_p] = _spread_batch
_compat.jet_rules[spread_p] = functools.partial(series_in_hlo, _spread)
