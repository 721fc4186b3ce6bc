"""The printed form of tensors in dynamic fixed point."""

import jax
import numpy as np

from dfpjax import _compat
from dfpjax.numbers.format.dtype import MantissaArray, MantissaDType
from dfpjax.numbers.format.scaling import NONFINITE_THRESHOLD


def describe(array) -> str:
    """A tensor's `repr`: its values as floats, and its exponent or that of each block.

    Without readable numbers (under a trace, or after deletion) it shows the types of values and exponent. If
    JAX has put other objects into the pytree (such as a gradient), it shows them.
    """
    name = type(array).__name__
    values, exponent = array.values, array.exponent if array.blocks is None else array.block_exponent
    blocks = "" if array.blocks is None else f", blocks={array.blocks}"
    if not (_is_readable(values) and _is_readable(exponent)):
        return f"{name}({_abstract(values)}, exponent={_abstract(exponent)}{blocks})"
    exponent = np.asarray(exponent)
    numbers = np.array2string(np.asarray(array), separator=", ", prefix=f"{name}(")
    if exponent.ndim == 0:
        exponents = "nonfinite" if exponent >= NONFINITE_THRESHOLD else str(exponent)
    else:
        exponents = " ".join(np.array2string(exponent, separator=", ").split())
    shape = f"shape={array.shape}, " if array.size == 0 else ""
    return f"{name}({numbers}, {shape}exponent={exponents}{blocks})"


def exact_values(mantissa: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """mantissa · 2^exponent in float64, which represents every mantissa exactly. A tensor that is not finite
    gives NaN."""
    with np.errstate(over="ignore", under="ignore"):
        values = np.ldexp(mantissa.astype(np.float64), exponent)
    return np.where(exponent >= NONFINITE_THRESHOLD, np.nan, values)


def _is_readable(x) -> bool:
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
        return False
    is_integer = isinstance(x, MantissaArray) or x.dtype == np.int32
    return is_integer and not x.is_deleted() and x.is_fully_addressable


def _abstract(x) -> str:
    """The type, such as dfp16[2,3], of mantissas or an int32 array; the `repr` of anything else."""
    dtype = getattr(x, "dtype", None)
    if isinstance(dtype, MantissaDType) or dtype == np.int32:
        return _compat.ShapedArray(x.shape, dtype).str_short(short_dtypes=False)
    return repr(x)
