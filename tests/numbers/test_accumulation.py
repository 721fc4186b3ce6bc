"""`FixedChain` and its bound."""

import re

import pytest

from dfpjax import FixedChain
from dfpjax.numbers import Quantizer, Quantizers
from dfpjax.numbers.contraction.accumulation import check, check_roles, is_bounded, pre_shifted
from dfpjax.numbers.contraction.plan import CHAINS


@pytest.mark.parametrize("length", CHAINS)
def test_the_bound_is_that_of_the_largest_sum(length):
    for bits_a in range(2, 17):
        for bits_b in range(2, 17):
            largest = length * (2 ** (bits_a - 1) - 1) * (2 ** (bits_b - 1) - 1)
            if is_bounded(length, bits_a, bits_b):
                assert largest < 2**31
            elif bits_a + bits_b > 20:  # with fewer bits, the −1 in each largest mantissa matters
                assert largest >= 2**31


def test_fields_by_position():
    assert FixedChain(256, 2) == FixedChain(length=256, pre_shift=2, saturate=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 100}, "length must be one of 2, 4, 8, 16, 32, 64, 128, 256, got 100"),
        ({"length": 512}, "length must be one of"),
        ({"length": 2.0}, "length must be one of"),
        ({"length": True}, "length must be one of"),
        ({"length": 2, "pre_shift": -1}, "pre_shift must be an integer from 0 on, got -1"),
        ({"length": 256, "pre_shift": 20}, "pre_shift=20 leaves 0 of 16 bits; at least 2"),
        ({"length": 2, "pre_shift": 1.0}, "pre_shift must be an integer"),
        ({"length": 2, "saturate": "yes"}, "saturate must be True or False, got 'yes'"),
    ],
)
def test_bad_fields_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(f"FixedChain: {message}")):
        FixedChain(**arguments)


def test_the_papers_chains_need_a_word_about_the_data():
    with pytest.raises(ValueError) as error:
        check(FixedChain(256, 2), 16, 16)
    assert "256 products of 14-bit and 14-bit mantissas" in str(error.value)
    assert "(14 − 1) + (14 − 1) + log2(256) = 34 ≤ 31" in str(error.value)
    assert "longest chain that it allows is 32; pass saturate=True" in str(error.value)
    check(FixedChain(256, 2, saturate=True), 16, 16)
    check(FixedChain(32, 2), 16, 16)


def test_what_is_allowed_without():
    check("certified", 16, 16)
    check(FixedChain(2), 16, 16)
    check(FixedChain(128), 13, 13)
    with pytest.raises(ValueError, match="longest chain that it allows is 128"):
        check(FixedChain(256), 13, 13)


def test_bits_must_remain():
    with pytest.raises(ValueError, match="pre_shift=15 leaves 1 of 16 bits; at least 2 must remain"):
        check(FixedChain(2, 15), 16, 16)
    check(FixedChain(2, 14), 16, 16)


@pytest.mark.parametrize("accumulation", ["exact", None, 256])
def test_anything_else_is_refused(accumulation):
    message = f'accumulation must be "certified" or a FixedChain, got {accumulation!r}'
    with pytest.raises(ValueError, match=re.escape(message)):
        check(accumulation, 16, 16)


@pytest.mark.parametrize("role", ["lhs", "rhs", "cotangent"])
def test_every_pair_of_roles_is_checked(role):
    narrow = {name: Quantizer(bits=12) for name in ("lhs", "rhs", "cotangent")}
    check_roles(FixedChain(256), Quantizers(**narrow))
    wide = Quantizers(**{**narrow, role: Quantizer(bits=16)})
    with pytest.raises(ValueError, match=r"of 1[26]-bit and 1[26]-bit mantissas"):
        check_roles(FixedChain(256), wide)


def test_the_shift_takes_bits_of_every_role():
    quantizers = Quantizers(lhs=Quantizer(bits=14, rounding="truncate"))
    shifted = pre_shifted(quantizers, FixedChain(2, 3))
    assert shifted.lhs == Quantizer(bits=11, rounding="truncate")
    assert shifted.rhs == shifted.cotangent == Quantizer(bits=13)
    assert pre_shifted(quantizers, "certified") is quantizers
