"""The native passes that write an operand (`dfpjax.kernels.operands`) as computations of shards.

Values of channels are float32[channels], or empty where a pass does without.
"""

import jax

from dfpjax.kernels import operands, passes
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.quantizer import Quantizer
from dfpjax.operations.layouts import pooling_layout, rows_layout
from dfpjax.operations.partitioning import Layout, per_shard

RECTIFIED, GRADIENT = "rectified_operand", "gradient_operand"
MASKED, POOLED = "masked_operand", "pooled_operand"


def _rectified_layout(x, shift, *more, given, blocks: Blocks, masked: bool, **_) -> Layout:
    of_sum = ("rows", "least", "greatest") if "residual" in given else ()
    results = ("rows", blocks, "rows" if masked else "empty", *of_sum)
    return rows_layout(x, shift, *more, results=results)


@per_shard(RECTIFIED, _rectified_layout)
def _rectified(x, shift, *more, given, quantizer: Quantizer, blocks: Blocks, masked: bool):
    more = dict(zip(given, more, strict=True))
    return operands.rectified_operand(x, shift, **more, quantizer=quantizer, blocks=blocks, masked=masked)


def rectified_operand(
    x: jax.Array,
    shift: jax.Array,
    *,
    quantizer: Quantizer,
    blocks: Blocks,
    masked: bool = False,
    **more: jax.Array,
) -> tuple[jax.Array, ...]:
    """`dfpjax.kernels.operands.rectified_operand`; `more` are its mean and scale, and its residual."""
    params = {"given": tuple(more), "quantizer": quantizer, "blocks": blocks, "masked": masked}
    return _rectified(x, shift, *more.values(), **params)


def _operand_layout(x, *others, blocks: Blocks, **_) -> Layout:
    return rows_layout(x, *others, results=("rows", blocks))


@per_shard(GRADIENT, _operand_layout)
def gradient_operand(
    g: jax.Array, x: jax.Array, scale: jax.Array, offset: jax.Array, slope: jax.Array, *rectified: jax.Array,
    quantizer: Quantizer, blocks: Blocks,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """`dfpjax.kernels.operands.gradient_operand`; `rectified` are its mean and shift, if any."""
    of_mask = dict(zip(("mean", "shift"), rectified, strict=False))
    params = {"quantizer": quantizer, "blocks": blocks}
    return operands.gradient_operand(g, x, scale, offset, slope, **of_mask, **params)


@per_shard(MASKED, _operand_layout)
def masked_operand(x, positive, *, quantizer: Quantizer, blocks: Blocks):
    """`dfpjax.kernels.operands.masked_operand`."""
    return operands.masked_operand(x, positive, quantizer=quantizer, blocks=blocks)


def _pooled_layout(x, *, rows, blocks: Blocks, kept: bool, **_) -> Layout:
    results = ("out", blocks, "out" if kept else "empty")
    return pooling_layout(x, out_shape=(x.shape[0], *rows, x.shape[3]), results=results)


@per_shard(POOLED, _pooled_layout)
def pooled_operand(
    x, *, windows: passes.Windows, rows, quantizer: Quantizer, blocks: Blocks, kept: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`dfpjax.kernels.operands.pooled_operand` of images with so many rows and columns, `rows`."""
    shape = (x.shape[0], *rows, x.shape[3])
    return operands.pooled_operand(x, shape, windows, quantizer=quantizer, blocks=blocks, kept=kept)
