"""How the operands of an operation are brought to dynamic fixed point: the configuration."""

from dataclasses import dataclass
from typing import Literal, get_args

from dfpjax.numbers.format.rounding import Rounding

Granularity = Literal["tensor", "channel"]


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """How one operand of an operation is brought to dynamic fixed point."""

    bits: int = 16
    """Bits of a mantissa, its sign included: 2 to 16."""

    rounding: Rounding = "nearest"
    """`nearest` (ties to even), `stochastic`, `biased` or `truncate`; all act on magnitudes."""

    granularity: Granularity = "tensor"
    """`tensor`: one exponent. `channel`: one for each slice along the axes that the operation's output has
    too, such as a kernel's output feature, an input's example, or a group."""

    def __post_init__(self):
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be an integer from 2 to 16, got {self.bits!r}")
        if self.rounding not in get_args(Rounding):
            raise ValueError(
                f"rounding must be one of {', '.join(get_args(Rounding))}, got {self.rounding!r}"
            )
        if self.granularity not in get_args(Granularity):
            raise ValueError(
                f"granularity must be one of {', '.join(get_args(Granularity))}, got {self.granularity!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Quantizers:
    """The quantizers of an operation's operands: `cotangent` serves the gradients that come back to it."""

    lhs: Quantizer = Quantizer()
    rhs: Quantizer = Quantizer()
    cotangent: Quantizer = Quantizer()
