"""`Policy`: the rules that say which operations run in dynamic fixed point, and how."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dfpjax.policy._config import OpConfig
from dfpjax.policy._passes import Layers, Part
from dfpjax.policy._rules import Operation, Position, Rule, require_config


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which operations run in dynamic fixed point, and how. The first rule that matches an operation decides.

    An operation that is too small or too skinny to gain stays in float32 nevertheless, unless its `OpConfig`
    has `force=True`; `Policy(default=OpConfig(force=True))` forces all. An operation that asks for float64 or
    for `precision=HIGHEST` stays as it is, unless its `OpConfig` has `override_precision=True`, which says
    what counts as asking. `dfpjax.explain` lists both.

    Arguments:
        rules: `Rule`s in order of precedence.
        default: for operations that no rule matches; None keeps them in float32.
        strict: whether a rule that matches nothing in a program raises an error when the program is
            transformed. Otherwise `explain` shows it.
        fuse: whether large float32 tensors around operations in dynamic fixed point are computed in fewer
            passes over memory: batch statistics, bias, normalization, maximum pooling and their gradients;
            and whether the products of a recurrent layer with its inputs, which need no state, are computed
            for all steps ahead of the loop. The last bits of sums differ, as they are more exact than XLA's
            or in another order; everything else is the same.

    Raises:
        TypeError: if a rule is not a `Rule`, the default is neither an `OpConfig` nor None, or strict or fuse
            is neither True nor False.
    """

    rules: Sequence[Rule] = ()
    default: OpConfig | None = OpConfig()  # noqa: RUF009 (frozen)
    strict: bool = False
    fuse: bool = True

    def __post_init__(self):
        if isinstance(self.rules, Rule | str) or not isinstance(self.rules, Iterable):
            raise TypeError(f"Policy: rules must be a sequence of Rule, got {self.rules!r}")
        object.__setattr__(self, "rules", tuple(self.rules))
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise TypeError(f"Policy: rules must be a sequence of Rule, got {rule!r} among them")
        require_config(self.default, "Policy: default")
        for name in ("strict", "fuse"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"Policy: {name} must be True or False, got {value!r}")

    @property
    def keeps_float32(self) -> bool:
        """Whether no operation at all runs in dynamic fixed point."""
        return self.default is None and all(rule.config is None for rule in self.rules)

    def bind(self, operations: Iterable[Operation]) -> "BoundPolicy":
        """Resolve what depends on the whole program, given its eligible operations in order."""
        return BoundPolicy(self, operations)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a policy decides about one operation."""

    config: OpConfig | None
    """None keeps float32."""

    rule: Rule | None
    """The rule that decided; None for the policy's default."""

    part: Part
    """What the operation is in its layer."""


class BoundPolicy:
    """A policy, resolved for one program. Immutable."""

    def __init__(self, policy: Policy, operations: Iterable[Operation]):
        self.policy = policy
        operations = list(operations)
        self._layers = Layers(operations)
        forward = [op for op in operations if not op.derived]
        self._chosen = {
            rule.pattern: _pick(rule.pattern, forward)
            for rule in policy.rules
            if isinstance(rule.pattern, Position)
        }

    def decide(self, operation: Operation) -> Decision:
        """The decision of the first rule that matches, or of the default.

        An operation of a backward pass matches by its own name and paths, and by those of its forward
        operation.
        """
        part = self._layers.part(operation)
        for rule in self.policy.rules:
            if self._matches(rule.pattern, operation, part):
                return Decision(config=rule.config, rule=rule, part=part)
        return Decision(config=self.policy.default, rule=None, part=part)

    def unmatched(self, operations: Iterable[Operation]) -> tuple[Rule, ...]:
        """The rules that match none of the operations."""
        parts = [(op, self._layers.part(op)) for op in operations]
        return tuple(
            rule
            for rule in self.policy.rules
            if not any(self._matches(rule.pattern, op, part) for op, part in parts)
        )

    def _matches(self, pattern: str | Position, operation: Operation, part: Part) -> bool:
        if isinstance(pattern, str):
            known_as = (operation, *part.layer) if len(part.layer) == 1 else (operation,)
            return any(re.search(pattern, text) for op in known_as for text in (op.name, *op.paths))
        chosen = self._chosen[pattern]
        if chosen is None:
            return False
        return operation is chosen or (operation.derived and operation.same_layer(chosen))


def _pick(position: Position, forward: list[Operation]) -> Operation | None:
    of_kind = [op for op in forward if op.primitive == position.primitive]
    return of_kind[position.index] if -len(of_kind) <= position.index < len(of_kind) else None
