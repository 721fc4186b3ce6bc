"""The cost rule: which operations are too small, or too skinny, to gain from dynamic fixed point.

It looks at an operation's shapes and at nothing else. Its decision changes the last bits of a program's
results, and those must not depend on the machine or its load. The shapes are those that the transform sees:
of the whole batch in `mixed_precision(vmap(f))`, of one example in `vmap(mixed_precision(f))`. So the latter
decides as a loop over the examples does, and DFP16 gives the loop's results bit for bit.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["dot product", "batched dot product", "convolution", "grouped convolution"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one run of an operation does."""

    kind: Kind

    macs: int
    """Multiply-accumulate operations, of the whole batch."""

    elements: int
    """Elements of the operands, which are read and quantized, and of the result, which is written."""

    phases: int = 1
    """Contractions of one kernel call: a transposed convolution has one for each phase of its stride."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The least work for which dynamic fixed point gains."""

    macs: int
    """With fewer, a kernel call costs more than it saves."""

    macs_per_element: int
    """With fewer, quantizing the operands costs more than the faster multiplication saves."""


# Calibrated by `python -m benchmarks.cost_rule` on four cores of a Zen 4 with AVX-512 VNNI. It times a sweep
# of shapes, alone and with their gradients, each with the quantization of both operands. For dot products,
# DFP16 takes no longer than float32 with gradients, and at most 20 % longer without them. The other
# thresholds lose least against an oracle that picks the faster precision for each shape.
LEAST: dict[Kind, Threshold] = {
    # XLA's float32 dot products run near the machine's peak.
    "dot product": Threshold(macs=16_000_000, macs_per_element=50),
    # Its batched dot products run at a sixth of the peak.
    "batched dot product": Threshold(macs=20_000_000, macs_per_element=16),
    # Some of its convolutions run near the peak, others at a hundredth of it.
    "convolution": Threshold(macs=13_000_000, macs_per_element=8),
    # It has no fast code for groups.
    "grouped convolution": Threshold(macs=20_000, macs_per_element=4),
}


PHASES_OF_A_CALL = 8
"""So many phases cost what a kernel call costs. With 128 of them, 0.3 million MACs each, DFP16 takes nine
times float32's time; with 8, 28 million MACs each, a quarter of it."""


def objection(work: Work) -> str | None:
    """Why an operation does not gain, or None if it does."""
    least = LEAST[work.kind]
    if work.macs < least.macs:
        return f"float32: {_readable(work.macs)}, below {_readable(least.macs)}"
    if work.macs * PHASES_OF_A_CALL < least.macs * work.phases:
        each = f"{_readable(work.macs // work.phases)} in each of {work.phases} phases of the stride"
        return f"float32: {each}, below {_readable(least.macs // PHASES_OF_A_CALL)}"
    if work.macs < least.macs_per_element * work.elements:
        intensity = _three_digits(work.macs / work.elements)
        return f"float32: {intensity} MACs per element, below {least.macs_per_element}"
    return None


def _readable(macs: int) -> str:
    """A count of MACs with a prefix: `3.45 kMAC`."""
    thousands = min((len(str(macs)) - 1) // 3, 3)
    return f"{_three_digits(macs / 1000**thousands)} {('', 'k', 'M', 'G')[thousands]}MAC"


def _three_digits(value: float) -> str:
    """A number truncated to three digits: a value below a threshold must not round up to it."""
    whole, fraction = f"{value:.9f}".split(".")
    return f"{whole}.{fraction[: max(3 - len(whole), 0)].rstrip('0')}".rstrip(".")
