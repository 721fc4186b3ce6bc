"""The operand types of functions on tensors in dynamic fixed point, and the checks that they share."""

import jax
import jax.numpy as jnp

from dfpjax.numbers.format.array import DFP32Array, DFPArray
from dfpjax.numbers.format.conversion import checked_quantizer, rounding_seed

Tensor = DFPArray | DFP32Array


def check_operand(function: str, argument: str, x, kinds=Tensor) -> None:
    """Raise a TypeError that says what to do if an operand has the wrong type."""
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


def check_operands(function: str, kinds=Tensor, **operands) -> None:
    """`check_operand` for each operand, and `check_shapes`."""
    for argument, x in operands.items():
        check_operand(function, argument, x, kinds)
    check_shapes(function, **operands)


def check_shapes(function: str, **operands) -> None:
    """Raise a ValueError unless the operands' shapes broadcast."""
    shapes = [x.shape for x in operands.values()]
    try:
        jnp.broadcast_shapes(*shapes)
    except ValueError:
        names, found = " and ".join(operands), " and ".join(map(str, shapes))
        raise ValueError(f"{function}: {names} must have shapes that broadcast, got {found}") from None


def check_rounding(function: str, rounding: str, seed, bits: int = 16) -> jax.Array | None:
    """Check `rounding`, `seed` and `bits`, and return the seed as uint32."""
    checked_quantizer(function, bits, rounding)
    return rounding_seed(function, rounding, seed)


def common_kind(*tensors: Tensor) -> type:
    """DFPArray if all tensors are, otherwise DFP32Array."""
    return DFPArray if all(isinstance(x, DFPArray) for x in tensors) else DFP32Array
