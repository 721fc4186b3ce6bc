"""The operators and methods of `DFPArray` and `DFP32Array`, which are functions of `dfpjax.numpy`.

These functions need the array classes, and the classes need the functions as methods. So `format.array`
defines the classes without methods, and this module adds them.
"""

import jax
import numpy as np

from dfpjax.numbers.arithmetic import elementwise, indexing, matmul, structure
from dfpjax.numbers.arithmetic.comparison import compared
from dfpjax.numbers.format.array import DynamicFixedPoint


def _method(function):
    def method(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    method.__doc__ = f"`dfpjax.numpy.{function.__name__}`."
    return method


def _binary(function):
    def method(self, other):
        return function(self, other)

    return method


def _reflected(function):
    """other ∘ self, where `other` is not a tensor in dynamic fixed point. The function raises the error that
    says what to do."""

    def method(self, other):
        return function(other, self)

    return method


def _variadic(function):
    """x.name(2, 3) and x.name((2, 3)) are the same call, as in NumPy."""

    def method(self, *args):
        (args,) = args if len(args) == 1 and isinstance(args[0], tuple | list | None) else (args,)
        return function(self, args or None if function is structure.transpose else args)

    method.__doc__ = f"`dfpjax.numpy.{function.__name__}`."
    return method


def _comparison(function: str, symbol: str):
    """An elementwise comparison operator; see `dfpjax.numbers.arithmetic.comparison`."""

    def method(self, other):
        if isinstance(other, list | tuple | set | dict):
            raise TypeError(
                f"{function}: b must be a DFPArray, an array or a number, got {type(other).__name__} "
                f"(for {symbol} with a {type(self).__name__}); make it an array first"
            )
        if not isinstance(
            other, DynamicFixedPoint | jax.Array | np.ndarray | np.generic | int | float | complex
        ):
            return NotImplemented
        return compared(function, self, other)

    method.__doc__ = f"a {symbol} b: exact, as bools of the broadcast shape."
    return method


def _length(self) -> int:
    if not self.shape:
        raise TypeError(f"len() of a {type(self).__name__} without axes")
    return self.shape[0]


def _iterator(self):
    if not self.shape:
        raise TypeError(f"iteration over a {type(self).__name__} without axes")
    return (self[position] for position in range(len(self)))


def _contains(self, value) -> bool:
    return bool((self == value).any())


def _single_value(self, wanted: str) -> float:
    if self.size != 1:
        raise ValueError(
            f"a {type(self).__name__} of shape {self.shape} has no single {wanted}; compare its elements and "
            "use .any() or .all(), or take one of them"
        )
    return np.asarray(self, np.float64).item()


def _truth(self) -> bool:
    return bool(_single_value(self, "truth value"))


def _float(self) -> float:
    return _single_value(self, "value")


def _int(self) -> int:
    return int(_single_value(self, "value"))


def _item(self) -> float:
    """The value of a tensor with one element, exactly."""
    return _single_value(self, "value")


def _tolist(self) -> list | float:
    """The values as Python floats, in nested lists with one level per axis."""
    return np.asarray(self, np.float64).tolist()


_METHODS = {
    "__array_ufunc__": None,  # NumPy leaves `array + self` to __radd__
    "__add__": _binary(elementwise.add),
    "__sub__": _binary(elementwise.subtract),
    "__mul__": _binary(elementwise.multiply),
    "__matmul__": _binary(matmul.matmul),
    "__radd__": _reflected(elementwise.add),
    "__rsub__": _reflected(elementwise.subtract),
    "__rmul__": _reflected(elementwise.multiply),
    "__rmatmul__": _reflected(matmul.matmul),
    "__neg__": _method(elementwise.negative),
    "__abs__": _method(elementwise.absolute),
    "__getitem__": _method(indexing.index),
    "__eq__": _comparison("equal", "=="),
    "__ne__": _comparison("not_equal", "!="),
    "__lt__": _comparison("less", "<"),
    "__le__": _comparison("less_equal", "<="),
    "__gt__": _comparison("greater", ">"),
    "__ge__": _comparison("greater_equal", ">="),
    "__hash__": None,  # arrays that compare element by element are not hashable
    "__len__": _length,
    "__iter__": _iterator,
    "__contains__": _contains,
    "__bool__": _truth,
    "__float__": _float,
    "__int__": _int,
    "item": _item,
    "tolist": _tolist,
    "reshape": _variadic(structure.reshape),
    "transpose": _variadic(structure.transpose),
    "ravel": _method(structure.ravel),
    "squeeze": _method(structure.squeeze),
    "swapaxes": _method(structure.swapaxes),
    "T": property(structure.transpose),
}

for _name, _value in _METHODS.items():
    setattr(DynamicFixedPoint, _name, _value)
