"""What an operation is in its layer: fprop, dgrad or wgrad, and of which forward operation.

JAX says of an operation only that transposition has made it. What it is comes out of what it shares with
an operation of the forward pass: dgrad takes a cotangent and the rhs, wgrad a cotangent and the lhs
(Das et al., 2018, §4.1).
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from dfpjax.policy._config import Pass, Role
from dfpjax.policy._rules import Operation


@dataclass(frozen=True, kw_only=True)
class Part:
    """What an operation is in its layer."""

    kind: Pass | None
    """None for an operation of a backward pass of which it cannot be told."""

    roles: tuple[Role, Role]
    """The part that each of its operands plays in the forward operation."""

    layer: tuple[Operation, ...]
    """The forward operations that it may belong to, one at best; itself if it is one."""


class Layers:
    """The operations of a program, by what they share. Immutable."""

    def __init__(self, operations: Iterable[Operation]):
        self._named: dict[str, list[Operation]] = defaultdict(list)
        self._forward: dict[Hashable, list[Operation]] = defaultdict(list)
        self._backward: dict[Hashable, list[Operation]] = defaultdict(list)
        for op in operations:
            for operand in _known(op):
                (self._forward if _is_forward(op) else self._backward)[operand].append(op)
            if _is_forward(op):
                self._named[op.name].append(op)

    def part(self, op: Operation) -> Part:
        """What an operation is: one of the program, or of a rule that was traced later."""
        if _is_forward(op):
            return Part(kind="fprop", roles=("lhs", "rhs"), layer=(op,))
        layer = self._layer(op)
        # An operand that is lhs in one place and rhs in another tells nothing.
        first, second = ({role for f in layer for role in _roles(operand, f)} for operand in op.operands)
        if len(first) == 1 and not second:
            (held,) = first
            return Part(kind=_WITH[held], roles=(held, "cotangent"), layer=layer)
        if len(second) == 1 and not first:
            (held,) = second
            return Part(kind=_WITH[held], roles=("cotangent", held), layer=layer)
        return Part(kind=None, roles=("lhs", "rhs"), layer=layer)

    def _layer(self, op: Operation) -> tuple[Operation, ...]:
        layer = self._candidates(op)
        if len(layer) == 1 or op.name:
            return layer
        # A value may go into several layers without a name, but each has a cotangent of its own. It goes into
        # dgrad as well, together with a weight that is the layer's alone.
        for operand in _known(op):
            for other in self._backward.get(operand, ()):
                common = [f for f in self._candidates(other) if f in layer]
                if len(common) == 1:
                    return tuple(common)
        return layer

    def _candidates(self, op: Operation) -> tuple[Operation, ...]:
        if op.name in self._named and op.name:
            return tuple(self._named[op.name])
        sharing = dict.fromkeys(f for operand in _known(op) for f in self._forward.get(operand, ()))
        return tuple(f for f in sharing if op.same_layer(f))


_WITH: dict[Role, Pass] = {"lhs": "wgrad", "rhs": "dgrad"}
"""What takes a cotangent and this operand."""


def _is_forward(op: Operation) -> bool:
    return op.recomputed or not op.derived


def _known(op: Operation) -> list[Hashable]:
    return [operand for operand in dict.fromkeys(op.operands) if operand is not None]


def _roles(operand: Hashable, forward: Operation) -> list[Role]:
    return [
        role
        for role, own in zip(("lhs", "rhs"), forward.operands, strict=False)
        if operand is not None and own == operand
    ]
