"""What a program is, the table of them, and what they are made of."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

Op = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program and what JAX cannot do with it."""

    fun: Callable[[Op, jax.Array, jax.Array], Any]

    refuses: Mapping[str, str] = field(default_factory=dict)
    """What JAX says, a pattern, by what a transformation needs or by the transformation's name."""

    accepts: tuple[str, ...] = ()
    """Names of transformations that JAX accepts nevertheless."""

    recomputes_inside: bool = False
    """JAX's own remat policy does not know operations that are in dynamic fixed point already, as they are
    where `mixed_precision` stands inside: they are computed once more."""

    batches_itself: bool = False
    """It has a vmap rule of its own, which makes one operation of all examples: they share exponents."""

    @property
    def name(self) -> str:
        return self.fun.__name__

    def refusal(self, name: str, needs: Sequence[str]) -> str | None:
        """The pattern of JAX's message if it refuses a transformation of this name and needs."""
        if name in self.accepts:
            return None
        return next((self.refuses[key] for key in (name, *needs) if key in self.refuses), None)


PROGRAMS: dict[str, Program] = {}


def program(fun: Callable | None = None, **fields) -> Callable:
    """Enter a program into the table."""
    if fun is None:
        return functools.partial(program, **fields)
    PROGRAMS[fun.__name__] = Program(fun=fun, **fields)
    return fun


def activation(z):
    # Without transcendental functions and sums: what surrounds the operations has the same bits batched or
    # not, so that vmap can be compared with the loop bit for bit.
    return z / (1 + jnp.abs(z))


def activation_slope(z):
    return 1 / ((1 + jnp.abs(z)) * (1 + jnp.abs(z)))


def layer(op: Op, w, x):
    return activation(op(w, x))


def two_layers(op: Op, w, x):
    return layer(op, w, layer(op, w, x))


def total(x):
    return lax.stop_gradient(x.sum())


def mesh(kind: AxisType = AxisType.Auto):
    return jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(kind,))


def copies(x):
    """A batch of different examples, one for each device."""
    return jnp.stack([x * (index + 1) for index in range(len(jax.devices()))])
