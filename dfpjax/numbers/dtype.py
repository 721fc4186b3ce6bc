"""The JAX dtype ``dfp16``: int16 mantissas whose tangents are float32.

An int16 array has no tangent in JAX, so a chain rule through quantized operands would be cut silently. An
*extended* dtype says what to do instead: it is int16 in memory and in XLA, and its tangent dtype is
float32. JAX's PRNG keys are built the same way.
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
        self._mantissa = jnp.asarray(mantissa)  # device_get and pickle hand in NumPy arrays

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._mantissa, dtype=dtype, copy=copy)

    def __reduce__(self):
        return DFP16Array, (np.asarray(self),)

    def __repr__(self) -> str:
        return f"DFP16Array({np.asarray(self)}, dtype=dfp16)"

    def __len__(self) -> int:
        return len(self._mantissa)

    def __iter__(self):
        return (DFP16Array(row) for row in self._mantissa)

    def __getitem__(self, index):
        return DFP16Array(self._mantissa[index])

    def __bool__(self):
        raise TypeError("mantissas of dtype dfp16 have no truth value without their exponent")

    def block_until_ready(self):
        self._mantissa.block_until_ready()
        return self

    def copy_to_host_async(self):
        self._mantissa.copy_to_host_async()

    def delete(self) -> None:
        self._mantissa.delete()

    def is_deleted(self) -> bool:
        return self._mantissa.is_deleted()

    def devices(self):
        return self._mantissa.devices()

    def addressable_data(self, index: int):
        return DFP16Array(self._mantissa.addressable_data(index))

    def on_device_size_in_bytes(self) -> int:
        return self._mantissa.on_device_size_in_bytes()

    def reshape(self, *args, **kwargs):
        return DFP16Array(self._mantissa.reshape(*args, **kwargs))

    def transpose(self, *args):
        return DFP16Array(self._mantissa.transpose(*args))

    def squeeze(self, axis=None):
        return DFP16Array(self._mantissa.squeeze(axis))

    def ravel(self):
        return DFP16Array(self._mantissa.ravel())

    T = property(lambda self: self.transpose())
    aval = property(lambda self: self._mantissa.aval.update(dtype=dfp16))
    shape = property(lambda self: self._mantissa.shape)
    ndim = property(lambda self: self._mantissa.ndim)
    size = property(lambda self: self._mantissa.size)
    dtype = property(lambda self: dfp16)
    itemsize = property(lambda self: 2)
    nbytes = property(lambda self: self._mantissa.nbytes)
    weak_type = property(lambda self: False)
    device = property(lambda self: self._mantissa.device)
    sharding = property(lambda self: self._mantissa.sharding)
    committed = property(lambda self: self._mantissa.committed)
    _committed = property(lambda self: self._mantissa.committed)
    is_fully_addressable = property(lambda self: self._mantissa.is_fully_addressable)
    is_fully_replicated = property(lambda self: self._mantissa.is_fully_replicated)


class _Rules:
    """What JAX asks an extended dtype (the protocol of ``dtype._rules``)."""

    allow_conversion = True  # convert_element_type between dfp16 and int16 is the identity on the bits

    @staticmethod
    def physical_element_aval(dtype):
        return _compat.ShapedArray((), np.dtype("int16"))

    @staticmethod
    def tangent_dtype(dtype):
        return np.dtype("float32")

    @staticmethod
    def full(shape, fill_value, dtype):
        return jax.lax.convert_element_type(jnp.full(shape, fill_value, jnp.int16), dtype)

    @staticmethod
    def zero(dtype):
        return jax.lax.convert_element_type(jnp.zeros((), jnp.int16), dtype)

    @staticmethod
    def physical_const(value):
        return value._mantissa

    @staticmethod
    def result_handler(sticky_device, aval):
        def handler(_, buffer):
            buffer.aval = _compat.ShapedArray(buffer.shape, buffer.dtype)
            return DFP16Array(buffer)

        return handler

    # An element is one int16, so an array and its physical form have the same shape and the same sharding.

    @staticmethod
    def global_sharded_result_handler(aval, sharding, committed):
        make = _compat.global_result_handlers[_compat.ShapedArray]
        return make(_compat.physical_aval(aval), sharding, committed).wrap(DFP16Array)

    @staticmethod
    def make_sharded_array(aval, sharding, arrays, committed):
        make = _compat.global_result_handlers[_compat.ShapedArray]
        handler = make(_compat.physical_aval(aval), sharding, committed)
        return DFP16Array(handler([array._mantissa for array in arrays]))


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


def _shard_args(arrays, shardings, layouts, copy_semantics):
    return _compat.shard_args(shardings, layouts, copy_semantics, [x._mantissa for x in arrays])


def _constant(value, aval):
    mantissa = value._mantissa
    return _compat.get_constant_handler(type(mantissa))(mantissa, aval)


_compat.pytype_aval_mappings[DFP16Array] = lambda x: x.aval
_compat.accept_as_value(DFP16Array)
_compat.shard_arg_handlers[DFP16Array] = _shard_args
_compat.register_constant_handler(DFP16Array, _constant)
_compat.dispatch_registry.register_node(  # for jax.device_get
    DFP16Array, lambda x: ((x._mantissa,), None), lambda _, children: DFP16Array(children[0])
)
