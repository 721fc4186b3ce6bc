"""`Grid`: where the exponents of an operand in blocks lie, as a function of addresses."""

import math
from dataclasses import dataclass

import jax
import numpy as np

from dfpjax.numbers.contraction.contraction import Contraction, Shape
from dfpjax.numbers.format.blocks import Blocks


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the exponents of an operand in blocks lie: a function of an element's offset in memory.

    The operand is rows of `columns` elements, in groups of `outer` elements that no block crosses.
    """

    outer: int
    columns: int
    block_rows: int
    block_columns: int
    """Both are powers of two. A block that has all columns may have more here than there are."""
    dithered: bool
    """How mantissas are rounded where they are aligned. To nearest if the operand is contiguous along the
    contracted index. Otherwise with thresholds that differ from element to element, so that the sum of many
    small ones is right, though each is small beside the largest one that it meets."""

    def encode(self) -> tuple[int, ...]:
        return self.outer, self.columns, self.block_rows, self.block_columns, int(self.dithered)

    def index(self, offset: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
        """The index of the exponent of the element at each offset."""
        rows = self.outer // self.columns
        outer, inside = divmod(offset, self.outer)
        row, column = divmod(inside, self.columns)
        block_rows, block_columns = -(-rows // self.block_rows), -(-self.columns // self.block_columns)
        return (outer * block_rows + row // self.block_rows) * block_columns + column // self.block_columns


def make_grid(c: Contraction, shape: Shape, exponent: Shape, blocks: Blocks | None) -> Grid:
    """The grid of the lhs of a contraction.

    Arguments:
        c: the contraction.
        shape, exponent: shapes of lhs and of its exponents.
        blocks: the size of its blocks, or None if each example of vmap has one exponent.

    Raises:
        ValueError: if the exponents have another shape.
    """
    mapped = len(c.mapped_axes(c.lhs))
    example = shape[mapped:]
    size = max(math.prod(example), 1)
    if blocks is None:
        shared = all(extent == 1 for extent in exponent[mapped:])
        examples = math.prod(exponent[:mapped])
        if not shared or examples not in (1, math.prod(shape[:mapped])):
            raise ValueError(
                f"an operand in blocks cannot be multiplied by one with exponents of shape {exponent}"
            )
        size = max(math.prod(shape), 1) if examples == 1 else size
        return Grid(outer=size, columns=size, block_rows=1, block_columns=_power_of_two(size), dithered=False)
    wanted = (*shape[:mapped], *blocks.counts(example))
    if exponent != wanted:
        raise ValueError(f"the exponents of an operand of shape {shape} must have shape {wanted}")
    _, rows, columns = blocks.view(example)
    block_rows, block_columns = blocks.size(example)
    innermost = next((c.lhs[axis] for axis in reversed(range(len(shape))) if shape[axis] > 1), None)
    kept = {*c.out, *(w.lhs for w in c.windows)}
    return Grid(
        outer=max(rows * columns, 1),
        columns=max(columns, 1),
        block_rows=block_rows,
        block_columns=_power_of_two(block_columns),
        dithered=innermost in kept,
    )


def _power_of_two(size: int) -> int:
    """The first power of two that is not less than a positive size."""
    return 1 << (size - 1).bit_length()
