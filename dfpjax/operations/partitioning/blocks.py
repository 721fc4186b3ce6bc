"""Which axes of a tensor in blocks may be split between devices, and which exponents each device holds.

A shard consists of whole blocks if it has a multiple of a block's rows and of its columns in a stretch. Its
exponents are then those of the whole tensor's blocks that it holds. Along the tensor's first axis and along
axes that vmap added, any shard consists of whole blocks. Where several axes count the columns, a block has
all columns, so these axes stay whole.
"""

import math
from collections.abc import Mapping

import jax
from jax import lax

from dfpjax.numbers.format.blocks import Blocks

Labels = tuple[int, ...]
Split = Mapping[int, tuple[str, ...]]
"""The axes of a mesh that each label is split over."""


def units(labels: Labels, shape, mapped: int, blocks: Blocks | None) -> dict[int, int]:
    """What the extent of a shard must be a multiple of, for the label of each axis that counts the rows or
    the columns of blocks. The first `mapped` axes are those that vmap added."""
    found = {}
    for axes, step in _counting(shape, mapped, blocks):
        for axis in axes:
            inner = math.prod(shape[other] for other in axes if other > axis)
            found[labels[axis]] = step // math.gcd(step, inner)
    return found


def counting(labels: Labels, exponent_labels: Labels, shape, blocks: Blocks | None) -> dict[int, int]:
    """The label by which each of the exponent's axes of blocks, its last two, is split: that of the outermost
    axis of `shape`, the whole tensor's, that counts their rows or columns."""
    axes_of_blocks = _counting(shape, len(exponent_labels) - 3, blocks)
    pairs = zip(exponent_labels[-2:], axes_of_blocks, strict=False)
    return {label: labels[axes[0]] for label, (axes, _) in pairs if axes}


def own(
    exponent: jax.Array, labels: Labels, shape, blocks: Blocks | None, split: Split, parts: Mapping[int, int]
) -> jax.Array:
    """A device's exponents, of those that a split by `counting` leaves it. It cuts by all other axes.

    Arguments:
        exponent: int32, with three axes behind those that vmap added.
        labels, shape: of the whole tensor.
        blocks: the size of blocks; the exponent is returned as it is if None.
        split, parts: how labels are split, and over how many devices.
    """
    for axis, before, label in _inner_splits(exponent.ndim, labels, shape, blocks, split, parts):
        size = exponent.shape[axis] // (before * parts[label])
        leading, trailing = exponent.shape[:axis], exponent.shape[axis + 1 :]
        apart = exponent.reshape(*leading, before, size * parts[label], *trailing)
        cut = lax.dynamic_slice_in_dim(apart, lax.axis_index(split[label]) * size, size, axis + 1)
        exponent = cut.reshape(*leading, before * size, *trailing)
    return exponent


def together(
    exponent: jax.Array, labels: Labels, shape, blocks: Blocks | None, split: Split, parts: Mapping[int, int]
) -> jax.Array:
    """The exponents that a split by `counting` leaves a device, from its own and those of others."""
    inner = list(_inner_splits(exponent.ndim, labels, shape, blocks, split, parts))
    for axis, before, label in reversed(inner):
        leading, trailing = exponent.shape[:axis], exponent.shape[axis + 1 :]
        apart = exponent.reshape(*leading, before, exponent.shape[axis] // before, *trailing)
        apart = lax.all_gather(apart, split[label], axis=axis + 1, tiled=True)
        exponent = apart.reshape(*leading, before * apart.shape[axis + 1], *trailing)
    return exponent


def _inner_splits(rank: int, labels: Labels, shape, blocks: Blocks | None, split: Split, parts):
    """(exponent's axis, extent on a device of the axes before, label) of each split axis but the outermost,
    outer ones first."""
    mapped = rank - 3
    for axis, (axes, _) in zip((rank - 2, rank - 1), _counting(shape, mapped, blocks), strict=False):
        before = 1
        for position, counted in enumerate(axes):
            label = labels[counted]
            if position and label in split:
                yield axis, before, label
            before *= shape[counted] // parts.get(label, 1)


def _counting(shape, mapped: int, blocks: Blocks | None):
    """The axes that count a block's rows and its size along them, and those that count its columns. Axes of
    extent 1 do not count."""
    if blocks is None:
        return ()
    _, _, columns = blocks.view(shape[mapped:])
    block_rows, block_columns = blocks.size(shape[mapped:])
    first = len(shape)
    while first > mapped and math.prod(shape[first:]) != columns:
        first -= 1
    rows = range(mapped + 1, first)
    return tuple(
        (tuple(axis for axis in axes if shape[axis] > 1), size)
        for axes, size in ((rows, block_rows), (range(first, len(shape)), block_columns))
    )
