"""Policies without the cost rule, for tests whose operations are far too small to gain."""

from dfpjax.policy import OpConfig, Policy, Rule


def forced(*rules: Rule) -> Policy:
    """A policy by which everything runs in dynamic fixed point that no rule keeps in float32."""
    return Policy(rules=rules, default=OpConfig(force=True))


FORCED = forced()
