"""`DFPArray` and `DFP32Array`, tensors in dynamic fixed point.

Their operators and methods are functions of `dfpjax.numpy`. These functions import this module, so
`dfpjax.numbers.arithmetic.operators` adds them to the classes.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import batching

from dfpjax import _checks
from dfpjax.numbers.format.blocks import Blocks, fits, of_elements
from dfpjax.numbers.format.dtype import MantissaDType, dfp16, dfp32, from_integers, to_integers
from dfpjax.numbers.format.explicit import automatic
from dfpjax.numbers.format.printing import describe, exact_values
from dfpjax.numbers.format.scaling import MIN_FLOAT_EXPONENT, scale_by_power_of_two
from dfpjax.numbers.format.wide import bit_length, magnitude, shift_right, widen

MIN_NORMAL_EXPONENT = -126
"""Exponent of float32's smallest normal number."""


class DynamicFixedPoint:
    """What `DFPArray` and `DFP32Array` have in common."""

    values: jax.Array
    _exponent: jax.Array
    blocks: Blocks | None
    dtype: ClassVar[MantissaDType]

    def __init__(self, mantissa, exponent, blocks: Blocks | None = None):
        name, dtype = type(self).__name__, type(self).dtype
        found = getattr(mantissa, "dtype", None)
        if found not in (dtype, dtype.integer) or not isinstance(
            mantissa, jax.Array | np.ndarray | np.generic
        ):
            raise TypeError(
                f"{name}: mantissa must be of dtype {dtype.integer} or {dtype}, got "
                f"{found or _checks.described(mantissa)}; dfpjax.quantize makes a DFPArray of floating-point "
                "values"
            )
        if found == dtype.integer:
            _require_mantissas(name, dtype, mantissa)
        exponent = _as_exponent(name, exponent)
        if blocks is None:
            exponent = _broadcastable(name, exponent, mantissa.shape)
        else:
            _require_blocks(name, blocks, exponent.shape, mantissa.shape)
        self._set(mantissa, exponent, blocks)

    @classmethod
    def of(cls, mantissa: jax.Array, exponent: jax.Array, blocks: Blocks | None = None) -> Self:
        """A tensor from arrays that are known to be valid. It checks nothing and reads no numbers."""
        tensor = object.__new__(cls)
        tensor._set(mantissa, exponent, blocks)
        return tensor

    def with_mantissa(self, mantissa: jax.Array) -> Self:
        """The tensor with other mantissas of its shape, known to be valid, and its own exponents."""
        return self.of(mantissa, self._exponent, self.blocks)

    def _set(self, mantissa, exponent, blocks) -> None:
        is_integer = mantissa.dtype == type(self).dtype.integer
        object.__setattr__(self, "values", from_integers(jnp.asarray(mantissa)) if is_integer else mantissa)
        object.__setattr__(self, "_exponent", exponent)
        object.__setattr__(self, "blocks", blocks)

    @property
    def exponent(self) -> jax.Array:
        """int32: a scalar, or an array of the tensor's rank that broadcasts to its shape. With blocks it has
        the tensor's shape: the exponent of each element."""
        if self.blocks is not None and isinstance(self._exponent, jax.Array | np.ndarray):
            return _of_elements(self, self._exponent)
        # `vmap` and `scan` stack single exponents in front, as they stack the values. JAX's placeholders for
        # leaves have no axes.
        is_single = not getattr(self._exponent, "ndim", 0)
        return self._exponent if is_single else _of_rank(self._exponent, self.ndim)

    @property
    def block_exponent(self) -> jax.Array | None:
        """int32 of shape `blocks.counts(shape)`: the exponent of each block, with axes that `vmap` or `scan`
        added in front. None for a tensor without blocks."""
        return None if self.blocks is None else self._exponent

    @property
    def mantissa(self) -> jax.Array:
        """The mantissas as integers (int16 or int32), of the tensor's shape."""
        return to_integers(self.values)

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)

    @property
    def sharding(self) -> jax.sharding.Sharding:
        """The mantissas' sharding; under a trace, that of their type."""
        values = self.values
        return jax.typeof(values).sharding if isinstance(values, jax.core.Tracer) else values.sharding

    def dequantize(self) -> jax.Array:
        """mantissa · 2^exponent as float32, rounded once. NaN if the tensor is not finite, infinite where a
        value is beyond float32's range."""
        return _dequantize(self.values, jnp.asarray(self.exponent))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """The values as a NumPy array of `dtype` (float32 if None), rounded once. float64 also represents
        values beyond float32's range. Not available under a trace."""
        if copy is False:
            raise ValueError(f"{type(self).__name__}: values are computed, so copy=False cannot be had")
        exponent = self.exponent if self.blocks is None else _of_elements(self, np.asarray(self._exponent))
        values = exact_values(np.asarray(self.values), np.asarray(exponent))
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.float32 if dtype is None else dtype)

    def __repr__(self) -> str:
        return describe(self)


