"""What an operation is in its layer: fprop, dgrad or wgrad, and of which forward operation.

JAX only says that an operation comes from transposition. The operand that it shares with a forward operation
says which gradient it is: dgrad takes a cotangent and the rhs, wgrad a cotangent and the lhs (Das et al.,
2018, §4.1).
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
    """None for an operation of a backward pass whose kind is unknown."""

    roles: tuple[Role, Role]
    """The role of each of its operands in the forward operation."""

    layer: tuple[Operation, ...]
    """The forward operations that it may belong to, ideally one; the operation itself if it is forward."""


class Layers:
    """The operations of a program, indexed by layer name and operand. Immutable."""

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
        """What an operation is. It may be one of the program, or one of a rule that JAX traces later."""
        if _is_forward(op):
            return Part(kind="fprop", roles=("lhs", "rhs"), layer=(op,))
        layer = self._layer(op)
        # An operand that is lhs in one operation and rhs in another says nothing.
        held_as: list[set[Role]] = [{r for f in layer for r in _roles(operand, f)} for operand in op.operands]
        first, second = held_as
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
        # Several unnamed layers may share an input, but each has a cotangent of its own. That cotangent also
        # goes into dgrad, together with a weight that belongs to this layer alone.
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
"""The gradient that takes a cotangent and this operand."""


def _is_forward(op: Operation) -> bool:
    return op.recomputed or not op.derived


def _known(op: Operation) -> list[Hashable]:
    return [operand for operand in dict.fromkeys(op.operands) if operand is not None]


def _roles(operand: Hashable, forward: Operation) -> list[Role]:
    roles: tuple[Role, ...] = ("lhs", "rhs")
    return [
        role
        for role, own in zip(roles, forward.operands, strict=False)
        if operand is not None and own == operand
    ]
