"""Configuration: how operands of an operation are quantized."""

from dataclasses import dataclass
from typing import Literal, get_args

from dfpjax import _checks
from dfpjax.numbers.format.rounding import Rounding

Granularity = Literal["tensor", "channel"]


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """How one operand of an operation is quantized.

    Raises:
        ValueError: if a field is out of range.
    """

    bits: int = 16
    """Bits of a mantissa, its sign included: 2 to 16."""

    rounding: Rounding = "nearest"
    """`nearest` (ties to even), `stochastic`, `biased` (up if one of the two highest dropped bits is set) or
    `truncate` (toward zero). All modes act on magnitudes."""

    granularity: Granularity = "tensor"
    """`tensor`: one exponent for the tensor. `channel`: one exponent for each slice along the axes that the
    operation's output also has, such as a kernel's output features, an input's examples, or groups."""

    def __post_init__(self):
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be an integer from 2 to 16, got {self.bits!r}")
        for name, choices in (("rounding", get_args(Rounding)), ("granularity", get_args(Granularity))):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {_checks.described(value)}"
                )


@dataclass(frozen=True, kw_only=True)
class Quantizers:
    """The quantizers of an operation's operands. `cotangent` quantizes the cotangent of its output."""

    lhs: Quantizer = Quantizer()
    rhs: Quantizer = Quantizer()
    cotangent: Quantizer = Quantizer()
