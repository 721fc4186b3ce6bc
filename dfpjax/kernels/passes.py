"""Bindings of the native passes over float32 activations: sums over all but the channels, a rectified sum,
the largest magnitude, quantization, maximum pooling, local response normalization.

For tests, each takes `isa`, the name of an instruction set path, and `threads`, the most threads to use. The
defaults are the best path and all threads. Results depend on neither.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.quantizer import Quantizer

Windows = tuple[int, int, int, int, int, int]
"""Window, stride and padding before the first pixel, of the height and then of the width."""


def moments(x: jax.Array, *, isa: str = "", threads: int = 0) -> tuple[jax.Array, ...]:
    """Sums, sums of squares, least and greatest values of the channels.

    Arguments:
        x: float32[groups, rows, channels].

    Returns:
        Four float32[groups, channels]. Blocks of 32 rows are summed in float32, and the blocks in float64.
        All four are NaN where a channel has a NaN.
    """
    groups, _, channels = x.shape
    results = [jax.ShapeDtypeStruct((groups, channels), jnp.float32)] * 4
    return tuple(call("dfpjax_moments_v1", results, isa, threads)(x))


def paired_sums(
    g: jax.Array, x: jax.Array, centre: jax.Array, *, isa: str = "", threads: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Sums of g and of g · (x − centre) of the channels.

    Arguments:
        g, x: float32[groups, rows, channels].
        centre: float32[groups, channels].

    Returns:
        Two float32[groups, channels], summed in the order of `moments`.
    """
    groups, _, channels = x.shape
    results = [jax.ShapeDtypeStruct((groups, channels), jnp.float32)] * 2
    return tuple(call("dfpjax_paired_sums_v1", results, isa, threads)(g, x, centre))


