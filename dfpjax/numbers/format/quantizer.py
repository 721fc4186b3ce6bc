"""Configuration: how operands of an operation are quantized."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from dfpjax import _checks
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.rounding import Rounding

Granularity = Literal["tensor", "channel", "block"]


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
    operation's output also has, such as a kernel's output features, an input's examples, or groups. `block`:
    one exponent for each block of the tensor's memory layout."""

    blocks: Blocks = Blocks()  # noqa: RUF009 (frozen)
    """The size of blocks. It counts only if the granularity is `block`."""

    def __post_init__(self):
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be an integer from 2 to 16, got {self.bits!r}")
        for name, choices in (("rounding", get_args(Rounding)), ("granularity", get_args(Granularity))):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {_checks.described(value)}"
                )
        if not isinstance(self.blocks, Blocks):
            raise ValueError(
                "blocks must be a Blocks, such as Blocks(rows=8, columns=32), "
                f"got {_checks.described(self.blocks)}"
            )


@dataclass(frozen=True, kw_only=True)
class Quantizers:
    """The quantizers of an operation's operands. `cotangent` quantizes the cotangent of its output.

    Raises:
        ValueError: if one has the granularity `block` and another `channel`.
    """

    lhs: Quantizer = Quantizer()
    rhs: Quantizer = Quantizer()
    cotangent: Quantizer = Quantizer()

    def __post_init__(self):
        roles = {}  # of each granularity
        for field in fields(self):
            roles.setdefault(getattr(self, field.name).granularity, []).append(field.name)
        if "block" in roles and "channel" in roles:
            raise ValueError(
                'granularity "block" and "channel" do not go together in one operation, '
                f'got "block" for {" and ".join(roles["block"])}, "channel" for '
                f'{" and ".join(roles["channel"])}; choose one of the two for all roles that are not "tensor"'
            )

    @property
    def have_blocks(self) -> bool:
        """Whether the granularity of one of them is `block`."""
        return any(getattr(self, field.name).granularity == "block" for field in fields(self))
