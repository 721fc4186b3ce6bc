"""The JAX dtype ``dfp16``: int16 mantissas whose tangents are float32.

An int16 array has no tangent in JAX, so a chain rule through quantized operands would be cut silently. An
*extended* dtype says what to do instead: it is int16 in memory and in XLA, and its tangent dtype is
float32. JAX's PRNG keys are built the same way.

To JAX an element is an int16 array of shape (1,), so the *physical* array has one more axis than the one we
see: JAX 0.10.2 finds an array's sharding from the physical one's by cutting off the element's axes, and cuts
off all of them where the element has none. XLA sees through axes of size 1; `from_int16` and `to_int16` add
and remove it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _compat


class dfp16_scalar(_compat.extended):
    """Abstract scalar type of `dfp16`, for ``jnp.issubdtype(x.dtype, dfp16_scalar)``."""


class DFP16Array(jax.Array):
    """A concrete array of dtype `dfp16`: what JAX hands out for such a value outside of a trace.

    ``numpy.asarray`` gives the int16 mantissas. Like JAX's own key arrays it implements the container half
    of `jax.Array` and leaves arithmetic out: bare mantissas mean nothing without their exponent (see
    `dfpjax.DFPArray`).
    """

    def __init__(self, mantissa: jax.Array):
        mantissa = jnp.asarray(mantissa)  # pickle hands in a NumPy array
        self._physical = mantissa.reshape(*mantissa.shape, 1)

    @classmethod
    def _of(cls, physical) -> "DFP16Array":
        array = cls.__new__(cls)
        array._physical = jnp.asarray(physical)  # device_get hands in a NumPy array
        return array

    @property
    def _mantissa(self) -> jax.Array:
        return self._physical.reshape(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._physical, dtype=dtype, copy=copy)[..., 0]

    def __reduce__(self):
        return DFP16Array, (np.asarray(self),)

    def __repr__(self) -> str:
        return f"DFP16Array({np.asarray(self)}, dtype=dfp16)"

    def __len__(self) -> int:
        return len(self._physical)

    def __iter__(self):
        return (DFP16Array(row) for row in self._mantissa)

    def __getitem__(self, index):
        return DFP16Array(self._mantissa[index])

    def __bool__(self):
        raise TypeError("mantissas of dtype dfp16 have no truth value without their exponent")

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
        return DFP16Array._of(self._physical.addressable_data(index))

    def on_device_size_in_bytes(self) -> int:
        return self._physical.on_device_size_in_bytes()

    def reshape(self, *args, **kwargs):
        return DFP16Array(self._mantissa.reshape(*args, **kwargs))

    def transpose(self, *args):
        return DFP16Array(self._mantissa.transpose(*args))

    def squeeze(self, axis=None):
        return DFP16Array(self._mantissa.squeeze(axis))

    def ravel(self):
        return DFP16Array(self._mantissa.ravel())

    T = property(lambda self: self.transpose())
    aval = property(lambda self: _aval(self))
    shape = property(lambda self: self._physical.shape[:-1])
    ndim = property(lambda self: self._physical.ndim - 1)
    size = property(lambda self: self._physical.size)
    dtype = property(lambda self: dfp16)
    itemsize = property(lambda self: 2)
    nbytes = property(lambda self: self._physical.nbytes)
    weak_type = property(lambda self: False)
    device = property(lambda self: self._physical.device)
    sharding = property(lambda self: _compat.logical_sharding(self.shape, dfp16, self._physical.sharding))
    committed = property(lambda self: self._physical.committed)
    _committed = property(lambda self: self._physical.committed)
    is_fully_addressable = property(lambda self: self._physical.is_fully_addressable)
    is_fully_replicated = property(lambda self: self._physical.is_fully_replicated)


class _Rules:
    """What JAX asks an extended dtype (the protocol of ``dtype._rules``)."""

    allow_conversion = True  # convert_element_type between dfp16 and int16 is the identity on the bits

    @staticmethod
    def physical_element_aval(dtype):
        return _compat.ShapedArray((1,), np.dtype("int16"))

    @staticmethod
    def tangent_dtype(dtype):
        return np.dtype("float32")

    @staticmethod
    def full(shape, fill_value, dtype):
        return from_int16(jnp.full(shape, fill_value, jnp.int16))

    @staticmethod
    def zero(dtype):
        return from_int16(jnp.zeros((), jnp.int16))

    @staticmethod
    def physical_const(value):
        return value._physical

    @staticmethod
    def result_handler(sticky_device, aval):
        def handler(_, buffer):
            buffer.aval = _compat.ShapedArray(buffer.shape, buffer.dtype)
            return DFP16Array._of(buffer)

        return handler

    @staticmethod
    def global_sharded_result_handler(aval, sharding, committed):
        make = _compat.global_result_handlers[_compat.ShapedArray]
        physical = _compat.physical_sharding(aval, sharding)
        return make(_compat.physical_aval(aval), physical, committed).wrap(DFP16Array._of)

    @staticmethod
    def make_sharded_array(aval, sharding, arrays, committed):
        make = _compat.global_result_handlers[_compat.ShapedArray]
        physical = _compat.physical_sharding(aval, sharding)
        handler = make(_compat.physical_aval(aval), physical, committed)
        return DFP16Array._of(handler([array._physical for array in arrays]))


class DFP16DType(_compat.ExtendedDType):
    """The class of `dfp16`; it has one value."""

    _rules = _Rules
    type = dfp16_scalar
    name = "dfp16"
    itemsize = 2

    def __repr__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(DFP16DType)

    def __eq__(self, other) -> bool:
        return type(other) is DFP16DType


dfp16 = DFP16DType()


def from_int16(mantissa: jax.Array) -> jax.Array:
    """An int16 array with dtype `dfp16`."""
    return jax.lax.convert_element_type(mantissa.reshape(*mantissa.shape, 1), dfp16)


def to_int16(values: jax.Array) -> jax.Array:
    """A `dfp16` array with dtype int16."""
    return jax.lax.convert_element_type(values, np.dtype("int16")).reshape(values.shape)


def _shard_args(arrays, shardings, layouts, copy_semantics):
    physical = [_compat.physical_sharding(x.aval, s) for x, s in zip(arrays, shardings, strict=True)]
    return _compat.shard_args(physical, layouts, copy_semantics, [x._physical for x in arrays])


def _constant(value, aval):
    return _compat.get_constant_handler(type(value._physical))(value._physical, aval)


def _aval(value: DFP16Array):
    physical = value._physical.aval
    sharding = physical.sharding.update(spec=physical.sharding.spec[:-1])
    return physical.update(shape=value.shape, dtype=dfp16, sharding=sharding)


_compat.pytype_aval_mappings[DFP16Array] = _aval
_compat.accept_as_value(DFP16Array)
_compat.shard_arg_handlers[DFP16Array] = _shard_args
_compat.register_constant_handler(DFP16Array, _constant)
_compat.dispatch_registry.register_node(  # for jax.device_get
    DFP16Array, lambda x: ((x._physical,), None), lambda _, children: DFP16Array._of(children[0])
)
