"""`OpConfig`: how one operation is computed in dynamic fixed point."""

from dataclasses import dataclass, fields
from typing import Any

from dfpjax.numbers import Quantizer, Quantizers


@dataclass(frozen=True, kw_only=True)
class PerRole:
    """One value for each part that a tensor plays in an operation.

    In a program that holds its own backward pass, as `mixed_precision(jax.grad(f))` does, the backward
    operations are operations like any other: `lhs` and `rhs` are then the operands as they stand in the
    equation, cotangents included.
    """

    lhs: Any
    """The left operand: a convolution's input, the first argument of a dot product."""

    rhs: Any
    """The right operand: a convolution's kernel, the second argument of a dot product."""

    cotangent: Any
    """The gradients that come back to the operation."""


_ROLES = tuple(field.name for field in fields(PerRole))


@dataclass(frozen=True, kw_only=True)
class OpConfig:
    """How an operation is computed in dynamic fixed point.

    `bits` and `rounding` take one value for all roles, or a `PerRole`.

    Raises:
        ValueError: if a field is not one of the values named below.
    """

    bits: int | PerRole = 16
    """Bits of a mantissa, its sign included: 2 to 16."""

    rounding: str | PerRole = "nearest"
    """`"nearest"` (ties to even), `"stochastic"`, `"biased"` or `"truncate"`."""

    force: bool = False
    """True or False: whether it is so even where the cost rule expects float32 to be faster."""

    def __post_init__(self):
        if not isinstance(self.force, bool):
            raise ValueError(f"OpConfig: force must be True or False, got {self.force!r}")
        for role in _ROLES:
            self._quantizer(role)

    @property
    def quantizers(self) -> Quantizers:
        """The quantizers that `dfpjax.operations` takes."""
        return Quantizers(**{role: self._quantizer(role) for role in _ROLES})

    def _quantizer(self, role: str) -> Quantizer:
        per_role = isinstance(self.bits, PerRole) or isinstance(self.rounding, PerRole)
        try:
            return Quantizer(bits=_of_role(self.bits, role), rounding=_of_role(self.rounding, role))
        except ValueError as error:
            raise ValueError(f"OpConfig{f', {role}' if per_role else ''}: {error}") from None

    def __repr__(self) -> str:
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return f"OpConfig({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


def _of_role(value: Any, role: str) -> Any:
    return getattr(value, role) if isinstance(value, PerRole) else value
