"""The operands of the functions on tensors in dynamic fixed point, and the checks they share."""

import jax

from dfpjax.numbers.format.array import DFP32Array, DFPArray
from dfpjax.numbers.format.conversion import rounding_seed
from dfpjax.numbers.format.quantizer import Quantizer

Tensor = DFPArray | DFP32Array


def check_operand(function: str, argument: str, x, kinds=Tensor) -> None:
    """Raise a TypeError that says what to do about an operand of the wrong type."""
    if isinstance(x, kinds):
        return
    if isinstance(x, DFP32Array):
        raise TypeError(
            f"{function}: {argument} must be a DFPArray, got a DFP32Array; bring it to DFP-16 first: "
            "dfpjax.numpy.down_convert(x)"
        )
    found = f"dtype {x.dtype}" if hasattr(x, "dtype") else type(x).__name__
    raise TypeError(
        f"{function}: {argument} must be a DFPArray{'' if kinds is DFPArray else ' or DFP32Array'}, got "
        f"{found}; quantize it first: dfpjax.quantize(x)"
    )


def check_rounding(function: str, rounding: str, seed, bits: int = 16) -> jax.Array | None:
    """The seed as uint32, if the arguments fit together."""
    Quantizer(bits=bits, rounding=rounding)  # has the checks
    return rounding_seed(function, rounding, seed)


def common_kind(*tensors: Tensor) -> type:
    """DFPArray if all tensors are, otherwise DFP32Array."""
    return DFPArray if all(isinstance(x, DFPArray) for x in tensors) else DFP32Array