def rectified_sums(
    g: jax.Array, x: jax.Array, centre: jax.Array, scale: jax.Array, shift: jax.Array,
    *, isa: str = "", threads: int = 0,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The result of `paired_sums` with g set to zero where (x − centre) · scale + shift is not positive.

    The product and its addition to the shift are rounded once, as XLA does on CPUs.

    Arguments:
        g, x: float32[groups, rows, channels].
        centre, scale, shift: float32[groups, channels].

    Returns:
        Two float32[groups, channels].
    """
    groups, _, channels = x.shape
    results = [jax.ShapeDtypeStruct((groups, channels), jnp.float32)] * 2
    return tuple(call("dfpjax_rectified_sums_v1", results, isa, threads)(g, x, centre, scale, shift))


def masked_sums(x: jax.Array, positive: jax.Array, *, isa: str = "", threads: int = 0) -> jax.Array:
    """Sums of x over the channels where `positive` holds.

    Arguments:
        x: float32[groups, rows, channels].
        positive: bool of x's shape.

    Returns:
        float32[groups, channels], summed in the order of `moments`.
    """
    groups, _, channels = x.shape
    result = jax.ShapeDtypeStruct((groups, channels), jnp.float32)
    return call("dfpjax_masked_sums_v1", result, isa, threads)(x, positive)


def rectified_sum(
    x: jax.Array, residual: jax.Array, mean: jax.Array, scale: jax.Array, shift: jax.Array,
    *, masked: bool = True, isa: str = "", threads: int = 0,
) -> tuple[jax.Array, ...]:  # fmt: skip
    """y = max((x − mean) · scale + shift + residual, 0), the mask y > 0, and the extremes of y.

    The product and its addition to the shift are rounded once, as XLA does on CPUs.

    Arguments:
        x, residual: float32[groups, rows, channels].
        mean, scale, shift: float32[groups, channels].
        masked: whether to return the mask.

    Returns:
        y as float32 of x's shape; y > 0 as bool of that shape, or bool[0] without `masked`; the least and the
        greatest y of each channel as float32[groups, channels], NaN where a channel has a NaN.
    """
    groups, _, channels = x.shape
    extreme = jax.ShapeDtypeStruct((groups, channels), jnp.float32)
    positive = jax.ShapeDtypeStruct(x.shape if masked else (0,), jnp.bool_)
    results = [jax.ShapeDtypeStruct(x.shape, jnp.float32), positive, extreme, extreme]
    return tuple(call("dfpjax_rectified_sum_v1", results, isa, threads)(x, residual, mean, scale, shift))


def largest_magnitude(x: jax.Array, *, isa: str = "", threads: int = 0) -> jax.Array:
    """The bits of max|x| as int32[], or those of an infinity or a NaN if x has one. `x` is float32."""
    result = jax.ShapeDtypeStruct((), jnp.int32)
    return call("dfpjax_largest_magnitude_v1", result, isa, threads)(x)


def quantize(x: jax.Array, bits: int, *, isa: str = "", threads: int = 0) -> tuple[jax.Array, jax.Array]:
    """Mantissas of `bits` bits, rounded to nearest even, as int16 of x's shape, and the exponent as int32[].

    Bit-identical to `dfpjax.numbers.format.quantize`; `x` is float32.
    """
    results = [jax.ShapeDtypeStruct(x.shape, jnp.int16), jax.ShapeDtypeStruct((), jnp.int32)]
    mantissa, exponent = call("dfpjax_quantize_v1", results, isa, threads, bits=np.int64(bits))(x)
    return mantissa, exponent


def quantize_blocks(
    x: jax.Array,
    quantizer: Quantizer,
    blocks: Blocks,
    *,
    mapped: int = 0,
    seeds: jax.Array | None = None,
    isa: str = "",
    threads: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Mantissas and exponents of tensors in blocks, in one pass over memory.

    Bit-identical to `dfpjax.numbers.format.quantize`.

    Arguments:
        x: float32.
        quantizer: bits and rounding.
        blocks: the size of blocks.
        mapped: number of leading axes that vmap added.
        seeds: uint32[examples], a seed for each index of the mapped axes; None for stochastic rounding by
            each number's own bits, and for other roundings.

    Returns:
        int16 of x's shape, and int32[*mapped axes, *blocks.counts(the other axes)].
    """
    leading, example = x.shape[:mapped], x.shape[mapped:]
    results = [
        jax.ShapeDtypeStruct(x.shape, jnp.int16),
        jax.ShapeDtypeStruct((*leading, *blocks.counts(example)), jnp.int32),
    ]
    attributes = {
        "bits": np.int64(quantizer.bits),
        "rounding": quantizer.rounding,
        "view": view_of(x.shape, blocks, mapped),
        "block": block_of(x.shape, blocks, mapped),
    }
    seeds = jnp.zeros(0, jnp.uint32) if seeds is None else seeds
    mantissa, exponent = call("dfpjax_quantize_blocks_v1", results, isa, threads, **attributes)(x, seeds)
    return mantissa, exponent


def view_of(shape: tuple[int, ...], blocks: Blocks, mapped: int) -> np.ndarray:
    """The attribute that says how a pass sees a tensor as [examples, outer, rows, columns].

    For a symbolic extent it has −mask, where the bits of the mask are the axes whose product the extent is:
    the pass looks at its operand.
    """
    axes = [range(mapped), *(range(a.start + mapped, a.stop + mapped) for a in blocks.axes(shape[mapped:]))]
    sizes = (math.prod(shape[axis] for axis in counted) for counted in axes)
    return np.int64([*map(_extent, sizes, axes)])


def block_of(shape: tuple[int, ...], blocks: Blocks, mapped: int) -> np.ndarray:
    """The attribute that gives the rows and columns of a block, with −mask likewise for a block that has all
    columns."""
    example = shape[mapped:]
    rows, columns = blocks.size(example)
    counted = blocks.axes(example)[2]
    return np.int64([rows, _extent(columns, range(counted.start + mapped, counted.stop + mapped))])


def _extent(size, counted: range) -> int:
    return size if isinstance(size, int) else -sum(1 << axis for axis in counted)


def max_pool(
    x: jax.Array, out_shape: tuple[int, ...], windows: Windows, *, isa: str = "", threads: int = 0
) -> jax.Array:
    """Maxima over windows.

    Arguments:
        x: float32[images, height, width, channels].
        out_shape: shape of the result, in the same order; every window must contain a pixel of the image.

    Returns:
        float32 of `out_shape`; NaN where a window contains one.
    """
    result = jax.ShapeDtypeStruct(out_shape, jnp.float32)
    return call("dfpjax_max_pool_v1", result, isa, threads, windows=np.asarray(windows, np.int64))(x)


def max_pool_gradient(
    g: jax.Array, x: jax.Array, windows: Windows, *, isa: str = "", threads: int = 0
) -> jax.Array:
    """The gradient of `max_pool` by x, where g is the cotangent of its result.

    Among equal pixels of a window the first one gets the gradient.

    Returns:
        float32 of x's shape.
    """
    result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    windows = np.asarray(windows, np.int64)
    return call("dfpjax_max_pool_gradient_v1", result, isa, threads, windows=windows)(g, x)


def local_response(
    x: jax.Array, *, reach: int, k: float, alpha: float, isa: str = "", threads: int = 0
) -> jax.Array:
    """x / (k + alpha · s) ** 0.75, where s is the sum of x² over the channels at most `reach` away.

    Arguments:
        x: float32[rows, channels].
        reach: number of channels on either side, from 0 to the number of channels.

    Returns:
        float32 of x's shape.
    """
    result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return call("dfpjax_local_response_v1", result, isa, threads, **_response(reach, k, alpha))(x)


def local_response_gradient(
    g: jax.Array, x: jax.Array, *, reach: int, k: float, alpha: float, isa: str = "", threads: int = 0
) -> jax.Array:
    """The gradient of `local_response` by x, where g is the cotangent of its result.

    Returns:
        float32 of x's shape.
    """
    result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    response = _response(reach, k, alpha)
    return call("dfpjax_local_response_gradient_v1", result, isa, threads, **response)(g, x)


def _response(reach: int, k: float, alpha: float) -> dict:
    """The attributes of both handlers."""
    return {"reach": np.int64(reach), "k": np.float32(k), "alpha": np.float32(alpha)}


def call(target: str, results, isa: str, threads: int, **attributes):
    """The function that calls a pass with its operands."""
    attributes |= {"isa": isa, "threads": np.int64(threads)}
    return lambda *operands: jax.ffi.ffi_call(target, results)(*operands, **attributes)
