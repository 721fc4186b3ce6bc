"""`FrozenArray`: a float32 tensor kept in dynamic fixed point, for programs that read it and do not train it.

It is a pytree of plain arrays and of a *form*, which says how these hold the tensor: `Rows` in the tensor's
own order, `Panels` in the order in which the kernels read the right operand of a matrix product.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.tree_util import GetAttrKey

from dfpjax import _compat
from dfpjax.numbers.format.array import DFPArray
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.explicit import lower_fun
from dfpjax.numbers.format.panels import Panels
from dfpjax.numbers.format.scaling import scale_by_power_of_two

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Mantissas of the tensor's shape, int16, and exponents as a `DFPArray` has them, int32."""

    blocks: Blocks | None
    """The size of blocks that have an exponent each; None for one exponent."""
    bits: int = 16
    """Bits of a mantissa."""

    names = ("mantissa", "exponent")

    def shape_of(self, arrays: tuple[Any, ...]) -> Shape:
        """The tensor's shape."""
        return arrays[0].shape

    def rows_of(self, mantissa: jax.Array, exponent: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mantissas of the tensor's shape, int16, and exponents that broadcast to it, or those of blocks."""
        return mantissa, exponent

    def rows_at(self, index: jax.Array, mantissa: jax.Array, exponent: jax.Array) -> jax.Array:
        """The rows of a matrix at indices within it, as float32[*index.shape, columns of the matrix]."""
        own = mantissa[index]
        if self.blocks is not None:
            _, columns = self.blocks.size(mantissa.shape)
            exponent = exponent.reshape(mantissa.shape[0], -1)[index]
            exponent = jnp.repeat(exponent, columns, -1)[..., : mantissa.shape[1]]
        return scale_by_power_of_two(own.astype(jnp.float32), exponent)

    def values_of(self, mantissa: jax.Array, exponent: jax.Array) -> jax.Array:
        """The tensor as float32."""
        exponent = DFPArray.of(mantissa, exponent, self.blocks).exponent
        return scale_by_power_of_two(mantissa.astype(jnp.float32), exponent)


Form = Rows | Panels


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, init=False, eq=False, repr=False)
class FrozenArray:
    """A float32 tensor kept in dynamic fixed point. `dfpjax.freeze` makes it, `dfpjax.thaw` gives float32
    back.

    A function transformed by `dfpjax.mixed_precision` takes it in place of the float32 tensor: a product
    reads it as it is, everything else sees its values. Elsewhere `jnp.asarray` and `numpy.asarray` give the
    values. It is a pytree of integer arrays, so it has no gradient.
    """

    arrays: tuple[Any, ...]
    form: Form

    def __init__(self, arrays, form: Form):
        object.__setattr__(self, "arrays", tuple(arrays))
        object.__setattr__(self, "form", form)

    def tree_flatten_with_keys(self):
        keys = map(GetAttrKey, self.form.names)
        return tuple(zip(keys, self.arrays, strict=True)), self.form

    def tree_flatten(self):
        return self.arrays, self.form

    @classmethod
    def tree_unflatten(cls, form, arrays):
        return cls(arrays, form)

    @property
    def shape(self) -> Shape:
        """The tensor's shape."""
        return self.form.shape_of(self.arrays)

    dtype = np.dtype("float32")  # of the tensor for which it stands
    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: int(np.prod(self.shape, dtype=np.int64)))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(x.size * x.dtype.itemsize for x in self.arrays)

    def dequantize(self) -> jax.Array:
        """The tensor as float32."""
        return thaw_p.bind(*self.arrays, form=self.form)

    __jax_array__ = dequantize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.dequantize(), dtype)

    def __repr__(self) -> str:
        return f"FrozenArray(float32{list(self.shape)} in {self.form})"


def is_frozen(leaf: Any) -> bool:
    """Whether it is a `FrozenArray`."""
    return isinstance(leaf, FrozenArray)


# --- the float32 tensor of a frozen one -----------------------------------------------------------

thaw_p = Primitive("dfp_thaw")
"""The float32 tensor that the arrays of a form stand for."""


def _values(*arrays, form: Form) -> jax.Array:
    return form.values_of(*arrays)


@thaw_p.def_abstract_eval
def _abstract_eval(*arrays, form: Form):
    return _compat.result_aval(arrays[0], form.shape_of(arrays), np.dtype("float32"))


def _batch(arrays, dims, *, form: Form):
    return jax.vmap(functools.partial(_values, form=form), in_axes=tuple(dims))(*arrays), 0


def _jvp(arrays, tangents, *, form: Form):
    out = thaw_p.bind(*arrays, form=form)
    return out, ad.Zero(jax.typeof(out).to_tangent_aval())


thaw_p.def_impl(functools.partial(_compat.apply_primitive, thaw_p))
mlir.register_lowering(thaw_p, lower_fun(_values, multiple_results=False))
batching.primitive_batchers[thaw_p] = _batch
ad.primitive_jvps[thaw_p] = _jvp
