"""The operators and methods of `DFPArray` and `DFP32Array`, all of them functions of `dfpjax.numpy`.

The functions make the arrays that have these methods. So the arrays are defined without them, and get them
here, above both.
"""

from dfpjax.numbers.arithmetic import elementwise, matmul, structure
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
    """x ∘ self for an x that is no tensor in dynamic fixed point; the function says what to do about it."""

    def method(self, other):
        return function(other, self)

    return method


def _variadic(function):
    """x.name(2, 3) and x.name((2, 3)) alike, as NumPy has it."""

    def method(self, *args):
        (args,) = args if len(args) == 1 and isinstance(args[0], tuple | list | None) else (args,)
        return function(self, args or None if function is structure.transpose else args)

    method.__doc__ = f"`dfpjax.numpy.{function.__name__}`."
    return method


def _length(self) -> int:
    if not self.shape:
        raise TypeError(f"len() of a {type(self).__name__} without axes")
    return self.shape[0]


def _iterator(self):
    return (self[position] for position in range(len(self)))


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
    "__getitem__": _method(structure.index),
    "__len__": _length,
    "__iter__": _iterator,
    "reshape": _variadic(structure.reshape),
    "transpose": _variadic(structure.transpose),
    "ravel": _method(structure.ravel),
    "squeeze": _method(structure.squeeze),
    "swapaxes": _method(structure.swapaxes),
    "T": property(structure.transpose),
}

for _name, _value in _METHODS.items():
    setattr(DynamicFixedPoint, _name, _value)
