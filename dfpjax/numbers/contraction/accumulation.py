"""Accumulation: how products are summed, and what keeps the sums inside int32 (Das et al., 2018, §4.2).

"certified", the default, sums chains of products exactly in int32. Each tile of the output gets a chain
length with which no data can overflow. `FixedChain` is the paper's method: all chains have the same length,
and typical data do not overflow.
"""

from dataclasses import dataclass, replace
from typing import Literal

from dfpjax import _checks
from dfpjax.numbers.contraction.plan import CHAINS
from dfpjax.numbers.format.quantizer import Quantizer, Quantizers

MOST_SHIFTED = 14
"""The largest pre-shift, which leaves 2 of a mantissa's 16 bits."""


@dataclass(frozen=True)
class FixedChain:
    """Exact sums of `length` consecutive products, saturated to int32 at the end of each chain.

    Chains follow the plan's order of the contracted index and do not cross its blocks of 256. Their sums are
    converted to float32 and added in ascending order, like those of certified chains.
    `dfpjax.operations.saturated_chains` counts the chains that were saturated.

    A chain cannot overflow if (Pa − 1) + (Pb − 1) + ceil(log2 length) ≤ 31, where Pa and Pb are the operands'
    bits after the shift. Longer chains are an error unless `saturate` is True.

    Raises:
        ValueError: if a field is out of range.
    """

    length: int
    """Products in a chain: a power of two from 2 to 256. Chains of operands in blocks have at most 32."""
    pre_shift: int = 0
    """Bits to take away from the mantissas of all operands, cotangents included. Operands are quantized
    directly to the fewer bits, so a value is rounded once; no shift rounds it again."""
    saturate: bool = False
    """Allow chains that the bound rules out, because typical data do not overflow them."""

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
    """Whether no chain of `length` products can overflow int32, for any mantissas of these bits."""
    return (bits_a - 1) + (bits_b - 1) + _log2(length) <= 31


def check(accumulation: Accumulation, bits_a: int, bits_b: int) -> None:
    """Refuse an accumulation that does not suit operands of these bits.

    Arguments:
        accumulation: "certified", which suits all operands, or a `FixedChain`.
        bits_a, bits_b: bits of the operands' mantissas, before any shift.

    Raises:
        ValueError: if `accumulation` is neither, if it leaves an operand fewer than 2 bits, or if its chains
            can overflow and its `saturate` is False.
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
    """`check` for the operands of an operation and of its two gradients."""
    lhs, rhs, cotangent = (q.bits for q in (quantizers.lhs, quantizers.rhs, quantizers.cotangent))
    for bits in ((lhs, rhs), (cotangent, rhs), (cotangent, lhs)):
        check(accumulation, *bits)


def pre_shifted(quantizers: Quantizers, accumulation: Accumulation) -> Quantizers:
    """The quantizers with the accumulation's pre-shift subtracted from their bits."""
    if accumulation == "certified":
        return quantizers

    def shifted(quantizer: Quantizer) -> Quantizer:
        return replace(quantizer, bits=quantizer.bits - accumulation.pre_shift)

    return Quantizers(
        lhs=shifted(quantizers.lhs), rhs=shifted(quantizers.rhs), cotangent=shifted(quantizers.cotangent)
    )


def _log2(length: int) -> int:
    """log2 rounded up."""
    return (length - 1).bit_length()
