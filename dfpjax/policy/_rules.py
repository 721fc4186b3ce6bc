"""`Rule` and `Position`: which operations a configuration applies to."""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, get_args

from dfpjax import _checks
from dfpjax.policy._config import OpConfig

Primitive = Literal["conv_general_dilated", "dot_general"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """What a policy knows about one convolution or dot product; compared by identity."""

    primitive: Primitive

    name: str
    """Layer name, such as `ResNet/Bottleneck_3/Conv_1`; empty where no `jax.named_scope` is around it."""

    operands: tuple[Hashable, ...]
    """What its operands are. An argument of the program is its path, such as `params/Conv_0/kernel`. Any
    other value is an object that is the same wherever the value is used, or None if that is unknown."""

    derived: bool
    """Whether it belongs to a backward pass or to a rule (such as that of a `jax.custom_vjp`), and not to the
    program itself."""

    recomputed: bool = False
    """Whether it repeats an operation of the forward pass in a backward pass (`jax.checkpoint`)."""

    float64: bool = False
    """Whether one of its operands or its result is float64."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the arguments among its operands, the right operand's first: it usually is the kernel."""
        return tuple(operand for operand in reversed(self.operands) if isinstance(operand, str))

    def same_layer(self, other: "Operation") -> bool:
        """Whether both have the same layer name or, if one of them has no name, share an operand."""
        if self.name and other.name:
            return self.name == other.name
        return not ({*self.operands} - {None}).isdisjoint(other.operands)


@dataclass(frozen=True)
class Position:
    """The layer of the `index`-th operation of a kind, in program order, as the pattern of a rule.

    Only forward operations that can be computed in dynamic fixed point count. The layer's backward
    operations, found by its name or parameter, follow the same rule.

    Arguments:
        primitive: "conv_general_dilated" or "dot_general".
        index: as a Python index: 0 is the first, -1 the last.
    """

    primitive: Primitive
    index: int

    def __post_init__(self):
        _checks.choice("Position", "primitive", self.primitive, get_args(Primitive))
        if not isinstance(self.index, int) or isinstance(self.index, bool):
            raise TypeError(f"Position: index must be an integer, got {self.index!r}")

    def __repr__(self) -> str:
        return f"Position({self.primitive!r}, {self.index})"


@dataclass(frozen=True)
class Rule:
    """Says how the operations of some layers are computed.

    The first rule of a policy that matches an operation decides. So a rule exempts layers from the default,
    such as what a Winograd algorithm cannot compute:

        Policy(
            rules=[Rule("Stem|Conv_1x1", OpConfig())],
            default=OpConfig(algorithm="winograd4"),
        )

    Arguments:
        pattern: a regular expression, searched (`re.search`) in the layer's name and in its parameter's path;
            or a `Position`.
        config: an `OpConfig`, or None to keep float32.

    Raises:
        ValueError: if the pattern is not a valid regular expression.
        TypeError: if an argument is of another type.
    """

    pattern: str | Position
    config: OpConfig | None

    def __post_init__(self):
        if isinstance(self.pattern, str):
            try:
                re.compile(self.pattern)
            except re.error as error:
                message = f"Rule: {self.pattern!r} is not a valid regular expression: {error}"
                raise ValueError(message) from None
        elif not isinstance(self.pattern, Position):
            raise TypeError(
                f"Rule: pattern must be a string (a regular expression) or a Position, got {self.pattern!r}"
            )
        require_config(self.config, "Rule: config")

    def __repr__(self) -> str:
        return f"Rule({self.pattern!r}, {self.config!r})"


def require_config(config, where: str) -> None:
    """Raises TypeError unless `config` is an OpConfig or None."""
    if config is not None and not isinstance(config, OpConfig):
        raise TypeError(f"{where} must be an OpConfig, or None to keep float32, got {config!r}")
