"""Running sums whose terms have exponents of their own.

A running sum is float32 in units of 2^base, where the base is the largest exponent in its first cell. Terms
are multiplied by a power of two, exactly. If an exponent is far above the base, the base is raised, so that
nothing overflows, whatever the exponents are.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dfpjax.numbers.contraction.alignment import ABSENT
from dfpjax.numbers.format.scaling import power_of_two

UNSET = -(1 << 28)
"""Base of an empty sum."""

MOST_ABOVE = 60
"""A cell with an exponent of more than this above the base raises the base."""

MOST_BELOW = 100
"""A term with an exponent of more than this below the base counts as zero."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Running:
    """Sums and their units."""

    total: jax.Array
    """float32[g, m, n], rows and columns filled up to whole tiles."""
    base: jax.Array
    """int32[g, m, column tiles]; `UNSET` for an empty sum."""

    def rebased(self, exponents: jax.Array) -> tuple["Running", jax.Array]:
        """The sums, with bases that suit terms with these exponents, and the factors that bring the terms to
        these bases.

        Arguments:
            exponents: int32[segments, g, m, column tiles]; `ABSENT` where the terms are zero.
        """
        top = exponents.max(axis=0)
        above = top - self.base  # far more than MOST_BELOW if the base is UNSET; the sum is then 0 or NaN
        raised = (top > ABSENT) & (above > MOST_ABOVE)
        base = jnp.where(raised, top, self.base)
        kept = jnp.where(raised, _factor(-above), 1.0)
        columns = self.total.shape[2] // self.base.shape[2]
        factors = jnp.where(exponents > ABSENT, _factor(exponents - base), 0.0)
        return Running(self.total * jnp.repeat(kept, columns, axis=2), base), factors


def _factor(exponent: jax.Array) -> jax.Array:
    """2^exponent for exponents up to `MOST_ABOVE`; 0 for those below −`MOST_BELOW`."""
    power = power_of_two(jnp.clip(exponent, -MOST_BELOW, MOST_ABOVE))
    return jnp.where(exponent < -MOST_BELOW, 0.0, power)


def combined(partials: list[Running]) -> tuple[jax.Array, jax.Array]:
    """The sum of partial sums, added in their order, and the exponents of its units (0 for an empty sum)."""
    base = partials[0].base
    for partial in partials[1:]:
        base = jnp.maximum(base, partial.base)
    total = None
    for partial in partials:
        columns = partial.total.shape[2] // base.shape[2]
        factor = jnp.where(partial.base == base, 1.0, _factor(jnp.maximum(partial.base - base, -1000)))
        term = partial.total * jnp.repeat(factor, columns, axis=2)
        total = term if total is None else total + term
    return total, jnp.where(base == UNSET, 0, base)
