"""Small training steps, and how their parameters and data are sharded.

A step is a function of parameters and of a batch, (x, y), that returns the loss and the gradients.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

ROWS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A network with its parameters and a batch."""

    apply: Callable
    """Called with the parameters, images or tokens, and what gives activations their sharding, `placed`."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the parameters; a normally distributed number is divided by the root of all extents but the last."""
    batch: tuple[tuple[int, ...], tuple[int, ...]]

    def arguments(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Parameters and a batch."""
        random = np.random.default_rng(0)
        params = {
            name: (random.standard_normal(shape) / np.sqrt(max(np.prod(shape[:-1]), 1))).astype(np.float32)
            for name, shape in self.shapes.items()
        }
        x, y = (random.standard_normal(shape).astype(np.float32) for shape in self.batch)
        return params, x, y

    def step(self, transform: Callable, activations: P | None = None) -> Callable:
        """The step of the transformed network, whose activations are constrained to be sharded like this."""

        def placed(x):
            return x if activations is None else lax.with_sharding_constraint(x, activations)

        apply = transform(functools.partial(self.apply, placed=placed))
        return jax.value_and_grad(lambda params, x, y: jnp.mean(jnp.square(apply(params, x) - y)))


# --- a convolutional network with batch normalization ----------------------------------------------


def _conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _batch_norm(x, scale, shift):
    mean = jnp.mean(x, ROWS, keepdims=True)
    variance = jnp.mean(jnp.square(x), ROWS, keepdims=True) - jnp.square(mean)
    shape = (1, 1, 1, -1)
    return (x - mean) * (lax.rsqrt(variance + 1e-5) * (1 + scale.reshape(shape))) + shift.reshape(shape)


def _conv_net(params, x, placed):
    def normalized(x, kernel, i):
        return _batch_norm(placed(_conv(x, params[kernel])), params[f"scale_{i}"], params[f"shift_{i}"])

    hidden = jax.nn.relu(normalized(x, "stem", 0))
    inner = jax.nn.relu(normalized(hidden, "inner", 1))
    hidden = jax.nn.relu(normalized(inner, "outer", 2) + hidden)
    pooled = lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.mean(_conv(pooled, params["last"]), (1, 2)) @ params["head"]


CHANNELS = 256
_VECTORS = {f"{name}_{i}": (CHANNELS,) for name in ("scale", "shift") for i in range(3)}
CONV_NET = Program(
    apply=_conv_net,
    shapes={
        "stem": (3, 3, 32, CHANNELS),
        "inner": (1, 1, CHANNELS, CHANNELS),
        "outer": (3, 3, CHANNELS, CHANNELS),
        "last": (1, 1, CHANNELS, CHANNELS),
        "head": (CHANNELS, 32),
        **_VECTORS,
    },
    batch=((16, 16, 16, 32), (16, 32)),  # activations just large enough for passes of their own
)


# --- a transformer's block --------------------------------------------------------------------------


def _block(params, x, placed):
    q, k, v = (placed(jnp.einsum("btm,mhd->bthd", x, params[name])) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.float32(np.sqrt(HEAD)))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    x = placed(x + jnp.einsum("bthd,hdm->btm", placed(mixed), params["merge"]))
    return placed(x + jax.nn.gelu(placed(x @ params["up"])) @ params["down"])


WIDTH, HEADS, HEAD, HIDDEN = 256, 64, 32, 512  # shards of heads are whole blocks on up to 8 devices
TRANSFORMER = Program(
    apply=_block,
    shapes={
        "query": (WIDTH, HEADS, HEAD),
        "key": (WIDTH, HEADS, HEAD),
        "value": (WIDTH, HEADS, HEAD),
        "merge": (HEADS, HEAD, WIDTH),
        "up": (WIDTH, HIDDEN),
        "down": (HIDDEN, WIDTH),
    },
    batch=((16, 96, WIDTH), (16, 96, WIDTH)),  # a device's tokens are a multiple of a tile's rows
)

PROGRAMS = {"conv net": CONV_NET, "transformer": TRANSFORMER}


# --- shardings --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a program is sharded over a mesh with the axes "data" and "model"."""

    batch: P
    params: Mapping[str, P]
    """Those that are not mentioned are on every device."""
    activations: P | None = None
    """What activations are constrained to, if anything."""


_COLUMNS = {
    "conv net": {name: P(None, None, None, "model") for name in ("stem", "inner", "outer", "last")}
    | dict.fromkeys(_VECTORS, P("model")),
    "transformer": {name: P(None, "model") for name in ("query", "key", "value", "up")},
}
_ROWS = {
    "conv net": {name: P(None, None, "model") for name in ("inner", "outer", "last")} | {"head": P("model")},
    "transformer": {name: P("model") for name in ("merge", "down")},
}
_BOTH = {
    # Alternately, so that what a layer splits, the next one adds.
    "conv net": {"stem": P(None, None, None, "model"), "inner": P(None, None, "model")}
    | {"scale_0": P("model"), "shift_0": P("model")},
    "transformer": _COLUMNS["transformer"] | _ROWS["transformer"],
}
_FULLY = {
    "conv net": {name: P(None, None, "data") for name in ("stem", "inner", "outer", "last")}
    | {"head": P("data")},
    "transformer": {name: P("data") for name in TRANSFORMER.shapes},
}

SHARDINGS: dict[str, dict[str, Sharding]] = {
    kind: {name: Sharding(batch=batch, params=of[name], activations=activations) for name in PROGRAMS}
    for kind, (batch, of, activations) in {
        "data": (P("data"), {name: {} for name in PROGRAMS}, None),
        "columns": (P(), _COLUMNS, None),
        "rows": (P(), _ROWS, None),
        # Without a constraint XLA may split activations like the weights.
        "fully sharded": (P("data"), _FULLY, P("data")),
        "data and model": (P("data"), _BOTH, None),
    }.items()
}


def mesh_sizes(kind: str, devices: int) -> tuple[int, int]:
    """The sizes of the axes "data" and "model"."""
    if kind in ("columns", "rows"):
        return 1, devices
    return (devices // 2, 2) if kind == "data and model" else (devices, 1)
