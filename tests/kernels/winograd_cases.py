"""Convolutions that Winograd algorithms compute."""

from cases import SAME, conv, passes
from tiers import in_tiers

from dfpjax.numbers.format.blocks import Blocks

BOTH = (Blocks(), Blocks())
TILES = ("winograd2", "winograd4")
NHC = ("NHC", "HIO", "NHC")
CASES = {
    "same": conv((2, 7, 6, 20), (3, 3, 20, 65), padding=SAME),
    "valid": conv((1, 10, 9, 16), (3, 3, 16, 8)),
    "full": conv((1, 6, 5, 8), (3, 3, 8, 16), padding=((2, 2), (2, 2))),
    "asymmetric": conv((2, 5, 9, 8), (3, 3, 8, 6), padding=((0, 2), (2, -1))),
    "negative": conv((2, 9, 8, 4), (3, 3, 4, 6), padding=((-2, 1), (1, -3))),
    "deep": conv((1, 5, 6, 300), (3, 3, 300, 70), padding=SAME),
    "wide": conv((6, 30, 31, 9), (3, 3, 9, 17), padding=SAME),
    "1d": conv((3, 17, 12), (3, 12, 10), (1,), ((2, 0),), NHC),
    "1x3": conv((2, 4, 9, 12), (1, 3, 12, 10), padding=((0, 0), (1, 1))),
    "3x1_strided": conv((2, 9, 8, 12), (3, 1, 12, 10), (1, 2), ((1, 1), (0, 0))),
    "grouped": conv((2, 6, 7, 24), (3, 3, 6, 32), padding=SAME, feature_group_count=4),
    "reversed": conv((2, 6, 7, 8), (3, 3, 8, 6), padding=SAME, numbers=("NWHC", "HWIO", "NHWC")),
}
QUICK = {
    *((name, "fprop") for name in ("same", "negative", "1d", "reversed", "grouped")),
    *(("asymmetric", which) for which in ("fprop", "dgrad", "wgrad")),
    *(("deep", "fprop"), ("wide", "wgrad"), ("1x3", "wgrad"), ("3x1_strided", "wgrad"), ("full", "dgrad")),
}


CASES_IN_TIERS = [
    in_tiers(name, which, quick=(name, which) in QUICK)
    for name in CASES
    for which in ("fprop", "dgrad", "wgrad")
    if (name, which) not in {("full", "wgrad"), ("3x1_strided", "dgrad")}
]
"""Without one whose result has rows and columns in another order, and one that has phases."""


def of_case(name, which):
    return passes(*CASES[name])[which]
