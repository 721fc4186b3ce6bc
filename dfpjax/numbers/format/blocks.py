"""Blocks: the pieces of a tensor that have an exponent each (the extension that Das et al., 2018, announce).

Blocks follow the tensor's memory layout. A tensor is seen as [outer, rows, columns]: `outer` is its first
axis, `columns` are its last axes, as many as it takes to have the columns of a block, and `rows` is what lies
between. Last axes of extent 1 do not count. A block is a piece of `Blocks.rows` rows and `Blocks.columns`
columns of one outer index. Where columns are several axes, it has all of them, so that every block begins
with an element of the innermost axis (with images, a pixel). No block crosses the first axis or an axis that
vmap added, and blocks depend on the tensor's shape alone.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]

MOST_ROWS = 256
PIXELS = 8
"""Rows of a block by default in tensors of four axes or more."""
LEAST_COLUMNS, MOST_COLUMNS = 16, 256


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The size of blocks.

    Raises:
        ValueError: if a field is not a power of two in its range.
    """

    rows: int | None = None
    """Rows of a block: a power of two from 1 to 256. None stands for 8 in tensors of four axes or more, whose
    rows are pixels and mostly like their neighbours, and for 1 in others. There rows are tokens, time steps
    or examples, and a large one must not take precision from others."""

    columns: int = 32
    """Columns of a block: a power of two from 16 to 256. Where columns are several axes, a block has all."""

    def __post_init__(self):
        for name, least, most in (("rows", 1, MOST_ROWS), ("columns", LEAST_COLUMNS, MOST_COLUMNS)):
            value = getattr(self, name)
            if name == "rows" and value is None:
                continue
            is_size = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            if not is_size or value & (value - 1):
                raise ValueError(
                    f"Blocks: {name} must be a power of two from {least} to {most}, got {value!r}"
                )

    def view(self, shape: Shape) -> tuple[int, int, int]:
        """A tensor of this shape as (outer, rows, columns). A tensor of one axis is one row."""
        outer, rows, columns = (math.prod(shape[axis] for axis in axes) for axes in self.axes(shape))
        return outer, rows, columns

    def axes(self, shape: Shape) -> tuple[range, range, range]:
        """The axes of a tensor of this shape that each extent of its view counts, last axes of extent 1 left
        out."""
        shape = _without_last_ones(shape)
        if len(shape) < 2:
            return range(0), range(0), range(len(shape))
        first = self._first_of_columns(shape)
        return range(1), range(1, first), range(first, len(shape))

    def size(self, shape: Shape) -> tuple[int, int]:
        """The rows and columns of a complete block of a tensor of this shape."""
        shape = _without_last_ones(shape)
        rows = (PIXELS if len(shape) > 3 else 1) if self.rows is None else self.rows
        if len(shape) < 2:
            return rows, self.columns
        first = self._first_of_columns(shape)
        merged = first < len(shape) - 1
        return rows, max(math.prod(shape[first:]), 1) if merged else self.columns

    def counts(self, shape: Shape) -> tuple[int, int, int]:
        """How many blocks a tensor of this shape has along each axis of its view: the shape of its
        exponent."""
        outer, rows, columns = self.view(shape)
        block_rows, block_columns = self.size(shape)
        return outer, -(-rows // block_rows), -(-columns // block_columns)

    def _first_of_columns(self, shape: Shape) -> int:
        """The first of the axes that count columns, of a tensor of two axes or more."""
        first = len(shape) - 1
        while first > 1 and math.prod(shape[first:]) < self.columns:
            first -= 1
        return first


def _without_last_ones(shape: Shape) -> Shape:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def tiled(x: jax.Array, blocks: Blocks, mapped: int = 0) -> jax.Array:
    """A tensor, of NumPy or JAX, with axes for blocks and axes within them. Incomplete blocks end in zeros.

    Arguments:
        mapped: number of leading axes that vmap added.

    Returns:
        array of shape (*mapped axes, outer, row blocks, rows of a block, column blocks, columns of a block).
    """
    numpy = np if isinstance(x, np.ndarray) else jnp
    leading, example = x.shape[:mapped], x.shape[mapped:]
    outer, rows, columns = blocks.view(example)
    _, row_blocks, column_blocks = blocks.counts(example)
    block_rows, block_columns = blocks.size(example)
    missing = (row_blocks * block_rows - rows, column_blocks * block_columns - columns)
    x = x.reshape(*leading, outer, rows, columns)
    x = numpy.pad(x, [*[(0, 0)] * (mapped + 1), *((0, count) for count in missing)])
    return x.reshape(*leading, outer, row_blocks, block_rows, column_blocks, block_columns)


def expanded(exponent: jax.Array, shape: Shape, blocks: Blocks, mapped: int = 0) -> jax.Array:
    """The exponent of each element.

    Arguments:
        exponent: int32 of shape (*mapped axes, *blocks.counts(the other axes of `shape`)), of NumPy or JAX.
        shape: the tensor's shape.
        blocks: the size of blocks.
        mapped: number of leading axes that vmap added.

    Returns:
        int32 of `shape`.
    """
    leading, example = shape[:mapped], shape[mapped:]
    _, rows, columns = blocks.view(example)
    block_rows, block_columns = blocks.size(example)
    numpy = np if isinstance(exponent, np.ndarray) else jnp
    exponent = numpy.repeat(exponent, block_rows, axis=-2)[..., :rows, :]
    exponent = numpy.repeat(exponent, block_columns, axis=-1)[..., :columns]
    return exponent.reshape(leading + example)


def fits(exponent: Shape, shape: Shape, blocks: Blocks) -> bool:
    """Whether an exponent of that shape belongs to a tensor of `shape`: one number for each block, behind the
    axes that vmap added. Two axes alone are those of one index of the first axis, as `scan` takes it."""
    if len(exponent) == 2:
        return exponent == blocks.counts((1, *shape))[1:]
    mapped = len(exponent) - 3
    return 0 <= mapped <= len(shape) and exponent == shape[:mapped] + blocks.counts(shape[mapped:])


def of_elements(exponent: jax.Array, shape: Shape, blocks: Blocks) -> jax.Array:
    """The exponent of each element, int32 of `shape`, for an exponent whose shape `fits`."""
    expand = expanded if isinstance(exponent, np.ndarray) else _expanded_at_once
    if exponent.ndim == 2:
        return expand(exponent[None], (1, *shape), blocks).reshape(shape)
    return expand(exponent, shape, blocks, exponent.ndim - 3)


def largest(x: jax.Array, blocks: Blocks, mapped: int) -> jax.Array:
    """The largest number of each block, in the exponent's shape, of a tensor without negative numbers. With
    `mapped` = −1 it is one index of a first axis."""
    if mapped < 0:
        return largest(x[None], blocks, 0)[0]
    return jnp.max(tiled(x, blocks, mapped), (mapped + 2, mapped + 4), initial=0)


_expanded_at_once = functools.partial(jax.jit, static_argnums=(1, 2, 3), inline=True)(expanded)
