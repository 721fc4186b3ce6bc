"""Ready-made policies."""

from dfpjax.policy._config import OpConfig
from dfpjax.policy._policy import Policy
from dfpjax.policy._rules import Position, Rule

FIRST_CONV = Position("conv_general_dilated", 0)
"""Pattern for the first convolution of a program."""

LAST_DOT = Position("dot_general", -1)
"""Pattern for the last dot product of a program: a classifier, where the program is a model's `apply`."""


def default() -> Policy:
    """Every convolution and dot product that the cost rule expects to gain runs in dynamic fixed point,
    unless it asks for float64 or `precision=HIGHEST`.

    `Policy(default=OpConfig(force=True))` has all of them run so, whether they gain or not, and
    `OpConfig(force=True, override_precision=True)` whatever they ask for.
    """
    return Policy()


def paper() -> Policy:
    """The authors' ResNet-50 (Das et al., 2018): the first convolution and the classifier stay in float32, a
    tensor has one exponent, and convolutions are computed product by product.

    All else runs in dynamic fixed point, whether it gains or not, except what asks for float64 or
    `precision=HIGHEST`. The policy finds the two by position, so transform the model's `apply`, not a loss
    function that ends in another dot product.
    """
    rules = (Rule(FIRST_CONV, None), Rule(LAST_DOT, None))
    return Policy(rules=rules, default=OpConfig(force=True, granularity="tensor", algorithm="direct"))
