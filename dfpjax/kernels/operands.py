"""Bindings of the native passes that compute a tensor and write it as an operand at once: its mantissas, and
the exponents of its blocks. They have the bits of `passes.quantize_blocks` of that tensor.

fma(a, b, c) is a · b + c, rounded once, as XLA computes such expressions on CPUs. `isa` and `threads` are
those of `passes`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.kernels import passes
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.quantizer import Quantizer

RECTIFIED_OPERAND = "dfpjax_rectified_operand_v1"
"""The target of `rectified_operand`."""
POOLED_OPERAND = "dfpjax_pooled_operand_v1"
"""The target of `pooled_operand`."""


def rectified_operand(
    x: jax.Array,
    shift: jax.Array,
    *,
    mean: jax.Array | None = None,
    scale: jax.Array | None = None,
    residual: jax.Array | None = None,
    quantizer: Quantizer,
    blocks: Blocks,
    masked: bool = False,
    isa: str = "",
    threads: int = 0,
) -> tuple[jax.Array, ...]:
    """Quantize y = max(fma(x − mean, scale, shift), 0), or max(fma(x − mean, scale, shift) + residual, 0).

    Arguments:
        x: float32[..., channels].
        shift: float32[channels].
        mean, scale: float32[channels]; None stands for zeros and ones.
        residual: float32 of x's shape, or None.
        quantizer: bits and rounding; random bits are those of the numbers.
        blocks: the size of blocks.
        masked: whether to return the mask y > 0.

    Returns:
        The mantissas as int16 of x's shape; the exponents as int32[*blocks.counts(x.shape)]; y > 0 as bool of
        x's shape, or bool[0] without `masked`. With a residual also y as float32 of x's shape, and the least
        and the greatest y of each channel as float32[channels], NaN where a channel has a NaN. If x has no
        numbers, these are infinity and 0.

    Raises:
        jax.errors.JaxRuntimeError: when it runs, if an operand has another size; the message names it.
    """
    given = residual is not None
    full, extreme = (x.shape, x.shape[-1:]) if given else ((0,), (0,))
    more = [
        jax.ShapeDtypeStruct(full, jnp.float32),
        jax.ShapeDtypeStruct(x.shape if masked else (0,), jnp.bool_),
        *[jax.ShapeDtypeStruct(extreme, jnp.float32)] * 2,
    ]
    call = _call(RECTIFIED_OPERAND, x.shape, quantizer, blocks, isa, threads, more)
    mantissas, exponents, y, positive, *extremes = call(x, shift, *map(_or_empty, (mean, scale, residual)))
    return mantissas, exponents, positive, *((y, *extremes) if given else ())


def gradient_operand(
    g: jax.Array,
    x: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    slope: jax.Array,
    *,
    mean: jax.Array | None = None,
    shift: jax.Array | None = None,
    quantizer: Quantizer,
    blocks: Blocks,
    isa: str = "",
    threads: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Quantize the gradient of a normalization, fma(slope, x, fma(g, scale, offset)).

    Arguments:
        g, x: float32[..., channels].
        scale, offset, slope: float32[channels].
        mean, shift: float32[channels], or both None. If they are given, g counts as zero where
            fma(x − mean, scale, shift) is not positive.
        quantizer: bits and rounding; random bits are those of the numbers.
        blocks: the size of blocks.

    Returns:
        The mantissas as int16 of x's shape, and the exponents as int32[*blocks.counts(x.shape)].

    Raises:
        jax.errors.JaxRuntimeError: when it runs, if an operand has another size; the message names it.
    """
    call = _call("dfpjax_gradient_operand_v1", x.shape, quantizer, blocks, isa, threads)
    return tuple(call(g, x, scale, offset, slope, *map(_or_empty, (mean, shift))))


def masked_operand(
    x: jax.Array,
    positive: jax.Array,
    *,
    quantizer: Quantizer,
    blocks: Blocks,
    isa: str = "",
    threads: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Quantize x where `positive` holds, and zero elsewhere.

    Arguments:
        x: float32[..., channels].
        positive: bool of x's shape.
        quantizer: bits and rounding; random bits are those of the numbers.
        blocks: the size of blocks.

    Returns:
        The mantissas as int16 of x's shape, and the exponents as int32[*blocks.counts(x.shape)].

    Raises:
        jax.errors.JaxRuntimeError: when it runs, if an operand has another size; the message names it.
    """
    call = _call("dfpjax_masked_operand_v1", x.shape, quantizer, blocks, isa, threads)
    return tuple(call(x, positive))


def pooled_operand(
    x: jax.Array,
    shape: tuple[int, ...],
    windows: passes.Windows,
    *,
    quantizer: Quantizer,
    blocks: Blocks,
    kept: bool = False,
    isa: str = "",
    threads: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Quantize y = `passes.max_pool(x, shape, windows)`.

    Arguments:
        x: float32[images, height, width, channels].
        shape: y's shape, in the same order; every window must contain a pixel of the image.
        quantizer: bits and rounding; random bits are those of the numbers.
        blocks: the size of blocks.
        kept: whether to return y, too.

    Returns:
        The mantissas as int16 of y's shape, the exponents as int32[*blocks.counts(shape)], and y as float32,
        or float32[0] unless `kept`.

    Raises:
        jax.errors.JaxRuntimeError: when it runs, if a shape or a window is wrong; the message names it.
    """
    y = jax.ShapeDtypeStruct(shape if kept else (0,), jnp.float32)
    call = _call(
        POOLED_OPERAND, shape, quantizer, blocks, isa, threads, [y], windows=np.asarray(windows, np.int64)
    )
    return tuple(call(x))


def _call(
    target: str, shape: tuple[int, ...], quantizer: Quantizer, blocks: Blocks, isa: str, threads: int,
    more: Sequence[jax.ShapeDtypeStruct] = (), **attributes,
) -> Callable:  # fmt: skip
    """The call of a pass that writes an operand of this shape, and `more` results."""
    operand = [
        jax.ShapeDtypeStruct(shape, jnp.int16),
        jax.ShapeDtypeStruct(blocks.counts(shape), jnp.int32),
    ]
    attributes |= operand_attributes(shape, quantizer, blocks)
    return passes.call(target, [*operand, *more], isa, threads, **attributes)


def operand_attributes(shape: tuple[int, ...], quantizer: Quantizer, blocks: Blocks) -> dict:
    """The attributes of a call that writes an operand of this shape."""
    return {
        "bits": np.int64(quantizer.bits),
        "rounding": quantizer.rounding,
        "view": passes.view_of(shape, blocks, 0)[1:],
        "block": passes.block_of(shape, blocks, 0),
    }


def _or_empty(x: jax.Array | None) -> jax.Array:
    return jnp.zeros(0, jnp.float32) if x is None else x
