"""What becomes of an operation: decided in this one place, for the rewrite and for `explain` alike."""

from dataclasses import dataclass

from dfpjax.policy._config import OpConfig
from dfpjax.policy._cost import objection
from dfpjax.policy._policy import BoundPolicy
from dfpjax.policy._rules import Rule
from dfpjax.transform._contractions import work
from dfpjax.transform._survey import Site


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of an operation, and why."""

    config: OpConfig | None
    """How it is rewritten; None leaves it as it is."""

    rule: Rule | None
    """The policy's rule that matched, if one did: it decided, unless `reason` names something else."""

    reason: str


def decide(site: Site, policy: BoundPolicy) -> Verdict:
    """Decide about one operation."""
    if site.obstacle is not None:
        return Verdict(config=None, rule=None, reason=site.obstacle)
    decision = policy.decide(site.operation)
    said_by = "the policy's default" if decision.rule is None else repr(decision.rule)
    if decision.config is not None and not decision.config.force and (cost := objection(work(site.eqn))):
        return Verdict(config=None, rule=decision.rule, reason=f"{cost} (else {said_by})")
    return Verdict(config=decision.config, rule=decision.rule, reason=said_by)
