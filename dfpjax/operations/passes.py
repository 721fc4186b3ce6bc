"""Sums over all axes but the channels as operations that JAX can differentiate and batch, and what all native
passes share.

XLA for CPU is slow at these sums. Ours are more exact, so their last bits differ. Each is a primitive that
lowers to a native pass (`dfpjax.kernels.passes`) on CPUs and to ordinary operations elsewhere.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dfpjax import _compat
from dfpjax.kernels import passes
from dfpjax.numbers.format.explicit import explicit_axes, lower_fun
from dfpjax.numbers.format.magnitude import largest_magnitude_in_hlo, largest_magnitude_p
from dfpjax.operations.layouts import rows_layout, whole_tensor_layout
from dfpjax.operations.partitioning import per_shard


def register_lowerings(primitive: Primitive, in_hlo: Callable, native: Callable) -> None:
    """Lower to `native` on a CPU, else to `in_hlo`, also inside a `shard_map` over some axes of a mesh, where
    XLA has to partition. Both are called as `fun(*operands, **params)`. What `native` calls in native code
    must be `per_shard`."""
    several = primitive.multiple_results
    plainly = lower_fun(in_hlo, multiple_results=several)
    natively = lower_fun(native, multiple_results=several)

    def lower(ctx, *operands, **params):
        by_index = (operand := params.get("operand")) is not None and operand.rounding == "stochastic"
        if by_index and _compat.is_partitioned(ctx):  # a shard does not know where in the tensor it is
            params["operand"] = None
        return (plainly if _compat.is_partly_manual(ctx) else natively)(ctx, *operands, **params)

    mlir.register_lowering(primitive, plainly)
    mlir.register_lowering(primitive, lower, platform="cpu")


def pass_primitive(name: str, in_hlo: Callable, native: Callable, *, several: bool = False) -> Primitive:
    """A primitive of float32 arrays, whose results have the types of `in_hlo`'s."""
    primitive = Primitive(name)
    primitive.multiple_results = several

    @functools.lru_cache(maxsize=1024)
    def shapes(operands, params):
        return jax.eval_shape(functools.partial(in_hlo, **dict(params)), *operands)

    def abstract_eval(*operands, **params):
        structs = tuple(
            jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=x.sharding if explicit_axes(x.sharding.mesh) else None
            )
            for x in operands
        )
        out = shapes(structs, tuple(params.items()))
        avals = [
            _compat.result_aval(operands[0], x.shape, x.dtype, x.sharding)
            for x in (out if several else [out])
        ]
        return avals if several else avals[0]

    primitive.def_abstract_eval(abstract_eval)
    primitive.def_impl(functools.partial(_compat.apply_primitive, primitive))
    register_lowerings(primitive, in_hlo, native)
    _compat.jet_rules[primitive] = functools.partial(series_in_hlo, in_hlo)
    return primitive


def series_in_hlo(in_hlo, primals, series, **params):
    """The rule for `jax.experimental.jet`: that of the ordinary operations."""
    fun = functools.partial(in_hlo, **params)
    return _compat.jet(fun, tuple(primals), tuple(map(list, series)), factorial_scaled=False)


def mapped_first(operands, dims) -> list[jax.Array]:
    """The operands of a batching rule, each with the mapped axis in front."""
    size = next(x.shape[dim] for x, dim in zip(operands, dims, strict=True) if dim is not None)
    return [
        lax.broadcast(x, (size,)) if dim is None else jnp.moveaxis(x, dim, 0)
        for x, dim in zip(operands, dims, strict=True)
    ]


# --- rules of differentiation that several passes share ---------------------------------------------


def jvp_by(primitive, tangent, primals, tangents, **params):
    """The JVP rule of a function of one tensor whose tangent is `tangent.bind(dx, x)`."""
    (x,), (dx,) = primals, tangents
    out = primitive.bind(x, **params)
    if isinstance(dx, ad.Zero):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, tangent.bind(*_compat.vary_together(dx, x), **params)


def jvp_in_hlo(primitive, in_hlo, primals, tangents, **params):
    """The JVP rule of a derivative: second derivatives are rare and take ordinary operations."""
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    out = primitive.bind(*primals, **params)
    return out, jax.jvp(functools.partial(in_hlo, **params), tuple(primals), tangents)[1]


def transpose_by(other, ct, v, x, **params):
    """The transpose rule of a function that is linear in `v`; `other` is its transpose."""
    if isinstance(ct, ad.Zero):
        return [ad.Zero(v.aval), None]
    return [other.bind(*_compat.vary_together(ct, x), **params), None]


