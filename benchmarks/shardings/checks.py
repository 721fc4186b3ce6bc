"""What is checked of a sharded training step."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dfpjax
from benchmarks.collectives import collectives
from benchmarks.shardings.programs import SHARDINGS, Program, mesh_sizes

FORCED = dfpjax.Policy(default=dfpjax.OpConfig(force=True))


def transform(fun: Callable) -> Callable:
    """In DFP16 wherever possible."""
    return dfpjax.mixed_precision(fun, policy=FORCED)


def plain(fun: Callable) -> Callable:
    """In float32."""
    return fun


def native_calls(program: str) -> Counter:
    """The number of native calls in a compiled program, by target."""
    return Counter(re.findall(r'custom_call_target="(dfpjax_\w+)"', program))


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What is known of a sharded step that is compiled."""

    native: Counter
    native_alone: Counter
    """On one device."""
    collectives: Counter
    """Bytes of the collectives' results on a device, by operation and dtype."""
    collectives_float32: Counter

    @property
    def bytes(self) -> int:
        """Bytes of the results of all collectives."""
        return self.collectives.total()

    @property
    def bytes_float32(self) -> int:
        """The same of the program in float32."""
        return self.collectives_float32.total()

    @property
    def gathered(self) -> int:
        """Bytes of the all-gathers' results."""
        return _gathered(self.collectives)

    @property
    def gathered_float32(self) -> int:
        """The same of the program in float32."""
        return _gathered(self.collectives_float32)

    @property
    def passes(self) -> bool:
        """Whether the native calls are those of one device, and no more is exchanged than in float32, but for
        exponents."""
        return self.native == self.native_alone and self.bytes <= (1 + EXPONENTS) * self.bytes_float32


EXPONENTS = 0.08
"""How much of what float32 exchanges may come on top. Four bytes for 256 numbers are 0.4 %, but exponents of
what is not exchanged itself may be gathered, too."""


@dataclass(frozen=True, kw_only=True)
class Result(Compiled):
    """What is known of a sharded step that has run, too."""

    error: float
    """The greatest of the relative errors of the loss and of each gradient, against one device."""
    rounding: float
    """The same on one device, where parameters and data have changed by a unit in the last place or none."""

    @property
    def passes(self) -> bool:
        """Whether also the error is about what rounding makes of it."""
        return super().passes and self.error <= 3 * self.rounding


def _gathered(found: Counter) -> int:
    return sum(size for (operation, _), size in found.items() if operation == "all-gather")


class Alone:
    """A program on one device, compiled and run once."""

    def __init__(self, program: Program):
        self.program = program
        self.arguments = program.arguments()
        compiled = jax.jit(program.step(transform)).lower(*self.arguments).compile()
        self.native = native_calls(compiled.as_text())
        self.result = jax.device_get(compiled(*self.arguments))
        self.rounding = self.error(jax.device_get(compiled(*jax.tree.map(_changed, self.arguments))))

    def error(self, result: tuple) -> float:
        """The greatest of the relative errors of a result's arrays."""
        return max(map(_relative_error, jax.tree.leaves(result), jax.tree.leaves(self.result)))


def _changed(x: np.ndarray) -> np.ndarray:
    """Every other number changed by a unit in the last place."""
    upward = np.random.default_rng(1).choice([False, True], x.shape)
    return np.where(upward, np.nextafter(x, np.float32(np.inf)), x)


def check(alone: Alone, name: str, kind: str, devices: int, axis_type: AxisType = AxisType.Auto) -> Result:
    """Compile and run a program of `PROGRAMS` on so many devices.

    Arguments:
        alone: the program on one device.
        name, kind: keys of `PROGRAMS` and `SHARDINGS`.
        axis_type: that of the mesh's axes.
    """
    sharding, sizes = SHARDINGS[kind][name], mesh_sizes(kind, devices)
    mesh = jax.make_mesh(
        sizes, ("data", "model"), devices=jax.devices()[:devices], axis_types=(axis_type,) * 2
    )
    params, x, y = alone.arguments
    of_params = {name: NamedSharding(mesh, sharding.params.get(name, P())) for name in params}
    of_batch = NamedSharding(mesh, sharding.batch)
    placed = jax.device_put(params, of_params), *jax.device_put((x, y), of_batch)
    out = NamedSharding(mesh, P()), of_params  # the gradients are split like the parameters

    def compiled(of: Callable):
        with jax.set_mesh(mesh):
            step = jax.jit(alone.program.step(of, sharding.activations), out_shardings=out)
            return step.lower(*placed).compile()

    sharded = compiled(transform)
    text = sharded.as_text()
    return Result(
        native=native_calls(text),
        native_alone=alone.native,
        error=alone.error(jax.device_get(sharded(*placed))),
        rounding=alone.rounding,
        collectives=collectives(text)[1],
        collectives_float32=collectives(compiled(plain).as_text())[1],
    )


def _relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    difference = np.linalg.norm(np.asarray(actual, np.float64) - expected)
    return float(difference / np.linalg.norm(np.asarray(expected, np.float64)))
