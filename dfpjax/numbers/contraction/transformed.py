"""The operands of a Winograd algorithm after their transform, and how much their quantization loses, in plain
JAX.

Operands are transformed in float32. Each transformed row (column) gets an exponent for each block of the
contracted index and each point of the tile, and 16-bit mantissas.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.contraction.alignment import ABSENT, present
from dfpjax.numbers.contraction.elements import Elements, Nest
from dfpjax.numbers.contraction.grid import Grid
from dfpjax.numbers.contraction.plan import BLOCK, TILES_BLOCK, Part
from dfpjax.numbers.contraction.running import MOST_BELOW
from dfpjax.numbers.contraction.tiles import Tiles
from dfpjax.numbers.contraction.transforms import TRANSFORMS, along_axes, normalizations
from dfpjax.numbers.format.scaling import NONFINITE_THRESHOLD, float_bits, power_of_two

LEAST_SCALE = 48
"""Terms whose exponent is more than this below the one of their row (column) count as zero."""

SAMPLE = 64
"""Rows (columns) in a block of an operand of which the loss is measured."""

_MOST = 32767


@dataclass(frozen=True, kw_only=True)
class Operand:
    """An operand before its transform. Its rows are columns in B."""

    elements: Nest
    """[g, rows, k, points]."""
    grid: Grid
    """Where its exponents lie."""
    transform: Callable[[jax.Array], jax.Array]
    normalization: np.ndarray
    """By what to multiply the transformed values, float32[points]."""
    block: int
    """Elements of a block of k."""


def operands_of(part: Part, grids: tuple[Grid, Grid]) -> tuple[Operand, Operand]:
    """A and B of a part with tiles."""
    tiles, transforms, axes = Tiles.of(part), TRANSFORMS[part.tile, part.taps], len(part.bounds)
    c = normalizations(part.points, axes)
    of_b = transforms.cotangent if part.tiles_along_k else transforms.kernel

    def operand(elements, grid, transform, normalization) -> Operand:
        return Operand(
            elements=elements,
            grid=grid,
            transform=functools.partial(along_axes, transform, axes=axes, cuts=part.points == 6),
            normalization=normalization,
            block=TILES_BLOCK if part.tiles_along_k else BLOCK,
        )

    of_a = operand(tiles.patches, grids[0], transforms.input, np.ones_like(c))
    return of_a, operand(tiles.taps, grids[1], of_b, c)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transformed:
    """An operand after its transform."""

    mantissas: jax.Array
    """int32[points, g, rows, blocks, 256]."""
    scale: jax.Array
    """float32[points, g, rows, blocks]: the mantissas' unit, as a multiple of 2^base."""
    base: jax.Array
    """int32[g, rows]."""
    lost: jax.Array
    """bool[g, rows]: whether an element is not finite."""


def transformed(operand: Operand, values: jax.Array, exponent: jax.Array) -> Transformed:
    """The transformed operand, of mantissas and exponents that are one-dimensional."""
    elements, block = operand.elements.elements(), operand.block
    g, rows, k, points = operand.elements.shape

    def in_blocks(x: jax.Array, padding: int) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -k % block), (0, 0)), constant_values=padding)
        return jnp.moveaxis(x.reshape(g, rows, -1, block, points), -1, 0)

    exponent = in_blocks(elements.take(exponent, ABSENT, operand.grid.index), ABSENT)
    x = _quantize(operand, in_blocks(elements.take(values), 0), exponent)
    mantissas = jnp.pad(x.mantissas, [(0, 0)] * 4 + [(0, BLOCK - block)])

    base = x.unit.max(axis=2)
    base = jnp.where(base == ABSENT, 0, base)
    below = base[:, :, None] - (x.unit + x.shift)
    takes_part = x.takes_part & (below <= LEAST_SCALE)
    scale = jnp.where(takes_part, power_of_two(-jnp.clip(below, -LEAST_SCALE, LEAST_SCALE)), 0.0)
    return Transformed(mantissas, scale, base, x.lost.any(axis=2))


class _Quantized(NamedTuple):
    """Rows in a block, [...], of transformed elements: values · 2^unit ≈ mantissas · 2^(unit + shift)."""

    values: jax.Array
    """float32[points, ..., block], with their normalization."""
    mantissas: jax.Array
    """int32[points, ..., block]."""
    shift: jax.Array
    """int32[points, ...]."""
    takes_part: jax.Array
    """bool[points, ...]: whether there is an exponent. Otherwise the mantissas are 0."""
    unit: jax.Array
    """int32[...]."""
    lost: jax.Array
    """bool[...]: whether an element is not finite."""


