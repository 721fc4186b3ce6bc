"""Convolutions that Winograd algorithms compute."""

from cases import SAME, conv, passes
from tiers import in_tiers

from dfpjax.numbers.format.blocks import Blocks

BOTH = (Blocks(), Blocks())
TILES = (("winograd2", 3), ("winograd4", 3), ("winograd2", 5))
"""Algorithms, and the taps along an axis of what they compute."""
NHC = ("NHC", "HIO", "NHC")


def same(taps):
    """The padding that keeps the size."""
    return ((taps // 2, taps // 2),) * 2


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
    "three_outputs": conv((4, 5, 5, 12), (3, 3, 12, 10)),
    "reversed": conv((2, 6, 7, 8), (3, 3, 8, 6), padding=SAME, numbers=("NWHC", "HWIO", "NHWC")),
}
CASES_OF_5 = {
    "same_5x5": conv((2, 7, 6, 20), (5, 5, 20, 65), padding=same(5)),
    "asymmetric_5x5": conv((2, 6, 9, 8), (5, 5, 8, 6), padding=((0, 3), (4, -1))),
    "deep_5x5": conv((1, 6, 7, 300), (5, 5, 300, 70), padding=same(5)),
    "wide_5x5": conv((6, 30, 31, 9), (5, 5, 9, 17), padding=same(5)),
    "three_outputs_5x5": conv((4, 7, 7, 12), (5, 5, 12, 10)),
    "1d_5": conv((3, 17, 12), (5, 12, 10), (1,), ((4, 0),), NHC),
    "1x5": conv((2, 4, 9, 12), (1, 5, 12, 10), padding=((0, 0), (2, 2))),
    "5x1_strided": conv((2, 9, 8, 12), (5, 1, 12, 10), (1, 2), ((2, 2), (0, 0))),
    "grouped_5x5": conv((2, 6, 7, 24), (5, 5, 6, 32), padding=same(5), feature_group_count=4),
}
"""Those with windows of 5 taps."""
OF_ONE_AXIS = ("1d", "1x3", "3x1_strided", "1d_5", "1x5", "5x1_strided")
QUICK = {
    *((name, "fprop") for name in ("same", "negative", "1d", "reversed", "grouped")),
    *(("asymmetric", which) for which in ("fprop", "dgrad", "wgrad")),
    *(("deep", "fprop"), ("wide", "wgrad"), ("1x3", "wgrad"), ("3x1_strided", "wgrad"), ("full", "dgrad")),
    *(("same_5x5", "fprop"), ("asymmetric_5x5", "dgrad"), ("wide_5x5", "wgrad")),
    *(("1d_5", "fprop"), ("1x5", "dgrad"), ("5x1_strided", "wgrad")),
    *(("three_outputs", "wgrad"), ("three_outputs_5x5", "fprop")),
}
IMPOSSIBLE = {
    *(("full", "wgrad"), ("three_outputs_5x5", "dgrad")),  # the result's rows and columns in another order
    *(("3x1_strided", "dgrad"), ("5x1_strided", "dgrad")),  # phases
}


CASES_IN_TIERS = [
    in_tiers(name, which, tiles, quick=(name, which) in QUICK)
    for cases, of_cases in ((CASES, ("winograd2", "winograd4")), (CASES_OF_5, ("winograd2",)))
    for name in cases
    for which in ("fprop", "dgrad", "wgrad")
    for tiles in of_cases
    if (name, which) not in IMPOSSIBLE
]


def of_case(name, which):
    return passes(*(CASES | CASES_OF_5)[name])[which]


def of_taps(taps, which):
    """A convolution with a window of so many taps along both axes."""
    return of_case({3: "same", 5: "same_5x5"}[taps], which)
