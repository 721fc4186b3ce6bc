"""The type of programs, their table, and their building blocks."""

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
    """A program and the transformations of it that JAX refuses."""

    fun: Callable[[Op, jax.Array, jax.Array], Any]

    refuses: Mapping[str, str] = field(default_factory=dict)
    """Patterns of JAX's messages. Keys are a transformation's needs, or its name."""

    accepts: tuple[str, ...] = ()
    """Names of transformations that JAX accepts although `refuses` has one of their needs."""

    recomputes_inside: bool = False
    """With `mixed_precision` inside the program, its operations are already in dynamic fixed point. JAX's
    remat policy does not know them, so they are recomputed."""

    batches_itself: bool = False
    """Its own vmap rule batches all examples into one operation: they share exponents."""

    @property
    def name(self) -> str:
        return self.fun.__name__

    def refusal(self, name: str, needs: Sequence[str]) -> str | None:
        """The pattern of JAX's message if JAX refuses a transformation with this name and these needs."""
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
    # Without transcendental functions and sums, code around the operations has the same bits batched or not,
    # so vmap can be compared with the loop bit for bit.
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
    """A batch of different examples, one per device."""
    return jnp.stack([x * (index + 1) for index in range(len(jax.devices()))])
