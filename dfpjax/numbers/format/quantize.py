"""Quantization of float32 arrays to dynamic fixed point (Das et al., 2018, §3), in ordinary JAX operations.

Where there is no native code for it, it lowers to plain HLO, which XLA fuses with the operations that produce
the tensor.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dfpjax import _compat
from dfpjax.numbers.format.blocks import Blocks, expanded, tiled
from dfpjax.numbers.format.dtype import dfp16, from_integers
from dfpjax.numbers.format.explicit import lower_fun, mapped_sharding, repeated, with_partitions
from dfpjax.numbers.format.magnitude import largest_magnitude_bits
from dfpjax.numbers.format.quantizer import Quantizer
from dfpjax.numbers.format.rounding import random_bits, round_to_integers
from dfpjax.numbers.format.scaling import (
    MIN_FLOAT_EXPONENT,
    NONFINITE_EXPONENT,
    NONFINITE_THRESHOLD,
    floor_log2,
    scaled_down,
)


def _shared_exponent(
    x: jax.Array, shift: jax.Array | None, bits: int, axes: tuple[int, ...], native: bool
) -> jax.Array:
    """E = floor(log2(max|x|)) − (P − 2), where the maximum is over `axes` (Das et al., 2018, §3.1). With a
    shift, x · 2^shift takes the place of x."""
    if shift is None:
        return floor_log2(largest_magnitude_bits(x, axes, native=native)) - (bits - 2)
    # First reduce the axes along which the shift is the same; the result is small.
    alike = tuple(axis for axis in axes if shift.shape[axis] == 1)
    largest = largest_magnitude_bits(x, alike)
    log2 = floor_log2(largest)
    shifted = jnp.where((largest == 0) | (log2 == NONFINITE_EXPONENT), log2, log2 + shift)
    # Zeros must not raise the maximum above that of the other numbers.
    lowest = np.int32(-NONFINITE_EXPONENT)
    log2 = jnp.max(jnp.where(largest == 0, lowest, shifted), axes, keepdims=True, initial=lowest)
    return jnp.where(log2 == lowest, MIN_FLOAT_EXPONENT, log2) - (bits - 2)


def _block_exponents(x: jax.Array, bits: int, blocks: Blocks, mapped: int) -> jax.Array:
    """The exponent of each block: int32 of shape (*x.shape[:mapped], *blocks.counts(x.shape[mapped:]))."""
    within = (mapped + 2, mapped + 4)
    return _shared_exponent(tiled(x, blocks, mapped), None, bits, within, False).squeeze(within)


def _in_hlo(
    x, *more, quantizer: Quantizer, mapped_axes, slice_axes, blocks: Blocks | None, given, native: bool
):
    more = dict(zip(given, more, strict=True))
    shift, seed = more.get("shift"), more.get("seed")
    example = tuple(axis for axis in range(x.ndim) if axis not in mapped_axes)
    if blocks:
        mapped = len(mapped_axes)
        exponent = _block_exponents(x, quantizer.bits, blocks, mapped)
        exponents = expanded(exponent, x.shape, blocks, mapped)
    else:
        sharing = tuple(axis for axis in example if axis not in slice_axes)
        # The witness has the same axes as x, but other extents.
        exponent = _shared_exponent(more.get("witness", x), shift, quantizer.bits, sharing, native)
        exponents = exponent
    own = jnp.where(exponents >= NONFINITE_THRESHOLD, 0, exponents)
    if shift is not None:  # 2^252 is enough for every number, and 2^−252 makes every number round to 0
        own = jnp.clip(own - shift, -252, 252)
    random = None
    if quantizer.rounding == "stochastic":
        # Without a seed, each number's own bits are its seed. They change with the number and need no pass
        # over the tensor, so the result does not depend on sharding or vmap.
        seed = lax.bitcast_convert_type(x, jnp.uint32) if seed is None else seed
        random = random_bits(x.shape, seed, example)
    limit = np.float32(2 ** (quantizer.bits - 1) - 1)
    mantissa = lax.clamp(-limit, round_to_integers(scaled_down(x, own), quantizer.rounding, random), limit)
    mantissa = jnp.where(exponents >= NONFINITE_THRESHOLD, 0, mantissa).astype(jnp.int16)
    return from_integers(mantissa), exponent


# A primitive rather than a function, so that jaxprs stay short and readable. It lowers to ordinary HLO unless
# there is native code, which `dfpjax.operations.quantization` registers.
quantize_p = Primitive("dfp_quantize")
quantize_p.multiple_results = True


def quantize_array(
    x: jax.Array,
    quantizer: Quantizer,
    *,
    slice_axes: tuple[int, ...] = (),
    blocks: Blocks | None = None,
    mapped_axes: tuple[int, ...] = (),
    shift: jax.Array | None = None,
    seed: jax.Array | None = None,
    witness: jax.Array | None = None,
    native: bool = True,
):
    """Quantize a float32 array; the derivative is the identity (straight-through).

    Arguments:
        x: float32 of any shape, empty ones included.
        quantizer: bits and rounding. Its granularity and blocks are ignored in favour of `slice_axes` and
            `blocks`.
        slice_axes: axes along which each slice has its own exponent.
        blocks: the size of the blocks of which each has its own exponent, or None. Excludes slice axes, a
            shift and a witness.
        mapped_axes: axes that vmap added; each slice along them is a tensor by itself. With blocks, they are
            the first axes.
        shift: int32 of x's rank, broadcastable against x: quantize x · 2^shift instead of x. The product may
            exceed float32's range.
        seed: uint32 scalar for stochastic rounding; None to use each number's own bits.
        witness: float32 of x's rank with the same largest magnitude as x, which saves a pass over x. If its
            largest magnitude is less than x's, numbers are clamped. Excludes slice axes and a shift.
        native: whether native code may find the largest magnitude and quantize, where the platform has it.
            The result is the same.

    Returns:
        (mantissa, exponent): `dfp16` of x's shape, and int32 of x's rank with extent 1 on all axes except
        slice axes and mapped axes. x is about mantissa · 2^(exponent − shift). With blocks the exponent has
        shape (*mapped axes, *blocks.counts(the other axes)), and `expanded` gives that of each element.
        Under vmap each example is a tensor by itself.
    """
    assert witness is None or (shift is None and not slice_axes)
    if blocks is not None:
        assert shift is None and witness is None and not slice_axes
        assert mapped_axes == tuple(range(len(mapped_axes)))
    if seed is not None:
        seed = jnp.reshape(seed, (1,) * x.ndim)
    more = {"shift": shift, "seed": seed, "witness": witness}
    more = {name: value for name, value in more.items() if value is not None}
    operands = _compat.vary_together(x, *more.values())
    params = {"mapped_axes": mapped_axes, "slice_axes": slice_axes, "blocks": blocks, "given": tuple(more)}
    return tuple(quantize_p.bind(*operands, quantizer=quantizer, native=native, **params))


@quantize_p.def_abstract_eval
def _quantize_abstract_eval(x, *_, mapped_axes, slice_axes, blocks, **params):
    if _compat.is_unreduced(x):
        raise ValueError(
            f"quantize: x is of type {x.str_short(True)}, the parts of a sum that its devices have not added "
            "yet; add them first, with jax.reshard or jax.lax.psum"
        )
    partitions = _compat.partitions(x.sharding)
    if blocks is None:
        kept = (*mapped_axes, *slice_axes)
        exponent_shape = tuple(size if axis in kept else 1 for axis, size in enumerate(x.shape))
        split = tuple(entry if axis in kept else None for axis, entry in enumerate(partitions))
    else:
        mapped = len(mapped_axes)
        exponent_shape = (*x.shape[:mapped], *blocks.counts(x.shape[mapped:]))
        # Blocks do not cross the first axis, unless it is the only one.
        outer = partitions[mapped] if x.ndim - mapped > 1 else None
        split = (*partitions[:mapped], outer, None, None)
    return (
        x.update(dtype=dfp16, weak_type=False),
        _compat.result_aval(x, exponent_shape, np.dtype("int32"), with_partitions(x.sharding, split)),
    )


def _quantize_jvp(primals, tangents, **params):
    mantissa, exponent = quantize_p.bind(*primals, **params)
    tangent = tangents[0]
    if isinstance(tangent, ad.Zero):
        tangent = ad.Zero(jax.typeof(mantissa).to_tangent_aval())
    return (mantissa, exponent), (tangent, ad.Zero(jax.typeof(exponent).to_tangent_aval()))


def _quantize_batch(operands, dims, *, mapped_axes, slice_axes, **params):
    size = next(x.shape[dim] for x, dim in zip(operands, dims, strict=True) if dim is not None)
    x, *more = (
        jnp.expand_dims(x, 0) if dim is None else jnp.moveaxis(x, dim, 0)
        for x, dim in zip(operands, dims, strict=True)
    )  # fmt: skip
    if dims[0] is None:
        x = repeated(operands[0], size, mapped_sharding(operands, dims, jax.typeof(operands[0]).sharding))
    params["mapped_axes"] = (0, *(axis + 1 for axis in mapped_axes))
    params["slice_axes"] = tuple(axis + 1 for axis in slice_axes)
    return quantize_p.bind(x, *more, **params), (0, 0)


def _quantize_transpose(cotangents, x, *more, **_):
    """The identity, like the derivative. JAX needs it to transpose a linear program that it has not
    differentiated."""
    return [cotangents[0], *(None for _ in more)]


quantize_p.def_impl(functools.partial(_compat.apply_primitive, quantize_p))
ad.primitive_jvps[quantize_p] = _quantize_jvp
ad.primitive_transposes[quantize_p] = _quantize_transpose
batching.primitive_batchers[quantize_p] = _quantize_batch


# The scope's name lets profilers find the quantization in XLA's fusions.
@jax.named_scope(quantize_p.name)
def quantize_in_hlo(*operands: jax.Array, **params: object) -> tuple[jax.Array, jax.Array]:
    """The computation of `quantize_p` in HLO. Each slice along the mapped axes is a tensor by itself, with an
    exponent for each of its blocks or for each of its slices along the slice axes."""
    return _in_hlo(*operands, **params)


mlir.register_lowering(quantize_p, lower_fun(quantize_in_hlo, multiple_results=True))
