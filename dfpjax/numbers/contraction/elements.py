"""`Elements`: a tensor of a contraction as matrices, by the addresses of a plan's loops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.contraction.loops import Bounds, Dim
from dfpjax.numbers.contraction.plan import Part


def addresses(dims: Sequence[Dim], field: str, offset: int = 0) -> np.ndarray:
    """offset + Σ index · stride over nested loops: an array of the loops' shape."""
    address = np.asarray(offset)
    for position, dim in enumerate(dims):
        step = np.arange(dim.extent) * getattr(dim, field)
        address = address + step.reshape((-1,) + (1,) * (len(dims) - 1 - position))
    return np.broadcast_to(address, tuple(d.extent for d in dims))


def _coordinates(dims: Sequence[Dim], window: int, offset: int) -> np.ndarray:
    """Coordinate in a windowed axis over nested loops: an array of the loops' shape."""
    coordinate = np.asarray(offset)
    for position, dim in enumerate(dims):
        step = np.arange(dim.extent) * (dim.coef if dim.window == window else 0)
        coordinate = coordinate + step.reshape((-1,) + (1,) * (len(dims) - 1 - position))
    return np.broadcast_to(coordinate, tuple(d.extent for d in dims))


@dataclass(frozen=True)
class Elements:
    """The elements of a tensor for a part of a plan, as arrays with an axis for each group of loops."""

    address: np.ndarray
    inside: np.ndarray
    """False for padding."""

    @classmethod
    def of_operands(cls, part: Part) -> tuple["Elements", "Elements"]:
        """Those of A, [g, m, k], and those of B, [g, n, k]."""
        of_a = cls.of((part.g, part.m, part.k), "a", part.base_a, part.bounds)
        return of_a, cls.of((part.g, part.n, part.k), "b", part.base_b)

    @classmethod
    def of(
        cls, groups: Sequence[Sequence[Dim]], field: str, base: int, bounds: Sequence[Bounds] = ()
    ) -> "Elements":
        """Those at the addresses that groups of nested loops give.

        Arguments:
            groups: the loops.
            field: the tensor: "a", "b" or "c".
            base: its address where all indices are zero.
            bounds: the axes that the loops' windows move along.
        """
        dims = [dim for group in groups for dim in group]
        address, inside = addresses(dims, field, base), np.asarray(True)
        for window, bound in enumerate(bounds):
            coordinate = _coordinates(dims, window, bound.offset)
            address = address + coordinate * bound.a
            inside = inside & (coordinate >= 0) & (coordinate < bound.size)
        shape = tuple(math.prod(d.extent for d in group) for group in groups)
        inside = np.broadcast_to(inside, address.shape)
        return cls(np.where(inside, address, 0).reshape(shape), inside.reshape(shape))

    def take(self, flat: jax.Array, absent: int = 0, index=None) -> jax.Array:
        """The elements as int32, with `absent` for the padding. `index` maps addresses to those in `flat`."""
        if 0 in self.address.shape:
            return jnp.zeros(self.address.shape, jnp.int32)
        address = self.address if index is None else index(self.address)
        return jnp.where(self.inside, flat[address].astype(jnp.int32), absent)

    def places(self, beyond: int) -> np.ndarray:
        """The addresses, with `beyond` for the padding."""
        return np.where(self.inside, self.address, beyond)