def _quantize(operand: Operand, mantissas: jax.Array, exponent: jax.Array) -> _Quantized:
    """Transform rows in a block, [points, ..., block], and quantize them. The exponent of an element that is
    missing is `ABSENT`."""
    exponent, not_finite = present(exponent)
    unit = exponent.max(axis=(0, -1))
    below = unit[..., None] - exponent
    takes_part = (exponent > ABSENT) & (below <= MOST_BELOW)
    power = jnp.where(takes_part, power_of_two(-jnp.clip(below, 0, MOST_BELOW)), 0.0)
    values = operand.transform(mantissas.astype(jnp.float32) * power)

    c = operand.normalization.reshape(-1, *[1] * unit.ndim)
    largest = jnp.abs(values).max(axis=-1) * c
    shift = ((float_bits(jnp.abs(largest)) + 256) >> 23) - 127 - 14
    takes_part = (largest != 0) & (shift >= -LEAST_SCALE)
    factor = c * power_of_two(-jnp.maximum(shift, -LEAST_SCALE))
    scaled = jnp.where(takes_part[..., None], values * factor[..., None], 0.0)
    quantized = jnp.clip(jnp.rint(scaled), -_MOST, _MOST).astype(jnp.int32)
    values = values * c[..., None]
    return _Quantized(values, quantized, shift, takes_part, unit, not_finite.any(axis=(0, -1)))


# --- loss -----------------------------------------------------------------------------------------


def transformed_sqnr_db(operand: Operand, values: jax.Array, exponent: jax.Array) -> jax.Array:
    """Signal to quantization noise of an operand's transformed values, 10 · log10(Σv² / Σ(v − q)²). The sums
    are over all points and over a sample of the rows (columns) in a block: all of them, or `SAMPLE` that are
    spread evenly. v is a transformed value with its normalization, in float32, and q its mantissa times its
    unit. inf if nothing is lost, NaN if the operand is not finite.

    Arguments:
        operand: the operand.
        values, exponent: mantissas and exponents, one-dimensional.
    """
    elements = _sample(operand)
    x = _quantize(operand, elements.take(values), elements.take(exponent, ABSENT, operand.grid.index))
    unit = power_of_two(jnp.maximum(x.unit - x.unit.max(), -126))
    of_mantissa = jnp.where(x.takes_part, power_of_two(jnp.maximum(x.shift, -LEAST_SCALE)), 0.0)
    exact = x.values * unit[..., None]
    noise = exact - x.mantissas.astype(jnp.float32) * (of_mantissa * unit)[..., None]
    signal, lost = jnp.sum(exact * exact), jnp.sum(noise * noise)
    sqnr_db = jnp.where(lost == 0, jnp.inf, 10 * jnp.log10(signal / lost))
    return jnp.where(exponent.max() < NONFINITE_THRESHOLD, sqnr_db, jnp.nan)


def _sample(operand: Operand) -> Elements:
    """The elements of the sample, [points, rows in a block, block]. Their addresses are computed in the
    program, which would otherwise contain large constants."""
    g, rows, k, points = operand.elements.shape
    blocks, size = -(-k // operand.block), min(k, operand.block)
    row, block = np.divmod(_spread(g * rows * blocks, SAMPLE), blocks)
    group, row = np.divmod(row, rows)
    group, row, start = (jnp.asarray(x)[:, None] for x in (group, row, block * operand.block))
    in_block = start + jnp.arange(size)
    point = jnp.arange(points)[:, None, None]
    elements = operand.elements.at(group, row, jnp.minimum(in_block, k - 1), point)
    return Elements(elements.address, elements.inside & (in_block < k))


def _spread(total: int, count: int) -> np.ndarray:
    """So many different indices below `total`, or all of them. They are spread evenly and at no regular
    distance, which might be that of the tiles at an image's border."""
    if total <= count:
        return np.arange(total)
    step = round(total * (math.sqrt(5) - 1) / 2)
    while math.gcd(step, total) > 1:
        step += 1
    return np.arange(count) * step % total
