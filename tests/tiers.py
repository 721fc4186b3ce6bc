"""The tiers of the tests: the quick one, and `slow`."""

import pytest


def in_tiers(*case, quick: bool):
    """A case of a parametrization, in the tier `slow` unless `quick`."""
    return pytest.param(*case, marks=() if quick else pytest.mark.slow)
