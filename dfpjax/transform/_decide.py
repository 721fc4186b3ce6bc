"""The one place that decides about an operation, for the rewrite and for `explain` alike."""

from collections.abc import Iterable
from dataclasses import dataclass

from dfpjax.numbers import Accumulation, Quantizers
from dfpjax.numbers.contraction.accumulation import pre_shifted
from dfpjax.numbers.contraction.algorithm import RequestedAlgorithm
from dfpjax.policy._config import PASSES, OpConfig, Pass
from dfpjax.policy._cost import objection
from dfpjax.policy._passes import Part
from dfpjax.policy._policy import BoundPolicy
from dfpjax.policy._rules import Position, Rule
from dfpjax.transform._contractions import QUANTIZED, work
from dfpjax.transform._held import dtype_is_float32, mismatch
from dfpjax.transform._requests import request
from dfpjax.transform._survey import Site
from dfpjax.transform._symbolic import possible_passes


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """How an operation is rewritten. Each operand has the quantizer of its role."""

    quantizers: Quantizers
    accumulation: Accumulation
    algorithm: RequestedAlgorithm
    """Of a convolution."""
    required: bool
    """Whether an algorithm that is asked for by name must be possible. Gradients are computed directly where
    it is not, also those that the program contains."""
    passes: frozenset[Pass]
    """Which of the operation itself and its gradients are computed in dynamic fixed point."""

    @property
    def lhs_in_blocks(self) -> bool:
        """Whether the operation quantizes its left operand with exponents of blocks."""
        return "fprop" in self.passes and self.quantizers.lhs.granularity == "block"

    @property
    def cotangent_in_blocks(self) -> bool:
        """Whether a gradient quantizes the operation's cotangent with exponents of blocks."""
        in_blocks = self.quantizers.cotangent.granularity == "block"
        return in_blocks and not self.passes.isdisjoint(("dgrad", "wgrad"))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision about an operation, and its reason."""

    treatment: Treatment | None
    """None leaves it as it is."""

    kind: Pass | None
    """What the operation is in its layer; None if that is unknown."""

    rule: Rule | None
    """The policy's rule that matched, if any. It decided, unless `reason` names something else."""

    reason: str

    symbolic: str | None = None
    """Why it or gradients of it stay in float32, if that is because of symbolic extents."""

    held: frozenset[int] = frozenset()
    """The operands, 0 for lhs and 1 for rhs, that are frozen and read as they are."""


def decide(site: Site, policy: BoundPolicy) -> Verdict:
    """Decide about one operation."""
    if site.obstacle is not None:
        return Verdict(treatment=None, kind=None, rule=None, reason=site.obstacle)
    decision = policy.decide(site.operation)
    config, part = decision.config, decision.part
    reason = "the policy's default" if decision.rule is None else repr(decision.rule)
    treatment, held, dequantized, symbolic = None, frozenset(), "", ""
    if config is not None:
        held, dequantized = _held(site, config, part)
        if not config.override_precision and (asked := _request(site, part)):
            reason = f"asks for {asked}, and override_precision is off ({reason})"
        elif not config.force and not held and (cost := objection(work(site.eqn))):
            reason = f"{cost} (else {reason})"
        elif (passes := _passes(config, part.kind)) is None:
            reason = f"{_off(config, part.kind)} ({reason})"
        else:
            quantizers = config.quantizers(*part.roles)
            passes, symbolic = possible_passes(site.eqn, passes, quantizers, frozen=bool(held))
            if symbolic:
                which = "gradients are in float32, since " if passes else ""
                reason = f"{which}{symbolic} ({reason})"
            if passes:
                treatment = Treatment(
                    quantizers=quantizers,
                    accumulation=config.accumulation,
                    algorithm=config.algorithm,
                    required=part.kind == "fprop",
                    passes=passes,
                )
    elif any(site.thawed):
        dequantized = "float32 is wanted"
    held = held if treatment is not None else frozenset()
    if held:
        reason = f"{reason}; reads frozen weights"
    elif any(site.thawed):
        reason = f"{reason}; dequantizes frozen weights{': ' if dequantized else ''}{dequantized}"
    return Verdict(
        treatment=treatment,
        kind=part.kind,
        rule=decision.rule,
        reason=reason,
        symbolic=symbolic or None,
        held=held,
    )


