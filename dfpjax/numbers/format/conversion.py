"""`quantize` and `dequantize`: between floating-point arrays and `DFPArray`s."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _checks
from dfpjax.numbers.format.array import DFP32Array, DFPArray
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.numbers.format.quantizer import Quantizer


def quantize(
    x,
    bits: int = 16,
    rounding: str = "nearest",
    seed: int | jax.Array | None = None,
    axis: int | Sequence[int] | None = None,
) -> DFPArray:
    """Bring an array to dynamic fixed point (Das et al., 2018, §3), with one exponent for the whole tensor
    or, as the paper announces for the future, one for each slice.

    E = floor(log2(max|x|)) − (bits − 2) from this tensor, exactly; mantissa = round(x · 2^−E), clamped to
    ±(2^(bits−1) − 1). An all-zero tensor gets the smallest exponent. A NaN or infinity anywhere makes the
    whole tensor NaN. The derivative is the identity (straight-through). With `axis`, all this holds for each
    slice by itself.

    Arguments:
        x: real floating-point array of any shape; other than float32 it is rounded to float32 first, float64
            to float32's precision alone: its range is kept.
        bits: bits of a mantissa, its sign included, from 2 to 16.
        rounding: "nearest" (ties to even), "stochastic", "biased" (up if one of the two highest dropped
            bits is set) or "truncate" (toward zero). All act on magnitudes.
        seed: integer (taken modulo 2^32), or key of `jax.random.key`, that the random bits of stochastic
            rounding are made from; required for it and refused otherwise.
        axis: axis or axes along which every slice has an exponent of its own, negative ones counted from
            the end; the exponent then has x's rank, with extent 1 on all other axes. None for one exponent,
            a scalar.

    Raises:
        TypeError: if `x` is not a real floating-point array, `axis` not made of integers, or `seed` none of
            those named above.
        ValueError: if `bits`, `rounding`, `seed` or `axis` is not as said above.
    """
    if isinstance(x, DFPArray | DFP32Array):
        raise TypeError(f"quantize: x is a {type(x).__name__} already; call x.dequantize() first")
    x = _checks.real_array("quantize", "x", x)
    quantizer = checked_quantizer("quantize", bits, rounding)
    seed = rounding_seed("quantize", rounding, seed)
    slice_axes = () if axis is None else tuple(sorted(_checks.axes("quantize", "axis", axis, x.ndim)))
    if x.dtype != np.float64:
        values, exponent = _quantize(quantizer, slice_axes, x, seed)
    elif isinstance(x, jax.Array):
        values, exponent = _quantize_wide(quantizer, slice_axes, x, seed)
    else:
        scaled, power = _into_range(np, x, slice_axes)
        values, exponent = _quantize(quantizer, slice_axes, jnp.asarray(scaled, jnp.float32), seed)
        exponent = exponent + power
    return DFPArray.of(values, exponent.reshape(()) if axis is None else exponent)


def _quantize(quantizer: Quantizer, slice_axes: tuple[int, ...], x: jax.Array, seed: jax.Array | None):
    return quantize_array(x.astype(jnp.float32), quantizer, slice_axes=slice_axes, seed=seed)


def _into_range(numpy, x, slice_axes: tuple[int, ...]):
    """float64 numbers x as y · 2^power, with each slice of y in the middle of float32's range: x may lie
    outside of it, and an exponent need not. `numpy` is the module to compute with."""
    shared = tuple(axis for axis in range(x.ndim) if axis not in slice_axes)
    largest = numpy.max(numpy.abs(x), axis=shared, keepdims=True, initial=0)
    power = numpy.where(numpy.isfinite(largest) & (largest > 0), numpy.frexp(largest)[1], 0)
    return numpy.ldexp(x, -power), power.astype(np.int32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _quantize_wide(quantizer: Quantizer, slice_axes: tuple[int, ...], x: jax.Array, seed: jax.Array | None):
    scaled, power = _into_range(jnp, x, slice_axes)
    values, exponent = _quantize(quantizer, slice_axes, scaled, seed)
    return values, exponent + power


@_quantize_wide.defjvp
def _quantize_wide_jvp(quantizer, slice_axes, primals, tangents):
    values, exponent = _quantize_wide(quantizer, slice_axes, *primals)
    no_tangent = np.zeros(exponent.shape, jax.dtypes.float0)
    return (values, exponent), (tangents[0].astype(jnp.float32), no_tangent)  # straight-through


def checked_quantizer(function: str, bits: int, rounding: str) -> Quantizer:
    """The quantizer, or the error of the function whose arguments these are."""
    try:
        return Quantizer(bits=bits, rounding=rounding)
    except ValueError as error:
        raise ValueError(f"{function}: {error}") from None


def rounding_seed(function: str, rounding: str, seed: int | jax.Array | None) -> jax.Array | None:
    """The seed argument of a function that rounds, as uint32; checked that it is there just when needed."""
    if (seed is None) == (rounding == "stochastic"):
        raise ValueError(
            f'{function}: rounding="stochastic" needs a seed'
            if seed is None
            else f'{function}: seed is for rounding="stochastic", which this is not (rounding={rounding!r})'
        )
    if seed is None:
        return None
    wanted = "an integer, an integer array without axes, or a key of jax.random.key"
    if not isinstance(seed, jax.Array | np.ndarray):
        return jnp.uint32(_checks.integer(function, "seed", seed, wanted) & 0xFFFFFFFF)
    is_key = jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    if seed.ndim or not (is_key or jnp.issubdtype(seed.dtype, jnp.integer)):
        raise _checks.wrong_type(function, "seed", wanted, seed)
    return jax.random.bits(seed, dtype=jnp.uint32) if is_key else jnp.asarray(seed).astype(jnp.uint32)


def dequantize(x: DFPArray | DFP32Array) -> jax.Array:
    """`x.dequantize()`: a float32 array of x's shape; infinite where a value is beyond float32's range.

    Raises:
        TypeError: if `x` is not a tensor in dynamic fixed point.
    """
    wanted = "a DFPArray or DFP32Array, as dfpjax.quantize gives it"
    return _checks.instance("dequantize", "x", x, DFPArray | DFP32Array, wanted).dequantize()
