"""How a tensor in dynamic fixed point is printed."""

import jax
import numpy as np

from dfpjax import _compat
from dfpjax.numbers.format.dtype import MantissaArray, MantissaDType
from dfpjax.numbers.format.scaling import NONFINITE_THRESHOLD


def describe(array) -> str:
    """The values as floats and the exponent; the types of both where there are no numbers (tracing, deleted
    arrays), and what is there where JAX holds something else in this pytree (a gradient)."""
    name = type(array).__name__
    values, exponent = array.values, array.exponent
    if not (_is_readable(values) and _is_readable(exponent)):
        return f"{name}({_abstract(values)}, exponent={_abstract(exponent)})"
    mantissa, exponent = np.asarray(values), np.asarray(exponent)
    with np.errstate(over="ignore", under="ignore"):
        floats = exact_values(mantissa, exponent).astype(np.float32)
    numbers = np.array2string(floats, separator=", ", prefix=f"{name}(")
    if exponent.ndim == 0:
        exponents = "nonfinite" if exponent >= NONFINITE_THRESHOLD else str(exponent)
    else:
        exponents = " ".join(np.array2string(exponent, separator=", ").split())
    shape = f"shape={mantissa.shape}, " if mantissa.size == 0 else ""
    return f"{name}({numbers}, {shape}exponent={exponents})"


def exact_values(mantissa: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """mantissa · 2^exponent in float64, which holds every mantissa; NaN where it is not finite."""
    with np.errstate(over="ignore", under="ignore"):
        values = np.ldexp(mantissa.astype(np.float64), exponent)
    return np.where(exponent >= NONFINITE_THRESHOLD, np.nan, values)


def _is_readable(x) -> bool:
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
        return False
    is_integer = isinstance(x, MantissaArray) or x.dtype == np.int32
    return is_integer and not x.is_deleted() and x.is_fully_addressable


def _abstract(x) -> str:
    """dfp16[2,3] for an array of integers; the object itself for anything else."""
    dtype = getattr(x, "dtype", None)
    if isinstance(dtype, MantissaDType) or dtype == np.int32:
        return _compat.ShapedArray(x.shape, dtype).str_short(short_dtypes=False)
    return repr(x)
