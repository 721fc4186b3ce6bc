"""`quantize` and `dequantize`: between floating-point arrays and `DFPArray`s."""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

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
        x: real floating-point array of any shape; other than float32 it is converted to float32 first.
        bits: bits of a mantissa, its sign included, from 2 to 16.
        rounding: "nearest" (ties to even), "stochastic", "biased" (up if one of the two highest dropped
            bits is set) or "truncate" (toward zero). All act on magnitudes.
        seed: integer that the random bits of stochastic rounding are made from; required for it and
            refused otherwise.
        axis: axis or axes along which every slice has an exponent of its own, negative ones counted from
            the end; the exponent then has x's rank, with extent 1 on all other axes. None for one exponent,
            a scalar.

    Raises:
        TypeError: if `x` is not a real floating-point array, or `axis` not made of integers.
        ValueError: if `bits`, `rounding`, `seed` or `axis` is not as said above.
    """
    quantizer = Quantizer(bits=bits, rounding=rounding)
    seed = rounding_seed("quantize", rounding, seed)
    if isinstance(x, DFPArray | DFP32Array):
        raise TypeError(f"quantize: x is a {type(x).__name__} already; call x.dequantize() first")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"quantize: x must be a real floating-point array, got dtype {x.dtype}")
    slice_axes = () if axis is None else _as_axes(axis, x.ndim)
    values, exponent = quantize_array(x.astype(jnp.float32), quantizer, slice_axes=slice_axes, seed=seed)
    return DFPArray(values, exponent.reshape(()) if axis is None else exponent)


def _as_axes(axis, ndim: int) -> tuple[int, ...]:
    try:
        axes = tuple(map(operator.index, axis if isinstance(axis, Sequence) else (axis,)))
    except TypeError:
        raise TypeError(f"quantize: axis must be an integer or several, got {axis!r}") from None
    for one in axes:
        if not -ndim <= one < ndim:
            raise ValueError(f"quantize: axis {one} is not one of x's, which has {ndim}")
    axes = tuple(sorted(one % ndim for one in axes))
    if len(set(axes)) < len(axes):
        raise ValueError(f"quantize: axis names one twice: {axis!r}")
    return axes


def rounding_seed(function: str, rounding: str, seed: int | jax.Array | None) -> jax.Array | None:
    """The seed argument of a function that rounds, as uint32; checked that it is there just when needed."""
    if (seed is None) == (rounding == "stochastic"):
        raise ValueError(
            f'{function}: rounding="stochastic" needs a seed'
            if seed is None
            else f'{function}: seed is for rounding="stochastic", which this is not (rounding={rounding!r})'
        )
    if seed is None or isinstance(seed, jax.Array | np.ndarray):
        return None if seed is None else jnp.asarray(seed).astype(jnp.uint32)
    return jnp.uint32(operator.index(seed) & 0xFFFFFFFF)


def dequantize(x: DFPArray | DFP32Array) -> jax.Array:
    """`x.dequantize()`: a float32 array of x's shape."""
    return x.dequantize()
