"""The statistics of a layer that `with_statistics` returns, and their formulas (after Das et al., 2018,
§3)."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.insight._statistics_table import statistics_tables
from dfpjax.numbers.format.blocks import Blocks, of_elements
from dfpjax.numbers.format.scaling import (
    MIN_FLOAT_EXPONENT,
    NONFINITE_THRESHOLD,
    power_of_two,
    scaled_down,
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["exponent", "rms_over_max", "sqnr_db", "zeros", "clamped"],
    meta_fields=["bits"],
)
@dataclass(frozen=True, kw_only=True)
class OperandStatistics:
    """How well dynamic fixed point suits one tensor. A pytree of arrays: scalars, with leading axes where
    `vmap` or `scan` adds them.

    All floats are NaN for a tensor that has a NaN or an infinity, or that was not computed.
    """

    exponent: jax.Array
    """int32: the shared exponent; the largest one where each slice or block has its own."""

    rms_over_max: jax.Array
    """float32: root mean square divided by largest magnitude. Far below 1 where outliers take up the
    range."""

    sqnr_db: jax.Array
    """float32: signal to quantization noise, 10 · log10(Σx² / Σ(x − q)²); inf if nothing is lost."""

    zeros: jax.Array
    """float32: share of the nonzero values that are rounded to zero."""

    clamped: jax.Array
    """float32: share of the mantissas at the largest magnitude, 2^(bits−1) − 1."""

    bits: int
    """Bits of a mantissa, its sign included; not an array."""


class PerPass(NamedTuple):
    """One measurement for each pass of a layer; None where the program does not contain it or hides it."""

    fprop: jax.Array | dict[str, jax.Array] | None = None
    """Of the operation itself."""

    dgrad: jax.Array | dict[str, jax.Array] | None = None
    """Of the gradient with respect to `input`."""

    wgrad: jax.Array | dict[str, jax.Array] | None = None
    """Of the gradient with respect to `weight`."""


_NOT_MEASURED = PerPass()


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "input", "weight", "output_gradient", "error", "dgrad_error", "wgrad_error", "chains", "saturated",
        "transformed_sqnr_db",
    ],
    meta_fields=[],
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """One layer: a convolution or dot product with its gradients.

    None stands for what the program does not contain or hides. Errors come from the shadow mode, as float32:
    ‖result − reference‖ / ‖reference‖, where the reference is computed in float32 on the operands before
    quantization.
    """

    input: OperandStatistics | None = None
    """The left operand."""

    weight: OperandStatistics | None = None
    """The right operand."""

    output_gradient: OperandStatistics | None = None
    """The cotangent of the layer's output, where the program contains its backward pass."""

    error: jax.Array | None = None
    """Of the operation itself."""

    dgrad_error: jax.Array | None = None
    """Of the gradient with respect to `input`."""

    wgrad_error: jax.Array | None = None
    """Of the gradient with respect to `weight`."""

    chains: PerPass = _NOT_MEASURED
    """float32[8]: the chain lengths that certified accumulation chose, as the shares of multiply-accumulates
    in chains of 256, 128, 64, 32, 16, 8, 4 and 2 products. They add up to 1. None with a `FixedChain`.
    With a Winograd algorithm they are those of its transformed products."""

    saturated: PerPass = _NOT_MEASURED
    """int32: the number of saturated chains of a `FixedChain`, at most 2³¹ − 1; −1 where the operation was
    not computed. None with certified accumulation."""

    transformed_sqnr_db: PerPass = _NOT_MEASURED
    """By the names of the pass's two operands ("input", "weight", "output_gradient"), float32: signal to
    quantization noise of the operand as a Winograd algorithm transforms it, 10 · log10(Σv² / Σ(v − q)²). v
    are the values that the algorithm quantizes anew: those of all points of its tiles, transformed in float32
    from the operand's mantissas, normalization included. So this says what is lost in addition to the
    operand's `sqnr_db`. The sums are over a sample of the rows that have an exponent for each point: all of
    them or, spread evenly, 64. A row is a tile and up to 256 of its channels; of the weight, an output
    channel of the pass and as many of its inputs; in wgrad, a channel and up to 128 tiles. None for a pass
    that is computed product by product."""

    def __str__(self) -> str:
        return statistics_tables({"": self})


