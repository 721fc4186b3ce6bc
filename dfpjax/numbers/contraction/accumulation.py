"""Accumulation: how products are summed, and what keeps the sums inside int32 (Das et al., 2018, §4.2).

"certified", the default, sums exact chains in int32 whose length is chosen for each tile of the output so
that no data can make them overflow. `FixedChain` is the paper's own way: chains of one length, which typical
data do not make overflow.
"""

from dataclasses import dataclass, replace
from typing import Literal

from dfpjax import _checks
from dfpjax.numbers.contraction.plan import CHAINS
from dfpjax.numbers.format.quantizer import Quantizer, Quantizers

MOST_SHIFTED = 14
"""The largest pre-shift: it leaves 2 of a mantissa's 16 bits."""


@dataclass(frozen=True)
class FixedChain:
    """Exact sums of `length` consecutive products, saturated to int32 where each ends.

    Chains follow the plan's order of the contracted index and do not cross its blocks of 256. Their sums are
    converted to float32 and added in ascending order, as certified ones are. How many were saturated can be
    read: `dfpjax.operations.saturated_chains`.

    A chain cannot overflow where (Pa − 1) + (Pb − 1) + ceil(log2 length) ≤ 31, with the operands' bits Pa and
    Pb after the shift. Longer ones are refused unless `saturate` says that they are meant.

    Raises:
        ValueError: if a field is out of range.
    """

    length: int
    """Products in a chain: a power of two from 2 to 256."""
    pre_shift: int = 0
    """So many bits fewer for the mantissas of all operands, cotangents included. They are quantized to that
    number of bits, so a value is rounded once, not once more by a shift."""
    saturate: bool = False
    """Allow chains that the bound rules out: the data's statistics are good enough."""

    def __post_init__(self):
        if not isinstance(self.length, int) or isinstance(self.length, bool) or self.length not in CHAINS:
            lengths = ", ".join(map(str, sorted(CHAINS)))
            raise ValueError(f"FixedChain: length must be one of {lengths}, got {self.length!r}")
        shift = self.pre_shift
        if not isinstance(shift, int) or isinstance(shift, bool) or shift < 0:
            raise ValueError(f"FixedChain: pre_shift must be an integer from 0 on, got {shift!r}")
        if shift > MOST_SHIFTED:
            left = max(16 - shift, 0)
            raise ValueError(
                f"FixedChain: pre_shift={shift} leaves {left} of 16 bits; at least 2 must remain"
            )
        if not isinstance(self.saturate, bool):
            raise ValueError(f"FixedChain: saturate must be True or False, got {self.saturate!r}")


Accumulation = Literal["certified"] | FixedChain
"""How the products of an operation are summed."""


def is_bounded(length: int, bits_a: int, bits_b: int) -> bool:
    """Whether no chain of that length can overflow int32, whatever the mantissas of so many bits are."""
    return (bits_a - 1) + (bits_b - 1) + _log2(length) <= 31


def check(accumulation: Accumulation, bits_a: int, bits_b: int) -> None:
    """Refuse an accumulation that is not fit for operands of so many bits.

    Arguments:
        accumulation: "certified", which is fit for all, or a `FixedChain`.
        bits_a, bits_b: bits of the operands' mantissas, before any shift.

    Raises:
        ValueError: if it is neither, leaves an operand less than 2 bits, or can overflow though its
            `saturate` is False.
    """
    if isinstance(accumulation, str) and accumulation == "certified":
        return
    if not isinstance(accumulation, FixedChain):
        found = _checks.described(accumulation)
        raise ValueError(f'accumulation must be "certified" or a FixedChain, got {found}')
    length, shift = accumulation.length, accumulation.pre_shift
    for bits in (bits_a, bits_b):
        if bits - shift < 2:
            raise ValueError(
                f"accumulation: pre_shift={shift} leaves {bits - shift} of {bits} bits; "
                "at least 2 must remain"
            )
    bits_a, bits_b = bits_a - shift, bits_b - shift
    if is_bounded(length, bits_a, bits_b) or accumulation.saturate:
        return
    longest = next(chain for chain in CHAINS if is_bounded(chain, bits_a, bits_b))
    raise ValueError(
        f"accumulation: chains of {length} products of {bits_a}-bit and {bits_b}-bit mantissas can overflow "
        f"int32: the bound ({bits_a} − 1) + ({bits_b} − 1) + log2({length}) = "
        f"{bits_a + bits_b - 2 + _log2(length)} ≤ 31 does not hold. The longest chain that it allows is "
        f"{longest}; pass saturate=True if the data's statistics are good enough"
    )


def check_roles(accumulation: Accumulation, quantizers: Quantizers) -> None:
    """`check` for an operation's operands and for those of its two gradients."""
    lhs, rhs, cotangent = (q.bits for q in (quantizers.lhs, quantizers.rhs, quantizers.cotangent))
    for bits in ((lhs, rhs), (cotangent, rhs), (cotangent, lhs)):
        check(accumulation, *bits)


def pre_shifted(quantizers: Quantizers, accumulation: Accumulation) -> Quantizers:
    """The quantizers with the bits that the products take."""
    if accumulation == "certified":
        return quantizers

    def shifted(quantizer: Quantizer) -> Quantizer:
        return replace(quantizer, bits=quantizer.bits - accumulation.pre_shift)

    return Quantizers(
        lhs=shifted(quantizers.lhs), rhs=shifted(quantizers.rhs), cotangent=shifted(quantizers.cotangent)
    )


def _log2(length: int) -> int:
    """Rounded up."""
    return (length - 1).bit_length()
