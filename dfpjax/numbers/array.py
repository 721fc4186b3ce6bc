"""`DFPArray`, a tensor in dynamic fixed point, and the functions that make one and read it."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.dtype import dfp16, from_integers, to_integers
from dfpjax.numbers.quantize import Quantizer, quantize_array, scale_by_power_of_two


@dataclass(frozen=True, init=False, eq=False)
class DFPArray:
    """A dynamic fixed point tensor ⟨mantissa, exponent⟩ of value mantissa · 2^exponent (Das et al., 2018,
    §3.1).

    A pytree of two arrays, so it passes through every JAX transformation. The mantissas are kept with
    dtype `dfpjax.dfp16` (int16 in memory, float32 tangents), so gradients flow through it.

    Arguments:
        mantissa: array of dtype `dfp16` or int16, in ±32767 (−32768 is not a mantissa).
        exponent: int32; a scalar for one exponent per tensor, or any shape that broadcasts against the
            mantissa.
    """

    values: jax.Array
    exponent: jax.Array

    def __init__(self, mantissa, exponent):
        if mantissa.dtype == np.dtype("int16"):
            mantissa = from_integers(jnp.asarray(mantissa))
        elif mantissa.dtype != dfp16:
            raise TypeError(
                f"DFPArray: mantissa must be of dtype int16 or dfp16, got {mantissa.dtype}; "
                "use dfpjax.quantize to make one of floating-point values"
            )
        object.__setattr__(self, "values", mantissa)
        object.__setattr__(self, "exponent", jnp.asarray(exponent, jnp.int32))

    @property
    def mantissa(self) -> jax.Array:
        """The mantissas as int16, of the tensor's shape."""
        return to_integers(self.values)

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    dtype = property(lambda self: dfp16)

    def dequantize(self) -> jax.Array:
        """mantissa · 2^exponent as float32, rounded once where it is subnormal; NaN for a non-finite
        tensor."""
        return _dequantize(self.values, jnp.asarray(self.exponent))

    def __repr__(self) -> str:
        return f"DFPArray(mantissa={self.values!r}, exponent={self.exponent!r})"


def _unflatten(_, children) -> DFPArray:
    # JAX unflattens placeholders and tangents too, which __init__ would refuse.
    array = object.__new__(DFPArray)
    for name, child in zip(("values", "exponent"), children, strict=True):
        object.__setattr__(array, name, child)
    return array


jax.tree_util.register_pytree_with_keys(
    DFPArray,
    lambda array: (
        (
            (jax.tree_util.GetAttrKey("mantissa"), array.values),
            (jax.tree_util.GetAttrKey("exponent"), array.exponent),
        ),
        None,
    ),
    _unflatten,
    lambda array: ((array.values, array.exponent), None),
)


@jax.custom_jvp
def _dequantize(values, exponent):
    mantissa = to_integers(values).astype(jnp.float32)
    return scale_by_power_of_two(mantissa, exponent)


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
    if (seed is None) == (rounding == "stochastic"):
        raise ValueError(
            'quantize: rounding="stochastic" needs a seed'
            if seed is None
            else f'quantize: seed is for rounding="stochastic", which this is not (rounding={rounding!r})'
        )
    if isinstance(x, DFPArray):
        raise TypeError("quantize: x is a DFPArray already; call x.dequantize() first")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"quantize: x must be a real floating-point array, got dtype {x.dtype}")
    seed = None if seed is None else _as_seed(seed)
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


def _as_seed(seed) -> jax.Array:
    if isinstance(seed, jax.Array | np.ndarray):
        return jnp.asarray(seed).astype(jnp.uint32)
    return jnp.uint32(operator.index(seed) & 0xFFFFFFFF)


def dequantize(x: DFPArray) -> jax.Array:
    """`x.dequantize()`: a float32 array of x's shape."""
    return x.dequantize()
