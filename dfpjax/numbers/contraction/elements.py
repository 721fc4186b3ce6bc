"""`Elements`: a tensor of a contraction as matrices, by the addresses of a plan's loops, a `Nest`."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.contraction.loops import Bounds, Dim, extent
from dfpjax.numbers.contraction.plan import Part


def addresses(dims: Sequence[Dim], field: str, offset: int = 0) -> np.ndarray:
    """offset + Σ index · stride over nested loops: an array of the loops' shape."""
    address = np.asarray(offset)
    for position, dim in enumerate(dims):
        step = np.arange(dim.extent) * getattr(dim, field)
        address = address + step.reshape((-1,) + (1,) * (len(dims) - 1 - position))
    return np.broadcast_to(address, tuple(d.extent for d in dims))


@dataclass(frozen=True)
class Elements:
    """Elements of a tensor for a part of a plan, as arrays."""

    address: np.ndarray | jax.Array
    inside: np.ndarray | jax.Array
    """False for padding."""

    @classmethod
    def of_operands(cls, part: Part) -> tuple["Elements", "Elements"]:
        """Those of A, [g, m, k], and those of B, [g, n, k]."""
        of_a = Nest((part.g, part.m, part.k), "a", part.base_a, part.bounds)
        of_b = Nest((part.g, part.n, part.k), "b", part.base_b)
        return of_a.elements(), of_b.elements()

    def take(self, flat: jax.Array, absent: int = 0, index=None) -> jax.Array:
        """The elements as int32, with `absent` for the padding. `index` maps addresses to those in `flat`."""
        if 0 in self.address.shape:
            return jnp.zeros(self.address.shape, jnp.int32)
        address = self.address if index is None else index(self.address)
        return jnp.where(self.inside, flat[address].astype(jnp.int32), absent)

    def places(self, beyond: int) -> np.ndarray:
        """The addresses, with `beyond` for the padding."""
        return np.where(self.inside, self.address, beyond)


@dataclass(frozen=True)
class Nest:
    """Groups of nested loops that address a tensor."""

    groups: tuple[tuple[Dim, ...], ...]
    field: str
    """The tensor: "a", "b" or "c"."""
    base: int
    """Its address where all indices are zero."""
    bounds: tuple[Bounds, ...] = ()
    """The axes that the loops' windows move along."""

    @property
    def shape(self) -> tuple[int, ...]:
        """How often each group of loops runs."""
        return tuple(extent(group) for group in self.groups)

    def elements(self) -> Elements:
        """All elements, with an axis for each group of loops."""
        return self.at(*np.ix_(*map(np.arange, self.shape)))

    def at(self, *indices: np.ndarray | jax.Array) -> Elements:
        """The elements at an index into each group of loops. Indices are of NumPy or JAX, as the result is,
        and are broadcast against each other."""
        address, inside = self.base, np.asarray(True)
        coordinates = [bound.offset for bound in self.bounds]
        for dims, index in zip(self.groups, indices, strict=True):
            for dim in reversed(dims):
                index, digit = divmod(index, dim.extent)
                address = address + digit * getattr(dim, self.field)
                if self.bounds and dim.window >= 0:
                    coordinates[dim.window] = coordinates[dim.window] + digit * dim.coef
        for coordinate, bound in zip(coordinates, self.bounds, strict=True):
            address = address + coordinate * bound.a
            inside = inside & (coordinate >= 0) & (coordinate < bound.size)
        shape = np.broadcast_shapes(*(index.shape for index in indices))
        broadcast = jnp.broadcast_to if isinstance(address, jax.Array) else np.broadcast_to
        return Elements(*(broadcast(x, shape) for x in (address * inside, inside)))
