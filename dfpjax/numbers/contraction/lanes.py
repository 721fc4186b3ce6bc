"""Depthwise contractions of operands in blocks, in plain JAX.

Every product is a chain by itself, in units of its own exponent. So no mantissa is shifted, and the kernels
need no packed operands.
"""

import jax
import jax.numpy as jnp
from jax import lax

from dfpjax.numbers.contraction.alignment import ABSENT, present, product_exponents
from dfpjax.numbers.contraction.elements import Elements
from dfpjax.numbers.contraction.grid import Grid
from dfpjax.numbers.contraction.plan import BLOCK, CHAINS, Part
from dfpjax.numbers.contraction.running import UNSET, Running, combined


def sum_in_lanes(
    part: Part, grids: tuple[Grid, Grid], a: jax.Array, b: jax.Array, exponents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Σ_k A · B of a part with lanes.

    Arguments:
        part: the part.
        grids: where the exponents of A and of B lie.
        a, b: mantissas, one-dimensional.
        exponents: exponents of A and of B, one-dimensional.

    Returns:
        (total, exponent, macs). `total` is float32[g, m, 1], to be multiplied by 2^exponent, which is int32
        of the same shape. `macs` is float32[g, len(CHAINS)], the multiply-accumulates by chain length. They
        count as those of the shortest chains.
    """
    elements = Elements.of_operands(part)
    g, m, k = elements[0].address.shape
    mantissa_a, mantissa_b = (x.take(values) for x, values in zip(elements, (a, b), strict=True))
    (exponent_a, lost_a), (exponent_b, lost_b) = (
        present(x.take(exponent, ABSENT, grid.index))
        for x, exponent, grid in zip(elements, exponents, grids, strict=True)
    )
    blocks = (
        _blocks((mantissa_a * mantissa_b).astype(jnp.float32), 0),
        _blocks(product_exponents(exponent_a, exponent_b), ABSENT),
        _blocks(lost_a | lost_b, False).any(axis=1),
    )
    sums = Running(jnp.zeros((g, m, 1), jnp.float32), jnp.full((g, m, 1), UNSET, jnp.int32))
    partials = [sums] if k == 0 else []
    for start in range(0, blocks[0].shape[0], part.blocks_per_split):
        split = jax.tree.map(lambda x, start=start: x[start : start + part.blocks_per_split], blocks)
        partial, _ = lax.scan(lambda sums, block: (_add_block(sums, *block), None), sums, split)
        partials.append(partial)
    total, exponent = combined(partials)
    return total, exponent, jnp.zeros((g, len(CHAINS)), jnp.float32).at[:, -1].set(m * k)


def _blocks(x: jax.Array, padding) -> jax.Array:
    """A matrix [g, m, k] as blocks [blocks, 256, g, m, 1]."""
    g, m, k = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -k % BLOCK)), constant_values=padding)
    return jnp.moveaxis(x.reshape(g, m, -1, BLOCK, 1), (2, 3), (0, 1))


def _add_block(running: Running, products: jax.Array, exponents: jax.Array, lost: jax.Array) -> Running:
    """Add a block's products, [256, g, m, 1], in ascending order."""
    running, factors = running.rebased(exponents)
    total, _ = lax.scan(
        lambda total, term: (total + term[0] * term[1], None), running.total, (products, factors)
    )
    return Running(jnp.where(lost, jnp.nan, total), running.base)
