"""`Panels`: a matrix in the order in which the kernels read the right operand of a product.

The kernels align mantissas to one exponent for 32 columns and 32 contracted elements, interleave pairs of
contracted elements, and certify chains (`docs/numerics.md`). Of a matrix in panels all this is done once, so
a product with few rows reads each mantissa once, at the speed of memory. Values are those that the products
multiply by: where an exponent in a panel was below the largest one, its mantissas have lost so many bits.
Frozen again, they give the same panels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.scaling import scale_by_power_of_two

BLOCK, SEGMENT, COLUMNS, QUANTUM = 256, 32, 64, 16
HALF = 32
"""Columns of a panel of operands in blocks; two lie beside each other in memory."""

LEAST_EXPONENT = -163
"""The exponent that quantization to 16 bits gives zeros, and the least that counts."""


@dataclass(frozen=True, kw_only=True)
class Panels:
    """Words of two contracted elements, int16[…, size]; what the kernels know of each panel, uint8[…, bytes];
    and exponents, int32[…, segments, panels of 32 columns]. Axes in front are those of a stack of
    matrices."""

    shape: tuple[int, int]
    """The matrix's shape."""
    contracted: int
    """The axis that products sum over, 0 or 1."""
    blocks: Blocks
    """The blocks in which it was quantized."""
    bits: int = 16

    names = ("words", "info", "exponent")

    @property
    def extents(self) -> tuple[int, int]:
        """Contracted elements and columns."""
        return self.shape[self.contracted], self.shape[1 - self.contracted]

    @property
    def sizes(self) -> tuple[int, int]:
        """The number of int16 in words, and of panels in blocks of k."""
        k, n = self.extents
        blocks, panels = -(-k // BLOCK), -(-n // COLUMNS)
        last = _round_up(n - (panels - 1) * COLUMNS, QUANTUM)
        return blocks * BLOCK * ((panels - 1) * COLUMNS + last), blocks * panels

    def shape_of(self, arrays) -> tuple[int, ...]:
        """The shape of the matrix or of the stack of matrices."""
        return arrays[0].shape[:-1] + self.shape

    def aligned_exponent(self, exponent: jax.Array) -> jax.Array:
        """The exponents of segments and panels, given those of the matrix's blocks, int32[blocks.counts]."""
        k, n = self.extents
        of_elements = exponent[:, 0, :]  # blocks have one row
        if self.contracted == 0:  # [k, panels]: the largest of each segment
            padding = [(0, -k % SEGMENT), (0, 0)]
            tiled = jnp.pad(of_elements, padding, constant_values=LEAST_EXPONENT)
            found = tiled.reshape(-1, SEGMENT, tiled.shape[1]).max(1)
        else:  # [n, segments]
            padding = [(0, -n % HALF), (0, 0)]
            tiled = jnp.pad(of_elements, padding, constant_values=LEAST_EXPONENT)
            found = tiled.reshape(-1, HALF, tiled.shape[1]).max(1).T
        return jnp.maximum(found, LEAST_EXPONENT)

    def rows_of(self, words: jax.Array, info: jax.Array, exponent: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mantissas of one matrix, int16 of its shape, and its blocks' exponents."""
        k, n = self.extents
        depth = -(-k // BLOCK) * BLOCK // 2
        whole = n // COLUMNS
        parts = []
        if whole:
            of_whole = words[: whole * depth * COLUMNS * 2].reshape(whole, depth, COLUMNS, 2)
            parts.append(of_whole.transpose(1, 3, 0, 2).reshape(2 * depth, whole * COLUMNS))
        if n % COLUMNS:
            width = _round_up(n % COLUMNS, QUANTUM)
            of_last = words[whole * depth * COLUMNS * 2 :].reshape(depth, width, 2)
            parts.append(of_last.transpose(0, 2, 1).reshape(2 * depth, width))
        matrix = jnp.concatenate(parts, 1)[:k, :n]
        if self.contracted == 0:
            return matrix, jnp.repeat(exponent, SEGMENT, 0)[:k, None, :]
        return matrix.T, jnp.repeat(exponent, HALF, 1).T[:n, None, :]

    def rows_at(self, index: jax.Array, words, info, exponent) -> jax.Array:
        """The rows of one matrix at indices within it, as float32[*index.shape, columns of the matrix]."""
        k, n = self.extents
        depth = -(-k // BLOCK) * BLOCK // 2
        whole = n // COLUMNS
        of_whole = words[: whole * depth * COLUMNS * 2].reshape(whole, depth, COLUMNS, 2)
        width = _round_up(n % COLUMNS, QUANTUM)
        of_last = words[whole * depth * COLUMNS * 2 :].reshape(depth, width, 2)
        if self.contracted == 0:
            parts = (part[..., index // 2, :, index % 2] for part in (of_whole, of_last))
            parts = [part.reshape(*index.shape, -1) for part in parts]
            mantissa = jnp.concatenate(parts, -1)[..., :n]
            exponents = jnp.repeat(exponent[index // SEGMENT], HALF, -1)[..., :n]
        else:
            inside = jnp.minimum(index, max(whole * COLUMNS - 1, 0))
            found = of_whole[inside // COLUMNS, :, inside % COLUMNS] if whole else None
            if width:
                beyond = jnp.maximum(index - whole * COLUMNS, 0)
                last = jnp.moveaxis(of_last[:, beyond], 0, -2)
                found = last if found is None else jnp.where((index == inside)[..., None, None], found, last)
            mantissa = found.reshape(*index.shape, -1)[..., :k]
            of_index = jnp.moveaxis(exponent[:, index // HALF], 0, -1)
            exponents = jnp.repeat(of_index, SEGMENT, -1)[..., :k]
        return scale_by_power_of_two(mantissa.astype(jnp.float32), exponents)

    def values_of(self, words: jax.Array, info: jax.Array, exponent: jax.Array) -> jax.Array:
        """The matrix, or the stack of matrices, as float32."""
        if words.ndim > 1:
            return jax.vmap(self.values_of)(words, info, exponent)
        mantissa, exponent = self.rows_of(words, info, exponent)
        rows, columns = self.shape
        exponent = jnp.repeat(exponent[:, 0, :], HALF, 1)[:rows, :columns]
        return scale_by_power_of_two(mantissa.astype(jnp.float32), exponent)


def _round_up(x: int, to: int) -> int:
    return -(-x // to) * to
