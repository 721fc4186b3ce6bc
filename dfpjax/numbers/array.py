"""`DFPArray` and `DFP32Array`, tensors in dynamic fixed point, and the functions that make and read them."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.dtype import MantissaDType, dfp16, dfp32, from_integers, to_integers
from dfpjax.numbers.operators import Operators
from dfpjax.numbers.printing import describe
from dfpjax.numbers.quantize import MIN_FLOAT_EXPONENT, Quantizer, quantize_array, scale_by_power_of_two
from dfpjax.numbers.wide import bit_length, magnitude, shift_right, widen

MIN_NORMAL_EXPONENT = -126
"""Exponent of float32's smallest normal number."""


class _DynamicFixedPoint(Operators):
    """What `DFPArray` and `DFP32Array` have in common."""

    values: jax.Array
    exponent: jax.Array
    dtype: ClassVar[MantissaDType]

    def __init__(self, mantissa, exponent):
        name, dtype = type(self).__name__, type(self).dtype
        if mantissa.dtype == dtype.integer:
            mantissa = from_integers(jnp.asarray(mantissa))
        elif mantissa.dtype != dtype:
            raise TypeError(
                f"{name}: mantissa must be of dtype {dtype.integer} or {dtype}, got {mantissa.dtype}; "
                "use dfpjax.quantize to make a DFPArray of floating-point values"
            )
        exponent = jnp.asarray(exponent, jnp.int32)
        padded = (1,) * (mantissa.ndim - exponent.ndim) + exponent.shape
        if len(padded) > mantissa.ndim or any(
            e not in (1, m) for e, m in zip(padded, mantissa.shape, strict=True)
        ):
            raise ValueError(
                f"{name}: exponent must broadcast to the mantissa's shape {mantissa.shape}, "
                f"got shape {exponent.shape}"
            )
        object.__setattr__(self, "values", mantissa)
        object.__setattr__(self, "exponent", exponent)

    @property
    def mantissa(self) -> jax.Array:
        """The mantissas as integers (int16 or int32), of the tensor's shape."""
        return to_integers(self.values)

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)

    def dequantize(self) -> jax.Array:
        """mantissa · 2^exponent as float32, rounded once; NaN for a non-finite tensor."""
        return _dequantize(self.values, jnp.asarray(self.exponent))

    def __repr__(self) -> str:
        return describe(self)


def _pytree(cls):
    """Register as a pytree of values and exponent."""

    def flatten_with_keys(array):
        keys = jax.tree_util.GetAttrKey("mantissa"), jax.tree_util.GetAttrKey("exponent")
        return tuple(zip(keys, (array.values, array.exponent), strict=True)), None

    def unflatten(_, children):
        # JAX unflattens placeholders and tangents too, which __init__ would refuse.
        array = object.__new__(cls)
        for name, child in zip(("values", "exponent"), children, strict=True):
            object.__setattr__(array, name, child)
        return array

    def flatten(array):
        return (array.values, array.exponent), None

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


@_pytree
@dataclass(frozen=True, init=False, eq=False, repr=False)
class DFPArray(_DynamicFixedPoint):
    """A dynamic fixed point tensor ⟨mantissa, exponent⟩ of value mantissa · 2^exponent (Das et al., 2018,
    §3.1).

    A pytree of two arrays, so it passes through every JAX transformation. The mantissas are kept with
    dtype `dfpjax.dfp16` (int16 in memory, float32 tangents), so gradients flow through it. The operators
    `+ - * @`, indexing and the functions of `dfpjax.numpy` compute on the integers: a sum of two DFPArrays
    is a DFPArray, a product a `DFP32Array`.

    Arguments:
        mantissa: array of dtype `dfp16` or int16, in ±32767 (−32768 is not a mantissa).
        exponent: int32; a scalar for one exponent per tensor, or any shape that broadcasts to the
            mantissa's.
    """

    values: jax.Array
    exponent: jax.Array
    dtype: ClassVar[MantissaDType] = dfp16


@_pytree
@dataclass(frozen=True, init=False, eq=False, repr=False)
class DFP32Array(_DynamicFixedPoint):
    """A DFP-32 accumulator: what products of `DFPArray`s are (Das et al., 2018, §3.1).

    Like `DFPArray`, with int32 mantissas in ±(2^31 − 1) of dtype `dfpjax.dfp32`. It can be added to, and
    `dfpjax.numpy.down_convert` brings it back to DFP-16.

    Arguments:
        mantissa: array of dtype `dfp32` or int32 (−2^31 is not a mantissa).
        exponent: int32; a scalar, or any shape that broadcasts to the mantissa's.
    """

    values: jax.Array
    exponent: jax.Array
    dtype: ClassVar[MantissaDType] = dfp32


@jax.custom_jvp
def _dequantize(values, exponent):
    if values.dtype == dfp32:
        return _dequantize_accumulator(values, exponent)
    return scale_by_power_of_two(to_integers(values).astype(jnp.float32), exponent)


@jax.jit
def _dequantize_accumulator(values, exponent):
    mantissa = widen(to_integers(values))
    # A subnormal result has fewer than float32's 24 bits. To be rounded once it is rounded here, and what is
    # left is exact.
    is_subnormal = bit_length(magnitude(mantissa)) + exponent <= MIN_NORMAL_EXPONENT
    drop = jnp.where(is_subnormal, jnp.maximum(MIN_FLOAT_EXPONENT - exponent, 0), 0)
    rounded = shift_right(mantissa, drop, "nearest").astype(jnp.float32)
    return scale_by_power_of_two(rounded, exponent + drop)


@_dequantize.defjvp
def _dequantize_jvp(primals, tangents):
    return _dequantize(*primals), tangents[0]  # straight-through, as quantize's


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
    if isinstance(x, _DynamicFixedPoint):
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
