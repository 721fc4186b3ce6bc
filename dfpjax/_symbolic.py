"""Symbolic extents, as `jax.export.symbolic_shape` makes them.

Where a decision needs a number, every variable counts as 128, or as the number nearest to it that its
constraints allow. So decisions depend on the program alone, and are those for large batches.
"""

from collections.abc import Sequence
from typing import Any

from dfpjax import _compat

NOMINAL = 128
"""What a variable counts as."""


def is_symbolic(*shapes: Sequence[Any]) -> bool:
    """Whether some extent of these shapes is symbolic."""
    return not all(isinstance(size, int) for shape in shapes for size in shape)


def nominal(size: Any) -> int:
    """The number that an extent counts as where a decision needs one."""
    return size if isinstance(size, int) else _compat.evaluated_dimension(size, NOMINAL)


def nominal_shape(shape: Sequence[Any]) -> tuple[int, ...]:
    """The shape that a symbolic shape counts as."""
    return tuple(map(nominal, shape))