def _held(site: Site, config: OpConfig, part: Part) -> tuple[frozenset[int], str]:
    """The frozen operands that an operation can read as they are, and why it cannot read another one."""
    every_pass = config.fprop and config.dgrad and config.wgrad
    if not every_pass or not dtype_is_float32(site.eqn.invars):
        return frozenset(), "another type or pass is wanted" if any(site.thawed) else ""
    quantizers = config.quantizers(*part.roles)
    quantizers = pre_shifted(quantizers, config.accumulation)
    held, reason = set(), ""
    for operand, thaw in enumerate(site.thawed):
        if thaw is None:
            continue
        quantizer = (quantizers.lhs, quantizers.rhs)[operand]
        found = mismatch(site.eqn, operand, thaw.params["form"], quantizer, config.accumulation)
        if found is None:
            held.add(operand)
        else:
            reason = found
    return frozenset(held), reason


def _request(site: Site, part: Part) -> str | None:
    """The precision that an operation asks for, if dynamic fixed point has less.

    JAX copies `precision` to the operations of a backward pass. But the gradient with respect to a float64
    operand may be a product of float32 tensors, if the other operand and the result are float32.
    """
    if (own := request(site.eqn)) is not None:
        return own
    in_layer = [forward.float64 for forward in part.layer]
    return "float64, as its forward operation does" if in_layer and all(in_layer) else None


def _passes(config: OpConfig, kind: Pass | None) -> frozenset[Pass] | None:
    """The passes that an operation of that kind and its gradients compute in dynamic fixed point, or None."""
    if kind == "fprop":
        return frozenset(name for name in PASSES if getattr(config, name))
    wanted = getattr(config, kind) if kind is not None else config.dgrad and config.wgrad
    return frozenset(PASSES) if wanted else None


def _off(config: OpConfig, kind: Pass | None) -> str:
    if kind is not None:
        return f"{kind} is switched off"
    off = " and ".join(name for name in ("dgrad", "wgrad") if not getattr(config, name))
    return f"a gradient, not known which, and {off} is switched off"


def unmatched_rules(sites: Iterable[Site], policy: BoundPolicy) -> tuple[Rule, ...]:
    """The rules that match nothing in a program.

    If a program already contains operations in dynamic fixed point, an inner transform has rewritten it, and
    the original positions of operations are unknown. A `Position` then never counts as unmatched.
    """
    sites = list(sites)
    unmatched = policy.unmatched(site.operation for site in sites)
    transformed = any(site.eqn.primitive.name in QUANTIZED for site in sites)
    return tuple(rule for rule in unmatched if not (transformed and isinstance(rule.pattern, Position)))


def require_matches(sites: Iterable[Site], policy: BoundPolicy) -> None:
    """Raises ValueError if the policy is strict and one of its rules matches nothing."""
    if not policy.policy.strict:
        return
    sites = list(sites)
    unmatched = unmatched_rules(sites, policy)
    if unmatched:
        known = dict.fromkeys(
            text for site in sites for text in (site.operation.name, *site.operation.paths) if text
        )
        raise ValueError(
            f"mixed_precision: nothing in the program matches {', '.join(map(repr, unmatched))}. "
            f"{_listed(list(known))} Mend the pattern, drop the rule, or use a Policy without strict=True."
        )


def require_untrained(sites: Iterable[Site], policy: BoundPolicy) -> None:
    """Raises ValueError if the program computes a gradient by frozen weights."""
    sites = list(sites)
    if not any(any(site.thawed) for site in sites):
        return
    forward = {id(site.operation): site for site in sites}
    for site in sites:
        part = policy.decide(site.operation).part
        operand = {"dgrad": 0, "wgrad": 1}.get(part.kind)
        layer = [forward[id(op)] for op in part.layer if id(op) in forward]
        if operand is not None and any(own.thawed[operand] is not None for own in layer):
            name = next(iter([*site.operation.paths, site.operation.name]), "")
            raise ValueError(
                "mixed_precision: the program computes the gradient by frozen weights "
                f"(of {name or 'a layer'}), which cannot be trained. Take it by other arguments, or train "
                "dfpjax.thaw(weights)."
            )


_LISTED = 20


def _listed(known: list[str]) -> str:
    if not known:
        return "No convolution or dot product in it has a name or takes a parameter."
    more = f" and {len(known) - _LISTED} more (dfpjax.explain lists all)" if len(known) > _LISTED else ""
    return f"Its layers and parameters: {', '.join(known[:_LISTED])}{more}."