class Statistics(dict[str, LayerStatistics]):
    """A layer's statistics by its name: a dict that prints as a table, as `explain`'s report does.

    A pytree, as any dict: what `jit`, `vmap` or `scan` return of it is one again.
    """

    def __repr__(self) -> str:
        return statistics_tables(self)

    __str__ = __repr__


def _with_keys(statistics: Statistics) -> tuple[list, tuple[str, ...]]:
    names = tuple(sorted(statistics))  # as JAX sorts those of a dict
    return [(jax.tree_util.DictKey(name), statistics[name]) for name in names], names


jax.tree_util.register_pytree_with_keys(
    Statistics, _with_keys, lambda names, layers: Statistics(zip(names, layers, strict=True))
)


def operand_statistics(
    x: jax.Array, mantissa: jax.Array, exponent: jax.Array, *, bits: int, blocks: Blocks | None = None
) -> OperandStatistics:
    """The statistics of a tensor x that was quantized to mantissa · 2^exponent.

    Arguments:
        x: float32.
        mantissa: int16 of x's shape.
        exponent: int32, broadcastable against x; with blocks as `quantize_array` returns it.
        bits: bits of a mantissa.
        blocks: the size of blocks that have an exponent each, or None.
    """
    # An empty tensor has no block.
    largest_exponent = jnp.max(exponent) if exponent.size else jnp.int32(MIN_FLOAT_EXPONENT - (bits - 2))
    if blocks is not None:
        exponent = of_elements(exponent, x.shape, blocks)
    # In units of the last place nothing overflows, and subnormals, which XLA flushes to zero, stay visible.
    in_ulps = scaled_down(x, exponent)
    m = mantissa.astype(jnp.float32)
    noise = in_ulps - m
    values = in_ulps
    if exponent.size > 1:  # each slice or block has its own unit; one too small to matter may vanish
        unit = power_of_two(jnp.maximum(exponent - largest_exponent, -126))
        noise, values = noise * unit, values * unit
    is_nonzero = lax.bitcast_convert_type(x, jnp.int32) & np.int32(0x7FFFFFFF) != 0
    signal, lost = jnp.sum(values * values), jnp.sum(noise * noise)
    largest = jnp.max(jnp.abs(values), initial=0)
    nonzero = jnp.sum(is_nonzero, dtype=jnp.float32)
    zeros = jnp.sum(is_nonzero & (mantissa == 0), dtype=jnp.float32) / jnp.maximum(nonzero, 1)
    size = max(x.size, 1)
    clamped = jnp.sum(jnp.abs(m) == np.float32(2 ** (bits - 1) - 1), dtype=jnp.float32) / size
    rms_over_max = jnp.sqrt(signal / size) / jnp.where(largest == 0, 1, largest)
    sqnr_db = jnp.where(lost == 0, jnp.inf, 10 * jnp.log10(signal / lost))
    finite = largest_exponent < NONFINITE_THRESHOLD
    return OperandStatistics(
        exponent=largest_exponent,
        rms_over_max=jnp.where(finite, rms_over_max, jnp.nan),
        sqnr_db=jnp.where(finite, sqnr_db, jnp.nan),
        zeros=jnp.where(finite, zeros, jnp.nan),
        clamped=jnp.where(finite, clamped, jnp.nan),
        bits=bits,
    )


def relative_error(actual: jax.Array, expected: jax.Array) -> jax.Array:
    """‖actual − expected‖ / ‖expected‖; 0 where they are equal."""
    # Scaled by a power of two, so that no square overflows or vanishes.
    largest = jnp.max(jnp.abs(expected), initial=0)
    scale = jnp.where(largest > 0, jnp.exp2(-jnp.floor(jnp.log2(largest))), 1)
    actual, expected = actual * scale, expected * scale
    difference = jnp.sum(jnp.square(actual - expected))
    return jnp.where(difference == 0, 0, jnp.sqrt(difference / jnp.sum(jnp.square(expected))))
