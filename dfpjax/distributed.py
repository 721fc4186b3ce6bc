"""Means over the devices of a mesh axis, at half of float32's bytes.

```python
def step(params, batch):  # inside jax.shard_map over the axis "data"
    params = jax.lax.pcast(params, "data", to="varying")  # or shard_map(…, check_vma=False)
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    return update(params, dfpjax.distributed.all_reduce_mean(grads, "data"))
```

Gradients travel as int16 mantissas. Each block of `BLOCK` numbers has one exponent, on which the devices
agree beforehand: a maximum of one byte per block. So mantissas of different devices have the same unit, and
their sums are exact integers, whatever the order of the additions.

For up to `MOST_ADDED` devices, the mantissas are so short that their sum fits into 16 bits, and one
all-reduce adds them. For more devices too few bits would be left. Then each device receives one part of
every device's tensor (all-to-all), adds these in float32, and sends their mean to all (all-gather), both
times with mantissas of full length. The wires carry half the bytes of an all-reduce in float32 either way.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax import _checks, _compat
from dfpjax.numbers.format.rounding import hash_bits, random_bits, round_to_integers
from dfpjax.numbers.format.scaling import float_bits, power_of_two

BLOCK = 64
"""Numbers that share an exponent: consecutive ones of a leaf in row-major order. The last block of a leaf is
filled up with zeros."""

MOST_ADDED = 8
"""Devices whose mantissas are added as int16. They have 12 bits and a sign then."""

_BITS = 15  # of a mantissa that is not added, without its sign
# The least exponent of a block, in float32's biased form: its unit, divided by the number of devices, is
# still a normal number.
_LEAST = 32


def all_reduce_mean(
    tree: Any, axis_name: str | tuple[str, ...], *, rounding: Literal["nearest", "stochastic"] = "nearest"
) -> Any:
    """The mean of each leaf over the devices of a mesh axis, as `jax.lax.pmean`, at half of float32's bytes.

    For use inside `jax.shard_map`, or any other function with named axes. Every device gets the same bits.

    With n devices, a mantissa has a sign and b = 15 − ⌈log2 n⌉ bits, for n up to `MOST_ADDED`. A mean then
    differs from the exact one by less than 2^(1−b) times the largest magnitude in its block on any device.
    For more devices, the bound is 2^−13 times that magnitude. Magnitudes below 2^−110 count as zero. On one
    device the result is the input.

    A NaN or an infinity on any device has the same effect as in a mean in float32, element by element;
    infinities of both signs give NaN. In such a step the finite numbers have fewer bits: b − 4 for 2 or 3
    devices, b − 6 for 4 to 7, b − 8 for 8, and 13 for more.

    Arguments:
        tree: a pytree of arrays of float32, bfloat16 or float16, of any shapes, such as gradients.
        axis_name: the axis, or several.
        rounding: "nearest" (ties to even), or "stochastic", up or down with probabilities that make the mean
            unbiased. The random bits are a function of the value, its position and the device.

    Returns:
        the tree of means, float32.

    Raises:
        TypeError: if a leaf is not an array of one of these dtypes.
        ValueError: if `rounding` is another word, or if a leaf is the same on all devices already, as a
            gradient by replicated parameters is: `jax.shard_map` has added it over the devices, in float32.
            Make the parameters vary before differentiating, by `jax.lax.pcast(params, axis_name,
            to="varying")`, or give `jax.shard_map` the argument `check_vma=False`.
    """
    _checks.choice("all_reduce_mean", "rounding", rounding, ("nearest", "stochastic"))
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    leaves, structure = jax.tree.flatten(tree)
    leaves = [_float32(leaf) for leaf in leaves]
    devices = math.prod(lax.axis_size(axis) for axis in axes)
    for leaf in leaves:
        _check_varying(leaf, axes)
    if devices == 1 or not leaves:
        return jax.tree.unflatten(structure, leaves)
    blocks = [_blocks(x) for x in leaves]
    mean = _added if devices <= MOST_ADDED else _exchanged
    # As one array, of which XLA compiles one program, and which travels in few collectives.
    means = mean(jnp.concatenate(blocks), axes, devices, rounding)
    parts = jnp.split(means, np.cumsum([len(x) for x in blocks])[:-1])
    means = [part.reshape(-1)[: x.size].reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, means)


def _float32(leaf: Any) -> jax.Array:
    wanted = "a tree of arrays of float32, bfloat16 or float16"
    if not hasattr(leaf, "dtype") or leaf.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise _checks.wrong_type("all_reduce_mean", "tree", wanted, leaf)
    return jnp.asarray(leaf, jnp.float32)


def _check_varying(leaf: jax.Array, axes: tuple[str, ...]) -> None:
    # Without its check of varying axes, shard_map says of no value that it varies.
    known = [axis for axis in axes if axis in _compat.varying_axes(lax.axis_index(axis))]
    if same := [axis for axis in known if axis not in _compat.varying_axes(leaf)]:
        raise ValueError(
            f"all_reduce_mean: tree must vary over {', '.join(same)}, got {_checks.described(leaf)} that does"
            " not: a gradient by a replicated parameter is a sum over the devices already; differentiate by"
            f' jax.lax.pcast(params, {same[0]!r}, to="varying")'
        )


def _blocks(x: jax.Array) -> jax.Array:
    """x as rows of BLOCK numbers, the last of which is filled up with zeros."""
    return jnp.pad(x.reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)


def _added(x: jax.Array, axes: tuple[str, ...], devices: int, rounding: str) -> jax.Array:
    """The mean of float32[rows, BLOCK] over the devices: one sum of int16."""
    exponents, special = _exponents(x)
    # One byte for each block, and one that says whether there is a NaN or an infinity.
    agreed = lax.pmax(jnp.append(exponents, special.astype(jnp.uint8)), axes)
    exponents, special = agreed[:-1], agreed[-1] > 0
    words = _encode(x, exponents, special, devices, axes, rounding)
    return _decode(lax.psum(words, axes), exponents, special, devices)


def _exchanged(x: jax.Array, axes: tuple[str, ...], devices: int, rounding: str) -> jax.Array:
    """The same, but each device adds a part of what all have, and sends the mean to all."""
    rows = len(x)
    x = jnp.pad(x, ((0, -rows % devices), (0, 0)))

    def exchange(y):
        return lax.all_to_all(y.reshape(devices, -1, *y.shape[1:]), axes, 0, 0, tiled=True)

    def gather(y):
        # In vmap, and where shard_map does not check it, JAX says of no value that it varies.
        to = "invarying" if _compat.varying_axes(y) else "varying"
        return lax.all_gather(y, axes, tiled=True, to=to)

    exponents, special = _exponents(x)
    special = lax.pmax(special.astype(jnp.uint8), axes) > 0
    words = _encode(x, exponents, special, 1, axes, rounding)
    parts = _decode(exchange(words), exchange(exponents), special, 1)
    part = (parts / devices).sum(0)  # in this order, since the sum may exceed float32's range
    exponents, _ = _exponents(part)
    words = _encode(part, exponents, special, 1, axes, rounding)
    return _decode(gather(words), gather(exponents), special, 1)[:rows]


def _exponents(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """uint8[rows], the exponent of each block's largest finite magnitude, in float32's biased form; and
    bool[], whether any number is a NaN or an infinity."""
    largest = _largest(x)
    special = ~jnp.all(jnp.isfinite(largest))
    largest = lax.cond(special, lambda: _largest(jnp.where(jnp.isfinite(x), x, 0)), lambda: largest)
    return jnp.maximum(float_bits(largest) >> 23, _LEAST).astype(jnp.uint8), special


def _largest(x: jax.Array) -> jax.Array:
    """float32[rows], the largest magnitude of each block; NaN in a block with a NaN."""
    largest = jnp.abs(x)
    while (width := largest.shape[-1]) > 1:  # XLA for CPU takes five times as long for a maximum along rows
        largest = jnp.maximum(largest[..., : width // 2], largest[..., width // 2 :])
    return largest[..., 0]


@dataclasses.dataclass(frozen=True)
class _Word:
    """How a number of a block becomes an int16, so that `added` of these can be summed.

    A word is a mantissa. If there are numbers that are not finite, the mantissa is shorter, and two counts
    stand below it: of +∞, and of −∞. A NaN counts as both.
    """

    added: int
    counted: bool

    @property
    def count(self) -> int:
        """Bits of a count."""
        return self.added.bit_length() if self.counted else 0

    @property
    def bits(self) -> int:
        """Bits of a mantissa, without its sign."""
        return _BITS - (self.added - 1).bit_length() - 2 * self.count

    def unit(self, exponents: jax.Array) -> jax.Array:
        """The exponent of a mantissa of 1. A block's numbers are below 2^(exponent − 126)."""
        return (exponents.astype(jnp.int32) - (126 + self.bits))[..., None]

    def encode(self, x: jax.Array, exponents: jax.Array, random: jax.Array | None) -> jax.Array:
        """int16 of x's shape, float32[rows, BLOCK]; rounded to nearest without random bits."""
        finite = jnp.where(jnp.isfinite(x), x, 0) if self.counted else x
        rounding = "nearest" if random is None else "stochastic"
        rounded = round_to_integers(finite * power_of_two(-self.unit(exponents)), rounding, random)
        most = np.float32(2**self.bits - 1)
        mantissa = jnp.clip(rounded, -most, most).astype(jnp.int32)
        if self.counted:
            up, down = ((jnp.isnan(x) | (x == limit)).astype(jnp.int32) for limit in (np.inf, -np.inf))
            mantissa = (mantissa << 2 * self.count) | (down << self.count) | up
        return mantissa.astype(jnp.int16)

    def decode(self, words: jax.Array, exponents: jax.Array) -> jax.Array:
        """float32 of sums of `added` words, divided by `added`."""
        words = words.astype(jnp.int32)
        mantissa = (words >> 2 * self.count).astype(jnp.float32)
        value = mantissa * (power_of_two(self.unit(exponents)) / self.added)
        if self.counted:
            most = (1 << self.count) - 1
            value = jnp.where(words & most > 0, value + np.inf, value)
            value = jnp.where((words >> self.count) & most > 0, value - np.inf, value)
        return value


def _encode(
    x: jax.Array, exponents: jax.Array, special: jax.Array, added: int, axes: tuple[str, ...], rounding: str
) -> jax.Array:
    random = None
    if rounding == "stochastic":
        place = random_bits(x.shape, lax.axis_index(axes).astype(jnp.uint32))
        random = hash_bits(place ^ hash_bits(lax.bitcast_convert_type(x, jnp.uint32)))
    counted, plain = (_Word(added, counted) for counted in (True, False))
    return lax.cond(
        special,
        lambda: counted.encode(x, exponents, random),
        lambda: plain.encode(x, exponents, random),
    )


def _decode(words: jax.Array, exponents: jax.Array, special: jax.Array, added: int) -> jax.Array:
    counted, plain = (_Word(added, counted) for counted in (True, False))
    return lax.cond(special, lambda: counted.decode(words, exponents), lambda: plain.decode(words, exponents))
