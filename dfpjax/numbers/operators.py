"""The operators and methods of `DFPArray` and `DFP32Array`, all of them functions of `dfpjax.numpy`."""


def _arithmetic(name: str):
    def method(self, *others):
        # Imported here because the functions make the arrays that have these methods.
        from dfpjax.numbers import arithmetic

        return getattr(arithmetic, name)(self, *others)

    method.__doc__ = f"`dfpjax.numpy.{name}`."
    return method


def _reflected(name: str):
    """x ∘ self for an x that is no tensor in dynamic fixed point; the function says what to do about it."""

    def method(self, other):
        from dfpjax.numbers import arithmetic

        return getattr(arithmetic, name)(other, self)

    return method


def _structural(name: str):
    def method(self, *args, **kwargs):
        from dfpjax.numbers import structure

        return getattr(structure, name)(self, *args, **kwargs)

    method.__doc__ = f"`dfpjax.numpy.{name}`."
    return method


def _variadic(name: str):
    """x.name(2, 3) and x.name((2, 3)) alike, as NumPy has it."""

    def method(self, *args):
        from dfpjax.numbers import structure

        (args,) = args if len(args) == 1 and isinstance(args[0], tuple | list | None) else (args,)
        return getattr(structure, name)(self, args or None if name == "transpose" else args)

    method.__doc__ = f"`dfpjax.numpy.{name}`."
    return method


class Operators:
    """Operators of a tensor in dynamic fixed point."""

    __array_ufunc__ = None  # NumPy leaves `array + self` to __radd__

    __add__ = _arithmetic("add")
    __sub__ = _arithmetic("subtract")
    __mul__ = _arithmetic("multiply")
    __matmul__ = _arithmetic("matmul")
    __neg__ = _arithmetic("negative")
    __abs__ = _arithmetic("absolute")
    __radd__ = _reflected("add")
    __rsub__ = _reflected("subtract")
    __rmul__ = _reflected("multiply")
    __rmatmul__ = _reflected("matmul")

    reshape = _variadic("reshape")
    transpose = _variadic("transpose")
    ravel = _structural("ravel")
    squeeze = _structural("squeeze")
    swapaxes = _structural("swapaxes")
    __getitem__ = _structural("index")
    T = property(lambda self: self.transpose())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"len() of a {type(self).__name__} without axes")
        return self.shape[0]

    def __iter__(self):
        return (self[position] for position in range(len(self)))