@per_shard("largest_magnitude", whole_tensor_layout)
def _largest_magnitude(x):
    return (passes.largest_magnitude(x),)


register_lowerings(largest_magnitude_p, largest_magnitude_in_hlo, lambda x: _largest_magnitude(x)[0])


def batch_as_groups(primitive, operands, dims, *, mapped, **params):
    """The batching rule of a pass with results per channel: each index of the mapped axes is a group of
    rows."""
    out = primitive.bind(*mapped_first(operands, dims), mapped=mapped + 1, **params)
    return out, [0] * len(out)


# --- sums over all axes but the channels ------------------------------------------------------------


def rows_of(x: jax.Array, mapped: int) -> tuple[int, ...]:
    return tuple(range(mapped, x.ndim - 1))


def grouped(x: jax.Array, mapped: int) -> jax.Array:
    """x as [groups, rows, channels]."""
    groups = int(np.prod(x.shape[:mapped], dtype=np.int64))
    return x.reshape(groups, x.size // max(groups * x.shape[-1], 1), x.shape[-1])


def grouped_channels(v: jax.Array, mapped: int) -> jax.Array:
    """Values per channel as [groups, channels]."""
    return v.reshape(int(np.prod(v.shape[:mapped], dtype=np.int64)), v.shape[-1])


def ungrouped(results, x: jax.Array, mapped: int):
    return tuple(result.reshape(*x.shape[:mapped], x.shape[-1]) for result in results)


def _paired_in_hlo(g, x, centre, *, mapped):
    rows = rows_of(x, mapped)
    return jnp.sum(g, rows), jnp.sum(g * (x - jnp.expand_dims(centre, rows)), rows)


@per_shard("paired_sums", functools.partial(rows_layout, results=("sum", "sum")))
def _paired_natively(g, x, centre, *, mapped):
    sums = passes.paired_sums(grouped(g, mapped), grouped(x, mapped), grouped_channels(centre, mapped))
    return ungrouped(sums, x, mapped)


paired_sums_p = pass_primitive("dfp_paired_sums", _paired_in_hlo, _paired_natively, several=True)


def paired_sums(g: jax.Array, x: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of g and of g · (x − centre) of each channel, in one pass.

    Arguments:
        g, x: float32[..., channels].
        centre: float32[channels].

    Returns:
        Two float32[channels].
    """
    return tuple(paired_sums_p.bind(*_compat.vary_together(g, x, centre), mapped=0))


def _rectified_in_hlo(g, x, centre, scale, shift, *, mapped):
    rows = rows_of(x, mapped)
    centred = x - jnp.expand_dims(centre, rows)
    g = jnp.where(centred * jnp.expand_dims(scale, rows) + jnp.expand_dims(shift, rows) > 0, g, 0)
    return jnp.sum(g, rows), jnp.sum(g * centred, rows)


@per_shard("rectified_sums", functools.partial(rows_layout, results=("sum", "sum")))
def _rectified_natively(g, x, *of_channels, mapped):
    of_channels = (grouped_channels(v, mapped) for v in of_channels)
    return ungrouped(passes.rectified_sums(grouped(g, mapped), grouped(x, mapped), *of_channels), x, mapped)


rectified_sums_p = pass_primitive("dfp_rectified_sums", _rectified_in_hlo, _rectified_natively, several=True)


def rectified_sums(
    g: jax.Array, x: jax.Array, centre: jax.Array, scale: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`paired_sums` with g set to zero where (x − centre) · scale + shift is not positive.

    Arguments:
        g, x: float32[..., channels].
        centre, scale, shift: float32[channels].

    Returns:
        Two float32[channels].
    """
    return tuple(rectified_sums_p.bind(*_compat.vary_together(g, x, centre, scale, shift), mapped=0))


def _sums_transpose(in_hlo, cts, g, *others, mapped):
    assert ad.is_undefined_primal(g) and not any(map(ad.is_undefined_primal, others))
    (out,) = jax.linear_transpose(lambda g: in_hlo(g, *others, mapped=mapped), g.aval)(
        tuple(ad.instantiate_zeros(ct) for ct in cts)
    )
    return [out, *[None] * len(others)]


for _p, _in_hlo in ((paired_sums_p, _paired_in_hlo), (rectified_sums_p, _rectified_in_hlo)):
    ad.primitive_jvps[_p] = functools.partial(jvp_in_hlo, _p, _in_hlo)
    ad.primitive_transposes[_p] = functools.partial(_sums_transpose, _in_hlo)
    batching.primitive_batchers[_p] = functools.partial(batch_as_groups, _p)
