"""Policies without the cost rule, for tests whose operations are too small to be worth quantizing."""

from dfpjax.policy import OpConfig, Policy, Rule


def forced(*rules: Rule, **fields: object) -> Policy:
    """A policy that runs every operation in dynamic fixed point unless a rule keeps it in float32."""
    return Policy(rules=rules, default=OpConfig(force=True, **fields))


FORCED = forced()
TENSOR_WIDE = forced(granularity="tensor")
