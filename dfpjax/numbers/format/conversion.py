"""`quantize` and `dequantize`, which convert between floating-point arrays and `DFPArray`s."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _checks
from dfpjax._compat import partitions
from dfpjax.numbers.format.array import DFP32Array, DFPArray
from dfpjax.numbers.format.blocks import Blocks, expanded, tiled
from dfpjax.numbers.format.explicit import automatic, with_partitions
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.numbers.format.quantizer import Quantizer


def quantize(
    x,
    bits: int = 16,
    rounding: str = "nearest",
    seed: int | jax.Array | None = None,
    axis: int | Sequence[int] | None = None,
    blocks: Blocks | None = None,
) -> DFPArray:
    """Convert an array to dynamic fixed point (Das et al., 2018, §3). The whole tensor has one exponent or,
    as the paper's conclusion announces for future work, each slice or each block has its own.

    E = floor(log2(max|x|)) − (bits − 2), exactly, from x itself; mantissa = round(x · 2^−E), clamped to
    ±(2^(bits−1) − 1). An all-zero tensor gets the smallest exponent. A NaN or infinity anywhere makes the
    whole tensor NaN. The derivative is the identity (straight-through). With `axis` or `blocks`, all this
    holds for each slice or block separately.

    Arguments:
        x: real floating-point array of any shape. Other dtypes are first converted to float32. float64 is
            rounded to float32's precision but keeps its range.
        bits: bits of a mantissa, its sign included, from 2 to 16.
        rounding: "nearest" (ties to even), "stochastic", "biased" (up if one of the two highest dropped
            bits is set) or "truncate" (toward zero). All modes act on magnitudes.
        seed: for stochastic rounding, an integer (taken modulo 2^32) or a key of `jax.random.key`. Required
            for "stochastic", refused otherwise.
        axis: one or several axes along which each slice has its own exponent; negative axes count from the
            end. The exponent then has x's rank, with extent 1 on all other axes. None for one exponent, a
            scalar.
        blocks: the size of blocks that have an exponent each, small pieces of x's memory layout, such as
            `dfpjax.Blocks()`. The result's `block_exponent` then has shape `blocks.counts(x.shape)`. Excludes
            `axis`.

    Returns:
        DFPArray of x's shape.

    Raises:
        TypeError: if `x` is not a real floating-point array, `axis` is not made of integers, `blocks` is not
            a `Blocks`, or `seed` is neither an integer nor a key.
        ValueError: if `bits`, `rounding`, `seed` or `axis` does not follow the rules above, or `axis` and
            `blocks` are both given.
    """
    if isinstance(x, DFPArray | DFP32Array):
        raise TypeError(f"quantize: x is a {type(x).__name__} already; call x.dequantize() first")
    x = _checks.real_array("quantize", "x", x)
    quantizer = checked_quantizer("quantize", bits, rounding)
    seed = rounding_seed("quantize", rounding, seed)
    slice_axes = () if axis is None else tuple(sorted(_checks.axes("quantize", "axis", axis, x.ndim)))
    if blocks is not None:
        _checks.instance("quantize", "blocks", blocks, Blocks, "a dfpjax.Blocks or None")
        if axis is not None:
            raise ValueError(
                f"quantize: axis and blocks exclude each other, got axis={axis!r} and blocks={blocks}; "
                "give one of them"
            )
    owners = blocks if axis is None else slice_axes
    if x.dtype != np.float64:
        values, exponent = _quantize(quantizer, owners, x, seed)
    elif isinstance(x, jax.Array):
        values, exponent = _quantize_wide(quantizer, owners, x, seed)
    else:
        scaled, power = _into_range(np, x, owners)
        values, exponent = _quantize(quantizer, owners, jnp.asarray(scaled, jnp.float32), seed)
        exponent = exponent + power
    return DFPArray.of(values, exponent.reshape(()) if owners is None else exponent, blocks)


_Owners = tuple[int, ...] | Blocks | None
"""What has an exponent of its own: each slice along these axes, each block, or the whole tensor."""


def _quantize(quantizer: Quantizer, owners: _Owners, x: jax.Array, seed: jax.Array | None):
    if isinstance(owners, Blocks):
        return quantize_array(x.astype(jnp.float32), quantizer, blocks=owners, seed=seed)
    return quantize_array(x.astype(jnp.float32), quantizer, slice_axes=owners or (), seed=seed)


def _into_range(numpy, x, owners: _Owners):
    """float64 numbers x as (y, power) with x = y · 2^power, where the largest magnitude of each slice or
    block of y is near 1. `power` has the shape of the exponent. x may exceed float32's range, which an
    exponent covers. `numpy` is `numpy` or `jax.numpy`."""
    if isinstance(owners, Blocks):
        largest = numpy.max(tiled(numpy.abs(x), owners), axis=(2, 4), initial=0)
    else:
        shared = tuple(axis for axis in range(x.ndim) if axis not in (owners or ()))
        largest = numpy.max(numpy.abs(x), axis=shared, keepdims=True, initial=0)
    power = numpy.where(numpy.isfinite(largest) & (largest > 0), numpy.frexp(largest)[1], 0)
    power = power.astype(np.int32)
    own = expanded(power, x.shape, owners) if isinstance(owners, Blocks) else power
    return numpy.ldexp(x, -own), power


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _quantize_wide(quantizer: Quantizer, owners: _Owners, x: jax.Array, seed: jax.Array | None):
    into_range = functools.partial(_into_range, jnp, owners=owners)
    if isinstance(owners, Blocks):  # JAX cannot tell how their exponents are split on a mesh
        sharding = jax.typeof(x).sharding
        outer = partitions(sharding)[0] if x.ndim > 1 else None
        into_range = automatic(into_range, (sharding, with_partitions(sharding, (outer, None, None))))
    scaled, power = into_range(x)
    values, exponent = _quantize(quantizer, owners, scaled, seed)
    return values, exponent + power


@_quantize_wide.defjvp
def _quantize_wide_jvp(quantizer, owners, primals, tangents):
    values, exponent = _quantize_wide(quantizer, owners, *primals)
    no_tangent = np.zeros(exponent.shape, jax.dtypes.float0)
    return (values, exponent), (tangents[0].astype(jnp.float32), no_tangent)  # straight-through


def checked_quantizer(function: str, bits: int, rounding: str) -> Quantizer:
    """A quantizer with these fields, or an error that names the function."""
    try:
        return Quantizer(bits=bits, rounding=rounding)
    except ValueError as error:
        raise ValueError(f"{function}: {error}") from None


def rounding_seed(function: str, rounding: str, seed: int | jax.Array | None) -> jax.Array | None:
    """The `seed` argument of a function that rounds, as uint32. Stochastic rounding requires a seed, other
    modes refuse one."""
    if (seed is None) == (rounding == "stochastic"):
        raise ValueError(
            f'{function}: rounding="stochastic" needs a seed'
            if seed is None
            else f'{function}: seed is for rounding="stochastic", which this is not (rounding={rounding!r})'
        )
    if seed is None:
        return None
    wanted = "an integer, an integer array without axes, or a key of jax.random.key"
    if not isinstance(seed, jax.Array | np.ndarray):
        return jnp.uint32(_checks.integer(function, "seed", seed, wanted) & 0xFFFFFFFF)
    is_key = jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    if seed.ndim or not (is_key or jnp.issubdtype(seed.dtype, jnp.integer)):
        raise _checks.wrong_type(function, "seed", wanted, seed)
    return jax.random.bits(seed, dtype=jnp.uint32) if is_key else jnp.asarray(seed).astype(jnp.uint32)


def dequantize(x: DFPArray | DFP32Array) -> jax.Array:
    """`x.dequantize()`: a float32 array of x's shape. Values beyond float32's range become infinite.

    Raises:
        TypeError: if `x` is not a tensor in dynamic fixed point.
    """
    wanted = "a DFPArray or DFP32Array, as dfpjax.quantize gives it"
    return _checks.instance("dequantize", "x", x, DFPArray | DFP32Array, wanted).dequantize()
