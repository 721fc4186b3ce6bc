"""Quantization of float32 arrays to dynamic fixed point (Das et al., 2018, §3), in ordinary JAX operations.

Written as plain HLO so that XLA fuses it into whatever produces the tensor.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dfpjax import _compat
from dfpjax.numbers.format.dtype import dfp16, from_integers, to_integers
from dfpjax.numbers.format.explicit import lower_fun, mapped_sharding, repeated, with_partitions
from dfpjax.numbers.format.magnitude import LEAST_NATIVE, largest_magnitude_bits
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
    """E = floor(log2(max|x|)) − (P − 2) with the maximum over `axes` (§3.1), of x · 2^shift if there is a
    shift."""
    if shift is None:
        return floor_log2(largest_magnitude_bits(x, axes, native=native)) - (bits - 2)
    # Slices that are shifted alike come first: what is left is small.
    alike = tuple(axis for axis in axes if shift.shape[axis] == 1)
    largest = largest_magnitude_bits(x, alike)
    log2 = floor_log2(largest)
    shifted = jnp.where((largest == 0) | (log2 == NONFINITE_EXPONENT), log2, log2 + shift)
    # A zero must not raise the maximum above what the numbers beside it have.
    lowest = np.int32(-NONFINITE_EXPONENT)
    log2 = jnp.max(jnp.where(largest == 0, lowest, shifted), axes, keepdims=True, initial=lowest)
    return jnp.where(log2 == lowest, MIN_FLOAT_EXPONENT, log2) - (bits - 2)


def _quantize(x, *more, quantizer: Quantizer, mapped_axes, slice_axes, given: tuple[str, ...], native: bool):
    """Every slice along the mapped axes is a tensor of its own, and has an exponent for each of its slices
    along the slice axes."""
    whole = not (more or mapped_axes or slice_axes)
    if native and whole and quantizer.rounding == "nearest" and x.size >= LEAST_NATIVE:
        mantissa, exponent = quantize_whole_p.bind(x, bits=quantizer.bits)
        return from_integers(mantissa), exponent.reshape((1,) * x.ndim)
    more = dict(zip(given, more, strict=True))
    shift, seed = more.get("shift"), more.get("seed")
    example = tuple(axis for axis in range(x.ndim) if axis not in mapped_axes)
    sharing = tuple(axis for axis in example if axis not in slice_axes)
    # The witness has an example's axes too, of other extents.
    exponent = _shared_exponent(more.get("witness", x), shift, quantizer.bits, sharing, native)
    own = jnp.where(exponent >= NONFINITE_THRESHOLD, 0, exponent)
    if shift is not None:  # 2^252 is more than any number needs, and 2^−252 leaves nothing of one
        own = jnp.clip(own - shift, -252, 252)
    random = None
    if quantizer.rounding == "stochastic":
        # Without a seed each number's own bits are one: they change when the number does, and no pass over
        # the tensor is needed, so neither sharding nor vmap can matter.
        seed = lax.bitcast_convert_type(x, jnp.uint32) if seed is None else seed
        random = random_bits(x.shape, seed, example)
    limit = np.float32(2 ** (quantizer.bits - 1) - 1)
    mantissa = lax.clamp(-limit, round_to_integers(scaled_down(x, own), quantizer.rounding, random), limit)
    mantissa = jnp.where(exponent >= NONFINITE_THRESHOLD, 0, mantissa).astype(jnp.int16)
    return from_integers(mantissa), exponent


# A whole tensor, to the nearest, where a platform has native code for it; bound only while `quantize_p` is
# lowered. The layer that has the native code registers its lowering.
quantize_whole_p = Primitive("dfp_quantize_whole")
quantize_whole_p.multiple_results = True


@quantize_whole_p.def_abstract_eval
def _quantize_whole_abstract_eval(x, *, bits):
    return x.update(dtype=np.dtype("int16"), weak_type=False), _compat.result_aval(x, (), np.dtype("int32"))


def quantize_whole_in_hlo(x: jax.Array, *, bits: int) -> tuple[jax.Array, jax.Array]:
    """What `quantize_whole_p` computes: the int16 mantissas and the int32[] exponent of a tensor."""
    quantizer = Quantizer(bits=bits)
    mantissa, exponent = _quantize(
        x, quantizer=quantizer, mapped_axes=(), slice_axes=(), given=(), native=False
    )
    return to_integers(mantissa), exponent.reshape(())


mlir.register_lowering(quantize_whole_p, mlir.lower_fun(quantize_whole_in_hlo, multiple_results=True))


# A primitive of its own rather than a function, so that traces stay short and readable; it lowers to
# ordinary HLO.
quantize_p = Primitive("dfp_quantize")
quantize_p.multiple_results = True


def quantize_array(
    x: jax.Array,
    quantizer: Quantizer,
    *,
    slice_axes: tuple[int, ...] = (),
    mapped_axes: tuple[int, ...] = (),
    shift: jax.Array | None = None,
    seed: jax.Array | None = None,
    witness: jax.Array | None = None,
    native: bool = True,
):
    """Quantize a float32 array; the derivative is the identity (straight-through).

    Arguments:
        x: float32 of any shape, empty ones included.
        quantizer: bits and rounding; the granularity has become `slice_axes`.
        slice_axes: axes along which each slice has an exponent of its own.
        mapped_axes: axes that vmap added; each slice along them is a tensor by itself.
        shift: int32 of x's rank, broadcastable: take x for x · 2^shift, which need not be within float32's
            range.
        seed: uint32 scalar for stochastic rounding; without one each number's own bits serve.
        witness: float32 of x's rank, whose largest magnitude is x's: saves a pass over x, which is not looked
            at for it. Takes no slice axes and no shift. Where its largest magnitude is less than x's, numbers
            are clamped.
        native: whether a platform's native code may look for the largest magnitude. The result is the same.

    Returns:
        (mantissa, exponent): `dfp16` of x's shape, and int32 of x's rank with extent 1 on every axis but
        the slice and the mapped ones. Their value is mantissa · 2^(exponent − shift).
        Under vmap each example is a tensor of its own.
    """
    assert witness is None or (shift is None and not slice_axes)
    if seed is not None:
        seed = jnp.reshape(seed, (1,) * x.ndim)
    more = {"shift": shift, "seed": seed, "witness": witness}
    more = {name: value for name, value in more.items() if value is not None}
    operands = _compat.vary_together(x, *more.values())
    params = {"mapped_axes": mapped_axes, "slice_axes": slice_axes, "given": tuple(more), "native": native}
    return tuple(quantize_p.bind(*operands, quantizer=quantizer, **params))


@quantize_p.def_abstract_eval
def _quantize_abstract_eval(x, *_, mapped_axes, slice_axes, **params):
    if _compat.is_unreduced(x):
        raise ValueError(
            f"quantize: x is of type {x.str_short(True)}, the parts of a sum that its devices have not added "
            "yet; add them first, with jax.reshard or jax.lax.psum"
        )
    kept = (*mapped_axes, *slice_axes)
    exponent_shape = tuple(size if axis in kept else 1 for axis, size in enumerate(x.shape))
    split = (entry if axis in kept else None for axis, entry in enumerate(_compat.partitions(x.sharding)))
    sharding = with_partitions(x.sharding, tuple(split))
    return (
        x.update(dtype=dfp16, weak_type=False),
        _compat.result_aval(x, exponent_shape, np.dtype("int32"), sharding),
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
    """Where JAX transposes a linear program without differentiating it first: the identity, as the
    derivative is."""
    return [cotangents[0], *(None for _ in more)]


quantize_p.def_impl(functools.partial(_compat.apply_primitive, quantize_p))
ad.primitive_jvps[quantize_p] = _quantize_jvp
ad.primitive_transposes[quantize_p] = _quantize_transpose
batching.primitive_batchers[quantize_p] = _quantize_batch
# The name tells profilers what XLA has made of it, wherever it is fused into.
_named = jax.named_scope(quantize_p.name)(_quantize)
mlir.register_lowering(quantize_p, lower_fun(_named, multiple_results=True))
