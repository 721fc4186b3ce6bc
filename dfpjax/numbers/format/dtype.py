"""The JAX dtypes `dfp16` and `dfp32`: integer mantissas whose tangents are float32.

An integer array has no tangent in JAX, so gradients through quantized operands would silently be lost. An
*extended* dtype defines its own tangents: this one is int16 (or int32) in memory and in XLA, and its tangent
dtype is float32. JAX's PRNG keys are extended dtypes too.

For JAX an element is an array of shape (1,), so the *physical* array has one axis more than the array that
users see. An element without axes would not work: JAX 0.10.2 derives an array's sharding from the physical
one by removing the element's axes, and removes all axes if the element has none. XLA optimizes axes of size 1
away. `from_integers` adds this axis, `to_integers` removes it.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _compat


class dfp16_scalar(_compat.extended):
    """Abstract scalar type of `dfp16`, for `jnp.issubdtype(x.dtype, dfp16_scalar)`."""


class dfp32_scalar(_compat.extended):
    """Abstract scalar type of `dfp32`."""


def _without_arithmetic(cls: type) -> type:
    """Class decorator: members that `jax.Array` declares and the class does not define raise errors that say
    what to do instead. (JAX's declarations raise errors without a message, which `hasattr` does not treat as
    a missing attribute.)"""

    def refusal(name: str) -> str:
        return (
            f"{cls.__name__}.{name}: mantissas mean nothing without their exponent. Compute with the "
            "dfpjax.DFPArray that has them (dfpjax.numpy), with its float32 values, .dequantize(), or with "
            "its integers, .mantissa"
        )

    def method(name: str):
        def refused(self, *args, **kwargs):
            raise TypeError(refusal(name))

        return refused

    def absent(name: str):
        def refused(self):
            raise AttributeError(refusal(name))

        return property(refused)

    for name in dir(jax.Array):
        declared = inspect.getattr_static(jax.Array, name)
        if name not in vars(cls) and getattr(declared, "__isabstractmethod__", False):
            setattr(cls, name, absent(name) if isinstance(declared, property) else method(name))
    return cls


@_without_arithmetic
class MantissaArray(jax.Array):
    """A concrete array of dtype `dfp16` or `dfp32`: JAX's representation of such a value outside a trace.

    `numpy.asarray` gives the integers. Like JAX's key arrays, it implements the container interface of
    `jax.Array` and comparison for equality. It refuses arithmetic with a TypeError, because mantissas mean
    nothing without their exponent (see `dfpjax.DFPArray`).
    """

    __array_ufunc__ = (
        None  # NumPy does not compute with the integers implicitly, and leaves `1 + self` to __radd__
    )

    def __init__(self, mantissa: jax.Array):
        mantissa = jnp.asarray(mantissa)  # pickle passes a NumPy array
        self._physical = mantissa.reshape(*mantissa.shape, 1)

    @classmethod
    def _of(cls, physical) -> "MantissaArray":
        array = cls.__new__(cls)
        array._physical = jnp.asarray(physical)  # device_get passes a NumPy array
        return array

    @property
    def _mantissa(self) -> jax.Array:
        return self._physical.reshape(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._physical, dtype=dtype, copy=copy)[..., 0]

    def __reduce__(self):
        return MantissaArray, (np.asarray(self),)

    def __repr__(self) -> str:
        return f"MantissaArray({np.asarray(self)}, dtype={self.dtype})"

    def __len__(self) -> int:
        return len(self._physical)

    def __iter__(self):
        return (MantissaArray(row) for row in self._mantissa)

    def __getitem__(self, index):
        return MantissaArray(self._mantissa[index])

    def __bool__(self):
        raise TypeError(f"mantissas of dtype {self.dtype} have no truth value without their exponent")

    def __eq__(self, other):
        return self._compared(other, "==") if isinstance(other, jax.Array) else NotImplemented

    def __ne__(self, other):
        return ~self._compared(other, "!=") if isinstance(other, jax.Array) else NotImplemented

    __hash__ = None

    def _compared(self, other: jax.Array, operator: str) -> jax.Array:
        if other.dtype != self.dtype:
            raise TypeError(
                f"MantissaArray: {operator} takes mantissas of the same dtype, got {self.dtype} and "
                f"{other.dtype}; compare DFPArrays, or their .mantissa, instead"
            )
        return self._mantissa == to_integers(other)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def copy(self):
        return MantissaArray._of(self._physical.copy())

    def astype(self, dtype, copy: bool = False, device=None):
        """Conversion to the same dtype, or to the integers, which have the same bits.

        Raises:
            TypeError: for any other dtype.
        """
        if dtype == self.dtype:
            moved = self._physical if device is None else jax.device_put(self._physical, device)
            return MantissaArray._of(moved.copy() if copy else moved)
        if not isinstance(dtype, MantissaDType) and dtype == self.dtype.integer:
            return self._mantissa.astype(dtype, copy=copy, device=device)
        raise TypeError(
            f"MantissaArray.astype: dtype must be {self.dtype} or {self.dtype.integer}, got {dtype}; the "
            "values are those of the dfpjax.DFPArray: .dequantize()"
        )

    def to_device(self, device, *, stream=None):
        return MantissaArray._of(self._physical.to_device(device, stream=stream))

    def block_until_ready(self):
        self._physical.block_until_ready()
        return self

    def copy_to_host_async(self):
        self._physical.copy_to_host_async()

    def delete(self) -> None:
        self._physical.delete()

    def is_deleted(self) -> bool:
        return self._physical.is_deleted()

    def devices(self):
        return self._physical.devices()

    def addressable_data(self, index: int):
        return MantissaArray._of(self._physical.addressable_data(index))

    def on_device_size_in_bytes(self) -> int:
        return self._physical.on_device_size_in_bytes()

    def reshape(self, *args, **kwargs):
        return MantissaArray(self._mantissa.reshape(*args, **kwargs))

    def transpose(self, *args):
        return MantissaArray(self._mantissa.transpose(*args))

    def squeeze(self, axis=None):
        return MantissaArray(self._mantissa.squeeze(axis))

    def ravel(self, *args, **kwargs):
        return MantissaArray(self._mantissa.ravel(*args, **kwargs))

    def flatten(self, *args, **kwargs):
        return MantissaArray(self._mantissa.flatten(*args, **kwargs))

    def swapaxes(self, axis1: int, axis2: int):
        return MantissaArray(self._mantissa.swapaxes(axis1, axis2))

    def take(self, indices, axis=None, **kwargs):
        return MantissaArray(self._mantissa.take(indices, axis, **kwargs))

    T = property(lambda self: self.transpose())
    mT = property(lambda self: self.swapaxes(-1, -2))
    addressable_shards = property(lambda self: _logical_shards(self, self._physical.addressable_shards))
    global_shards = property(lambda self: _logical_shards(self, self._physical.global_shards))
    aval = property(lambda self: _aval(self))
    shape = property(lambda self: self._physical.shape[:-1])
    ndim = property(lambda self: self._physical.ndim - 1)
    size = property(lambda self: self._physical.size)
    dtype = property(lambda self: _MANTISSA_DTYPES[self._physical.dtype])
    itemsize = property(lambda self: self._physical.itemsize)
    nbytes = property(lambda self: self._physical.nbytes)
    weak_type = property(lambda self: False)
    device = property(lambda self: self._physical.device)
    sharding = property(lambda self: _logical_sharding(self))
    committed = property(lambda self: self._physical.committed)
    _committed = property(lambda self: self._physical.committed)
    is_fully_addressable = property(lambda self: self._physical.is_fully_addressable)
    is_fully_replicated = property(lambda self: self._physical.is_fully_replicated)


class _Rules:
    """The functions that JAX calls for an extended dtype (the protocol of `dtype._rules`)."""

    allow_conversion = True  # convert_element_type to or from the integers keeps the bits

    @staticmethod
    def physical_element_aval(dtype):
        return _compat.ShapedArray((1,), dtype.integer)

    @staticmethod
    def tangent_dtype(dtype):
        return np.dtype("float32")

    @staticmethod
    def full(shape, fill_value, dtype):
        return from_integers(jnp.full(shape, fill_value, dtype.integer))

    @staticmethod
    def zero(dtype):
        return from_integers(jnp.zeros((), dtype.integer))

    @staticmethod
    def physical_const(value):
        return value._physical

    @staticmethod
    def result_handler(sticky_device, aval):
        def handler(_, buffer):
            buffer.aval = _compat.ShapedArray(buffer.shape, buffer.dtype)
            return MantissaArray._of(buffer)

        return handler

    @staticmethod
    def global_sharded_result_handler(aval, sharding, committed):
        make = _compat.global_result_handlers[_compat.ShapedArray]
        physical = _compat.physical_sharding(aval, sharding)
        return make(_compat.physical_aval(aval), physical, committed).wrap(MantissaArray._of)

    @staticmethod
    def make_sharded_array(aval, sharding, arrays, committed):
        make = _compat.global_result_handlers[_compat.ShapedArray]
        physical = _compat.physical_sharding(aval, sharding)
        handler = make(_compat.physical_aval(aval), physical, committed)
        return MantissaArray._of(handler([array._physical for array in arrays]))


class MantissaDType(_compat.ExtendedDType):
    """The class of `dfp16` and `dfp32`."""

    _rules = _Rules

    def __init__(self, name: str, integer: str, scalar: type):
        self.name = name
        self.integer = np.dtype(integer)
        """The integer dtype of a mantissa in memory."""
        self._scalar = scalar

    type = property(lambda self: self._scalar)
    itemsize = property(lambda self: self.integer.itemsize)

    def __repr__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash((MantissaDType, self.name))

    def __eq__(self, other) -> bool:
        return type(other) is MantissaDType and self.name == other.name


dfp16 = MantissaDType("dfp16", "int16", dfp16_scalar)
dfp32 = MantissaDType("dfp32", "int32", dfp32_scalar)
_MANTISSA_DTYPES = {dtype.integer: dtype for dtype in (dfp16, dfp32)}


def from_integers(mantissa: jax.Array) -> jax.Array:
    """Convert an int16 array to dtype `dfp16`, or an int32 array to dtype `dfp32`."""
    dtype = _MANTISSA_DTYPES[mantissa.dtype]
    return jax.lax.convert_element_type(mantissa.reshape(*mantissa.shape, 1), dtype)


def to_integers(values: jax.Array) -> jax.Array:
    """Convert a `dfp16` array to int16, or a `dfp32` array to int32."""
    return jax.lax.convert_element_type(values, values.dtype.integer).reshape(values.shape)


def _shard_args(arrays, shardings, layouts, copy_semantics):
    physical = [_compat.physical_sharding(x.aval, s) for x, s in zip(arrays, shardings, strict=True)]
    return _compat.shard_args(physical, layouts, copy_semantics, [x._physical for x in arrays])


def _constant(value, aval):
    return _compat.get_constant_handler(type(value._physical))(value._physical, aval)


def _logical_sharding(value: MantissaArray):
    return _compat.logical_sharding(value.shape, value.dtype, value._physical.sharding)


def _logical_shards(value: MantissaArray, physical_shards) -> list[jax.Shard]:
    return [
        jax.Shard(
            shard.device,
            value.sharding,
            value.shape,
            None if shard.data is None else MantissaArray._of(shard.data),
        )
        for shard in physical_shards
    ]


def _aval(value: MantissaArray):
    physical = value._physical.aval
    spec = physical.sharding.spec.update(partitions=_compat.partitions(physical.sharding)[:-1])
    sharding = physical.sharding.update(spec=spec)
    return physical.update(shape=value.shape, dtype=value.dtype, sharding=sharding)


_compat.pytype_aval_mappings[MantissaArray] = _aval
_compat.accept_as_value(MantissaArray)
_compat.shard_arg_handlers[MantissaArray] = _shard_args
_compat.register_constant_handler(MantissaArray, _constant)
_compat.dispatch_registry.register_node(  # for jax.device_get
    MantissaArray, lambda x: ((x._physical,), None), lambda _, children: MantissaArray._of(children[0])
)
