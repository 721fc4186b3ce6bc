"""How contractions, quantization and passes may be split between devices.

The layout of a contraction is that of an einsum:

- An axis of the output outside of windows (batch, features, groups, axes of vmap) is split between the
  devices, and each computes its own part.
- A contracted axis is split as well. The devices' partial sums are then added in float32, as data-parallel
  training adds weight gradients.
- An axis of a window stays whole on every device, and so does an axis that the devices do not divide.
- Operands in blocks are split where every shard consists of whole blocks (`partitioning.blocks`). Otherwise
  the axis stays whole, and what is split along it is gathered.

Every device makes a plan for its shard. The shared exponents are maxima over the whole tensor or over whole
blocks, so the mantissas have the same bits as on one device. But tiles, splits and blocks of the contracted
index start at the beginning of each shard, and a split contraction adds its parts in another order. So a
result differs from one device's by the rounding of float32 sums, and with operands in blocks, by that of
mantissas whose exponents are aligned with others'. It has the same bits if no contracted axis is split, the
output's shards begin at tiles and the plans have as many splits. The axes of vmap have independent problems,
so splitting them changes no bits.

Passes are split along all axes but those of windows. What they sum or compare over rows, the devices put
together.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.operations.partitioning.layout import Axes, Labels, Layout, OfBlocks, Shape, Total

# --- contractions -----------------------------------------------------------------------------------


def contraction_layout(counted: Total | None = None) -> Callable[..., Layout]:
    """The layout of (lhs, lhs_exponent, rhs, rhs_exponent) -> (out,) by a `contraction` of operands in
    `blocks`. With `counted` there is a second result, a measure of each example of vmap and possibly more
    axes behind, which the devices put together that way."""

    def layout(*operands, contraction: Contraction, blocks: Sequence[Blocks | None], **_) -> Layout:
        fresh = itertools.count(-1, -1)
        found: list[Axes] = []
        for position, labels in enumerate((contraction.lhs, contraction.rhs)):
            x, exponent = operands[2 * position : 2 * position + 2]
            found.append(Axes(labels=_of_sizes(labels, x.shape, fresh)))
            if (size := blocks[position]) is None:
                found.append(Axes(labels=_of_sizes(labels, exponent.shape, fresh)))
            else:
                mapped = len(contraction.mapped_axes(labels))
                found.append(_exponents(labels, x.shape, mapped, size, fresh, exponent.shape))
        windowed = {label for w in contraction.windows for label in (w.lhs, w.rhs, w.out)}
        results = [Axes(labels=contraction.out, total="sum")]
        if counted is not None:
            # Chain lengths have an axis of their own.
            behind = [next(fresh)] if counted == "mean" else []
            results.append(Axes(labels=(*contraction.mapped, *behind), total=counted))
        return Layout(operands=tuple(found), results=tuple(results), whole=frozenset(windowed))

    return layout


def contraction_of_shard(params: dict, results) -> dict:
    """The parameters of the contraction that a device computes."""
    return {**params, "contraction": replace(params["contraction"], out_shape=results[0].shape)}


def _of_sizes(labels: Labels, shape: Shape, fresh) -> Labels:
    """Labels of an operand's axes. One of size 1 has a negative label of its own: that of an exponent does
    not have the label's size."""
    return tuple(label if size > 1 else next(fresh) for label, size in zip(labels, shape, strict=True))


def _exponents(
    labels: Labels, shape: Shape, mapped: int, size: Blocks, fresh, exponent: Shape | None = None
) -> Axes:
    """The axes of the exponents of a tensor in blocks, whose first `mapped` axes vmap added."""
    outer = labels[mapped : mapped + 1] if len(shape) - mapped > 1 else (next(fresh),)
    found = (*labels[:mapped], *outer, next(fresh), next(fresh))
    if exponent is not None:
        found = (*_of_sizes(found[:-2], exponent[:-2], fresh), *found[-2:])
    return Axes(labels=found, exponents=OfBlocks(labels=labels, shape=shape, size=size))


# --- quantization and passes ------------------------------------------------------------------------


def quantization_layout(x, *, blocks: Blocks, mapped: int, **_) -> Layout:
    """The layout of x -> (mantissas, exponents), in blocks."""
    labels = tuple(range(x.ndim))
    exponents = _exponents(labels, x.shape, mapped, blocks, itertools.count(-1, -1))
    return Layout(operands=(Axes(labels=labels),), results=(Axes(labels=labels), exponents))


def whole_tensor_layout(x, **_) -> Layout:
    """The layout of x -> (the greatest number of all,)."""
    return Layout(operands=(Axes(labels=tuple(range(x.ndim))),), results=(Axes(labels=(), total="greatest"),))


Kind = Literal["rows", "empty"] | Total | Blocks
"""What a result of a pass is: a tensor like the first operand; an empty array; what there is for each mapped
index and channel, put together by the devices; or the exponents of the first operand's blocks."""


def rows_layout(x, *others, results: Sequence[Kind], mapped: int = 0) -> Layout:
    """The layout of a pass over the rows of tensors [mapped axes, …, channels].

    Arguments:
        x, others: the operands' types. They have x's shape, or one number for each mapped index and channel,
            or are empty.
    """
    labels, fresh = tuple(range(x.ndim)), itertools.count(-1, -1)
    of_channels = (*labels[:mapped], *labels[-1:])

    def operand(v) -> Axes:
        return Axes(labels=_of_sizes(labels if v.ndim == x.ndim else of_channels, v.shape, fresh))

    def result(kind: Kind) -> Axes:
        if isinstance(kind, Blocks):
            return _exponents(labels, x.shape, mapped, kind, fresh)
        match kind:
            case "rows":
                return Axes(labels=labels)
            case "empty":
                return Axes(labels=(next(fresh),))
        return Axes(labels=of_channels, total=kind)

    operands = (Axes(labels=labels), *map(operand, others))
    return Layout(operands=operands, results=tuple(map(result, results)))


def pooling_layout(*operands, out_shape: Shape, results: Sequence[Literal["in", "out", "empty"] | Blocks]):
    """The layout of a pass over windows of images in NHWC.

    Arguments:
        operands: types of images, pooled or not.
        out_shape: that of pooled images.
        results: whether each is like the images before pooling, after it, or empty, or the exponents of
            pooled images.
    """
    before, after, fresh = (0, 1, 2, 3), (0, 4, 5, 3), itertools.count(-1, -1)

    def result(kind) -> Axes:
        if isinstance(kind, Blocks):
            return _exponents(after, out_shape, 0, kind, fresh)
        return Axes(labels={"in": before, "out": after}.get(kind) or (next(fresh),))

    found = (*[Axes(labels=after)] * (len(operands) - 1), Axes(labels=before))  # the images are the last
    whole = frozenset((1, 2, 4, 5))
    return Layout(operands=found, results=tuple(map(result, results)), whole=whole)
