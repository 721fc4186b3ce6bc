"""Checks of arguments. All errors read `function: argument must be …, got …`.

Each check returns the argument, converted for further use. A wrong type raises a TypeError, a value out of
range a ValueError.
"""

import math
import operator
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def described(value: Any) -> str:
    """How a message shows a value. An array shows its type, as its numbers may be many or not computed
    yet."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"dtype {value.dtype} and shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def wrong_type(function: str, argument: str, wanted: str, value: Any) -> TypeError:
    """The error for a value of the wrong type."""
    return TypeError(f"{function}: {argument} must be {wanted}, got {described(value)}")


def wrong_value(function: str, argument: str, wanted: str, value: Any) -> ValueError:
    """The error for a value of the right type that is out of range."""
    return ValueError(f"{function}: {argument} must be {wanted}, got {described(value)}")


def instance(function: str, argument: str, value: Any, kinds, wanted: str) -> Any:
    """An instance of one of the classes."""
    if not isinstance(value, kinds):
        raise wrong_type(function, argument, wanted, value)
    return value


def function_of_arrays(function: str, argument: str, value: Any) -> Callable:
    """A callable."""
    if not callable(value):
        raise wrong_type(function, argument, "callable", value)
    return value


def boolean(function: str, argument: str, value: Any) -> bool:
    """True or False; other truthy or falsy values are refused."""
    return instance(function, argument, value, bool, "True or False")


def choice(function: str, argument: str, value: Any, choices: Iterable[str]) -> str:
    """One of several words."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise wrong_value(function, argument, f"one of {', '.join(map(repr, choices))}", value)
    return value


def integer(function: str, argument: str, value: Any, wanted: str = "an integer") -> int:
    """A Python or NumPy integer, or a concrete zero-dimensional array of an integer."""
    if isinstance(value, bool | np.bool_):
        raise wrong_type(function, argument, wanted, value)
    try:
        return operator.index(value)
    except TypeError:  # JAX has subclasses of it for tracers
        raise wrong_type(function, argument, wanted, value) from None


def integers(
    function: str, argument: str, value: Any, wanted: str = "an integer or several"
) -> tuple[int, ...]:
    """An integer or a sequence of integers, as a tuple."""
    if isinstance(value, str | bytes | dict | set) or not isinstance(value, Iterable):
        return (integer(function, argument, value, wanted),)
    if getattr(value, "ndim", 1) != 1:  # an array without axes is iterable for Python
        return (integer(function, argument, value, wanted),)
    try:
        return tuple(integer(function, argument, one, wanted) for one in value)
    except TypeError:
        raise wrong_type(function, argument, wanted, value) from None


def number(function: str, argument: str, value: Any, wanted: str = "a number") -> float:
    """A real number, or a concrete zero-dimensional array of one."""
    is_array = hasattr(value, "dtype")
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    if is_array and not isinstance(value, jax.core.Tracer):
        is_real = np.ndim(value) == 0 and (
            jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
        )
    if not is_real:
        raise wrong_type(function, argument, wanted, value)
    return float(value)


def not_negative(function: str, argument: str, value: Any) -> float:
    """A real number of at least 0."""
    wanted = "a number of at least 0"
    found = number(function, argument, value, wanted)
    if math.isnan(found) or found < 0:
        raise wrong_value(function, argument, wanted, value)
    return found


def axis(function: str, argument: str, value: Any, ndim: int) -> int:
    """An axis of an array of that rank, counted from the front."""
    found = integer(function, argument, value)
    if not -ndim <= found < ndim:
        raise ValueError(f"{function}: {argument} {found} is not one of {ndim} axes")
    return found % ndim


def axes(function: str, argument: str, value: Any, ndim: int) -> tuple[int, ...]:
    """An axis or several different ones, counted from the front, in the order given."""
    found = tuple(axis(function, argument, one, ndim) for one in integers(function, argument, value))
    if len(set(found)) < len(found):
        raise ValueError(f"{function}: {argument} names one twice: {described(value)}")
    return found


def path(function: str, argument: str, value: Any) -> Any:
    """Where to write a file: a path, an open file, or None."""
    if value is not None and not isinstance(value, str | os.PathLike) and not hasattr(value, "write"):
        raise wrong_type(function, argument, "a path or None", value)
    return value


def real_array(function: str, argument: str, value: Any, wanted: str = "a real floating-point array"):
    """An array of real floating-point numbers. A JAX array stays one; anything else becomes a NumPy array."""
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except jax.errors.TracerArrayConversionError:  # tracers in a list
        array = jnp.asarray(value)
    except (TypeError, ValueError):  # a ragged list
        raise wrong_type(function, argument, wanted, value) from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise wrong_type(function, argument, wanted, array if array.ndim else value)
    return array
