"""References for integer arithmetic in dynamic fixed point: Python integers and rationals, without dfpjax."""

from fractions import Fraction

import numpy as np

ROUNDINGS = ("nearest", "biased", "truncate")


def round_shift(m: int, shift: int, rounding: str) -> int:
    """m · 2^−shift with its magnitude rounded."""
    kept, dropped = divmod(Fraction(abs(m), 2**shift), 1)
    if rounding == "nearest":
        up = dropped > Fraction(1, 2) or (dropped == Fraction(1, 2) and kept % 2 == 1)
    elif rounding == "biased":
        up = dropped >= Fraction(1, 4)
    else:
        up = False
    return int(kept + up) * (-1 if m < 0 else 1)


def down_convert(m, exponent: int, bits: int, rounding: str = "nearest"):
    """(mantissas, exponent) of a tensor of Python integers after conversion to `bits` bits."""
    m = np.asarray(m, object)
    length = max((abs(int(v)).bit_length() for v in m.flat), default=0)
    shift = max(0, length - (bits - 1))
    limit = 2 ** (bits - 1) - 1
    rounded = [max(-limit, min(limit, round_shift(int(v), shift, rounding))) for v in m.flat]
    return np.array(rounded, np.int64).reshape(m.shape), exponent + shift


def add(ma, ea: int, mb, eb: int, bits: int, rounding: str = "nearest"):
    """(mantissas, exponent) of the sum of two tensors. An all-zero tensor does not affect the exponent."""
    ma, mb = np.broadcast_arrays(np.asarray(ma, object), np.asarray(mb, object))
    live = [e for m, e in ((ma, ea), (mb, eb)) if any(v != 0 for v in m.flat)]
    exponent = max(live, default=-149 - (bits - 2))
    sums = [
        sum(round_shift(int(m), min(max(exponent - e, 0), 400), rounding) for m, e in ((x, ea), (y, eb)))
        for x, y in zip(ma.flat, mb.flat, strict=True)
    ]
    return down_convert(np.array(sums, object).reshape(ma.shape), exponent, bits, rounding)


def to_float32(m, exponent):
    """m · 2^exponent rounded once, for |m| < 2^53."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(np.asarray(m, np.float64), exponent).astype(np.float32)