def _require_mantissas(name: str, dtype: MantissaDType, mantissa) -> None:
    """Refuse the one integer that is not a mantissa, unless the numbers cannot be read here."""
    if isinstance(mantissa, jax.core.Tracer) or (
        isinstance(mantissa, jax.Array) and not mantissa.is_fully_addressable
    ):
        return
    lowest = np.iinfo(dtype.integer).min
    if mantissa.size and int(mantissa.min()) == lowest:
        raise ValueError(
            f"{name}: mantissa must lie in ±{-lowest - 1}; {lowest}, which it holds, has no negative"
        )


def _broadcastable(name: str, exponent: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """An exponent without axes or of the tensor's rank."""
    padded = (1,) * (len(shape) - exponent.ndim) + exponent.shape
    if len(padded) > len(shape) or any(e not in (1, m) for e, m in zip(padded, shape, strict=True)):
        raise ValueError(
            f"{name}: exponent must broadcast to the mantissa's shape {shape}, got shape {exponent.shape}"
        )
    return exponent if exponent.shape in ((), padded) else exponent.reshape(padded)


def _require_blocks(name: str, blocks: Blocks, exponent: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse what is no `Blocks`, and exponents of a shape that does not belong to the blocks."""
    _checks.instance(name, "blocks", blocks, Blocks, "a dfpjax.Blocks or None")
    if not fits(exponent, shape, blocks):
        raise ValueError(
            f"{name}: exponent must have shape {blocks.counts(shape)}, a number for each of the blocks "
            f"({blocks}) of a mantissa of shape {shape}, got shape {exponent}"
        )


def _of_elements(tensor: DynamicFixedPoint, exponent) -> jax.Array | np.ndarray:
    """The exponents of a tensor's blocks as those of its elements."""
    if not fits(exponent.shape, tensor.shape, tensor.blocks):
        # JAX takes leaves apart without asking the tensor: `scan` over the axis behind the first one.
        raise ValueError(
            f"{type(tensor).__name__}: the exponents, of shape {exponent.shape}, are not those of the blocks "
            f"({tensor.blocks}) of a mantissa of shape {tensor.shape}; before blocks are taken apart along "
            "other axes than the first, give each element its exponent: dfpjax.numpy.split_exponent(x, axis)"
        )
    expand = functools.partial(of_elements, shape=tensor.shape, blocks=tensor.blocks)
    if isinstance(exponent, np.ndarray):
        return expand(exponent)
    # On a mesh with explicit axes they are split as the values are.
    return automatic(expand, jax.typeof(tensor.values).sharding)(exponent)


def _as_exponent(name: str, exponent) -> jax.Array:
    """`exponent` as an int32 array."""
    wanted = "an int32 scalar or array"
    given = exponent
    if not isinstance(exponent, jax.Array):
        try:
            exponent = np.asarray(exponent)
        except (TypeError, ValueError):  # JAX raises these for tracers inside, NumPy for ragged lists
            raise _checks.wrong_type(name, "exponent", wanted, given) from None
    if not jnp.issubdtype(exponent.dtype, jnp.integer):
        raise _checks.wrong_type(name, "exponent", wanted, given)
    if exponent.dtype != np.int32 and not isinstance(exponent, jax.core.Tracer) and exponent.size:
        least, largest = int(exponent.min()), int(exponent.max())
        if least < -(2**31) or largest >= 2**31:
            raise ValueError(f"{name}: exponent must fit an int32, got {least} to {largest}")
    return jnp.asarray(exponent, jnp.int32)


def _pytree(cls):
    """Class decorator: register the class as a pytree of values and exponent, with static blocks."""

    def flatten_with_keys(array):
        keys = jax.tree_util.GetAttrKey("mantissa"), jax.tree_util.GetAttrKey("exponent")
        return tuple(zip(keys, (array.values, array._exponent), strict=True)), array.blocks

    def unflatten(blocks, children):
        return _unflatten(cls, *children, blocks)

    def flatten(array):
        return (array.values, array._exponent), array.blocks

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    batching.register_vmappable(cls, int, int, _examples, _stacked, None)
    return cls


def _examples(example_of, _, tensor: DynamicFixedPoint, axis: int | None) -> DynamicFixedPoint:
    """What `jax.vmap` maps a function over. Exponents that all examples have in common are not mapped.

    Arguments:
        example_of: maps a leaf along an axis.
        axis: the mapped axis, or None.
    """
    values, exponent = tensor.values, tensor._exponent
    if axis is None:
        return tensor
    if not -values.ndim <= axis < values.ndim:
        name = type(tensor).__name__
        raise ValueError(f"vmap: in_axes gives axis {axis} for a {name} of shape {values.shape}")
    axis %= values.ndim
    if keeps_blocks(tensor, axis):
        own = example_of(exponent, axis)
        return _unflatten(type(tensor), example_of(values, axis), own, tensor.blocks)
    if tensor.blocks is not None:
        exponent = tensor.exponent
    if axis >= exponent.ndim:
        own = exponent
    elif exponent.shape[axis] == 1 < values.shape[axis]:
        own = exponent.squeeze(axis)
    else:
        own = example_of(exponent, axis)
    return _unflatten(type(tensor), example_of(values, axis), own, None)


def keeps_blocks(tensor: DynamicFixedPoint, axis: int) -> bool:
    """Whether slices along an axis keep the blocks: none crosses it, and the exponents have it, too."""
    if tensor.blocks is None:
        return False
    mapped = tensor._exponent.ndim - 3
    return axis < mapped or (axis == mapped and tensor.ndim - mapped > 1)


def _stacked(stacked, size: int, tensor: DynamicFixedPoint, axis: int | None) -> DynamicFixedPoint:
    """What `jax.vmap` makes of the results of a function, whose exponents may differ between the examples.

    Arguments:
        stacked: stacks a leaf of all examples along an axis.
        axis: the mapped axis of the result, or None.
    """
    values, exponent, blocks = tensor.values, tensor._exponent, tensor.blocks
    if isinstance(axis, int):
        axis %= values.ndim + 1
        # In front of the blocks the new axis is one of examples. Exponents of one index of a first axis get
        # that axis again, for which the values need another one.
        if blocks is not None and (axis or not values.ndim):
            exponent, blocks = tensor.exponent, None
        if axis > exponent.ndim:
            exponent = _of_rank(exponent, values.ndim)
    return _unflatten(type(tensor), stacked(size, values, axis), stacked(size, exponent, axis), blocks)


def _of_rank(exponent: jax.Array, rank: int) -> jax.Array:
    """An exponent of leading axes, with the other axes of a tensor of that rank."""
    missing = rank - exponent.ndim
    return exponent.reshape(exponent.shape + (1,) * missing) if missing else exponent


def _unflatten(cls, values, exponent, blocks):
    # JAX also unflattens placeholders and tangents, which __init__ would refuse.
    tensor = object.__new__(cls)
    object.__setattr__(tensor, "values", values)
    object.__setattr__(tensor, "_exponent", exponent)
    object.__setattr__(tensor, "blocks", blocks)
    return tensor


@_pytree
@dataclass(frozen=True, init=False, eq=False, repr=False)
class DFPArray(DynamicFixedPoint):
    """A tensor ⟨mantissa, exponent⟩ in dynamic fixed point, with the value mantissa · 2^exponent (Das et al.,
    2018, §3.1).

    It is a pytree of two arrays, so it passes through every JAX transformation. `jax.vmap` maps over it and
    returns it, with one entry for it in `in_axes` and `out_axes`. `jax.lax.scan` and `jax.lax.map` return it.
    To scan over one, its exponent needs the first axis: `dfpjax.numpy.split_exponent(x)` adds it. Exponents
    of blocks have it, unless the tensor has no other axis. The mantissas have dtype `dfpjax.dfp16` (int16 in
    memory, float32 tangents), so gradients flow through them. The operators `+ - * @`, indexing and the
    functions of `dfpjax.numpy` compute on the integers. A sum of two DFPArrays is a DFPArray, their product a
    `DFP32Array`. `== != < <= > >=` compare values exactly, element by element, with tensors in dynamic fixed
    point, arrays and numbers. `numpy.asarray` gives the values. Libraries that write files do not know the
    dtype; write `.mantissa`, `.exponent` (with blocks `.block_exponent`) and the size of blocks.

    Arguments:
        mantissa: array of dtype `dfp16` or int16, in ±32767 (−32768 is not a mantissa).
        exponent: integers, stored as int32: a scalar for one exponent per tensor, or an array that broadcasts
            to the mantissa's shape, which gets the mantissa's rank. With blocks, an array of shape
            `blocks.counts(mantissa.shape)`; then `.exponent` has the exponent of each element, and
            `.block_exponent` is this array.
        blocks: the size of blocks that have an exponent each (the paper's conclusion announces such
            exponents), or None.

    Raises:
        TypeError: if the mantissa is not an array of these dtypes, the exponent is not made of integers, or
            `blocks` is not a `Blocks`.
        ValueError: if the shapes do not fit, the exponent does not fit an int32, or a mantissa is −32768
            (not checked under a trace).
    """

    values: jax.Array
    _exponent: jax.Array
    blocks: Blocks | None
    dtype: ClassVar[MantissaDType] = dfp16


@_pytree
@dataclass(frozen=True, init=False, eq=False, repr=False)
class DFP32Array(DynamicFixedPoint):
    """A DFP-32 accumulator, the result of multiplying `DFPArray`s (Das et al., 2018, §3.1).

    It is like `DFPArray`, but its mantissas are int32 in ±(2^31 − 1), of dtype `dfpjax.dfp32`. It supports
    addition, and `dfpjax.numpy.down_convert` converts it to DFP-16.

    Arguments:
        mantissa: array of dtype `dfp32` or int32 (−2^31 is not a mantissa).
        exponent: integers, stored as int32: a scalar, or an array that broadcasts to the mantissa's shape, or
            of shape `blocks.counts(mantissa.shape)`.
        blocks: the size of blocks that have an exponent each, or None.

    Raises:
        TypeError, ValueError: as for `DFPArray`.
    """

    values: jax.Array
    _exponent: jax.Array
    blocks: Blocks | None
    dtype: ClassVar[MantissaDType] = dfp32


@jax.custom_jvp
def _dequantize(values, exponent):
    if values.dtype == dfp32:
        return _dequantize_accumulator(values, exponent)
    return scale_by_power_of_two(to_integers(values).astype(jnp.float32), exponent)


@jax.jit
def _dequantize_accumulator(values, exponent):
    mantissa = widen(to_integers(values))
    # A subnormal result has fewer than float32's 24 bits. Round to its bits here, so that the conversion and
    # the scaling below are exact and the result is rounded once.
    is_subnormal = bit_length(magnitude(mantissa)) + exponent <= MIN_NORMAL_EXPONENT
    drop = jnp.where(is_subnormal, jnp.maximum(MIN_FLOAT_EXPONENT - exponent, 0), 0)
    rounded = shift_right(mantissa, drop, "nearest").astype(jnp.float32)
    return scale_by_power_of_two(rounded, exponent + drop)


@_dequantize.defjvp
def _dequantize_jvp(primals, tangents):
    return _dequantize(*primals), tangents[0]  # straight-through, as in quantize
