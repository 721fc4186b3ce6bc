"""The transforms of the Winograd algorithms F(2, 3), F(4, 3) and F(2, 5), in plain JAX.

The points are 0, 1, −1, ∞ or, where there are six, 0, 5/8, −5/8, 3/2, −3/2, ∞. The coefficients have at most
8 significant bits, and what they multiply at most 16. So products are exact in float32, and a sum of them has
the same bits with and without fused multiply-adds. Only additions round, in the order written here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Values = Sequence[jax.Array]

POINTS = {4: (0.0, 1.0, -1.0), 6: (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)}
"""The finite points, before infinity, by the number of all of them."""

_CUT = 8


def cut(x: jax.Array) -> jax.Array:
    """float32 truncated to 16 significant bits."""
    bits = lax.bitcast_convert_type(x, jnp.uint32) & np.uint32(2**32 - 2**_CUT)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _input_of_4(d: Values) -> Values:
    return d[2] - d[0], d[1] + d[2], d[2] - d[1], d[3] - d[1]


def _input_of_6(d: Values) -> Values:
    even1, odd1 = d[4] - 9 / 4 * d[2], 5 / 8 * d[3] - 45 / 32 * d[1]
    even2, odd2 = d[4] - 25 / 64 * d[2], 3 / 2 * d[3] - 75 / 128 * d[1]
    first = 225 / 256 * d[0] + (d[4] - 169 / 64 * d[2])
    last = 225 / 256 * d[1] + (d[5] - 169 / 64 * d[3])
    return first, even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, last


def _kernel_2_3(w: Values) -> Values:
    even = w[0] + w[2]
    return w[0], even + w[1], even - w[1], w[2]


def _kernel_4_3(w: Values) -> Values:
    even1, odd1 = w[0] + 25 / 64 * w[2], 5 / 8 * w[1]
    even2, odd2 = w[0] + 9 / 4 * w[2], 3 / 2 * w[1]
    return w[0], even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, w[2]


def _kernel_2_5(w: Values) -> Values:
    even1, odd1 = w[0] + 25 / 64 * cut(w[2] + 25 / 64 * w[4]), 5 / 8 * cut(w[1] + 25 / 64 * w[3])
    even2, odd2 = w[0] + 9 / 4 * cut(w[2] + 9 / 4 * w[4]), 3 / 2 * cut(w[1] + 9 / 4 * w[3])
    return w[0], even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, w[4]


def _cotangent_2_3(y: Values) -> Values:
    return y[0], y[0] + y[1], y[0] - y[1], y[1]


def _cotangent_4_3(y: Values) -> Values:
    even1, odd1 = y[0] + 25 / 64 * y[2], 5 / 8 * y[1] + 125 / 512 * y[3]
    even2, odd2 = y[0] + 9 / 4 * y[2], 3 / 2 * y[1] + 27 / 8 * y[3]
    return y[0], even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, y[3]


def _cotangent_2_5(y: Values) -> Values:
    odd1, odd2 = 5 / 8 * y[1], 3 / 2 * y[1]
    return y[0], y[0] + odd1, y[0] - odd1, y[0] + odd2, y[0] - odd2, y[1]


def _output_2_3(y: Values) -> Values:
    return y[0] + (y[1] + y[2]), (y[1] - y[2]) + y[3]


def _output_4_3(y: Values) -> Values:
    sum1, difference1, sum2, difference2 = _sums_and_differences(y)
    return (
        y[0] + (sum1 + sum2),
        5 / 8 * difference1 + 3 / 2 * difference2,
        25 / 64 * sum1 + 9 / 4 * sum2,
        (125 / 512 * difference1 + 27 / 8 * difference2) + y[5],
    )


def _output_2_5(y: Values) -> Values:
    sum1, difference1, sum2, difference2 = _sums_and_differences(y)
    return y[0] + (sum1 + sum2), (5 / 8 * difference1 + 3 / 2 * difference2) + y[5]


def _taps_2_3(y: Values) -> Values:
    even = y[1] + y[2]
    return y[0] + even, y[1] - y[2], even + y[3]


def _taps_4_3(y: Values) -> Values:
    sum1, difference1, sum2, difference2 = _sums_and_differences(y)
    return (
        y[0] + (sum1 + sum2),
        5 / 8 * difference1 + 3 / 2 * difference2,
        (25 / 64 * sum1 + 9 / 4 * sum2) + y[5],
    )


def _taps_2_5(y: Values) -> Values:
    sum1, difference1, sum2, difference2 = _sums_and_differences(y)
    return (
        y[0] + (sum1 + sum2),
        5 / 8 * difference1 + 3 / 2 * difference2,
        25 / 64 * sum1 + 9 / 4 * sum2,
        125 / 512 * difference1 + 27 / 8 * difference2,
        (25 / 64 * cut(25 / 64 * sum1) + 81 / 16 * sum2) + y[5],
    )


def _sums_and_differences(y: Values) -> Values:
    return cut(y[1] + y[2]), cut(y[1] - y[2]), cut(y[3] + y[4]), cut(y[3] - y[4])


class Transforms(NamedTuple):
    """The transforms of a tile, along one axis."""

    input: Callable[[Values], Values]
    """From a patch to the points of the algorithm."""
    kernel: Callable[[Values], Values]
    """From the taps to the points, without the points' normalization."""
    cotangent: Callable[[Values], Values]
    """From a tile of the output's cotangent to the points."""
    output: Callable[[Values], Values]
    """From the points to a tile of outputs."""
    taps: Callable[[Values], Values]
    """From the points to the cotangents of the taps."""


TRANSFORMS = {
    (2, 3): Transforms(_input_of_4, _kernel_2_3, _cotangent_2_3, _output_2_3, _taps_2_3),
    (4, 3): Transforms(_input_of_6, _kernel_4_3, _cotangent_4_3, _output_4_3, _taps_4_3),
    (2, 5): Transforms(_input_of_6, _kernel_2_5, _cotangent_2_5, _output_2_5, _taps_2_5),
}
"""Those of tiles of so many outputs and taps."""


def along_axes(
    transform: Callable[[Values], Values], x: jax.Array, axes: int, *, cuts: bool = False
) -> jax.Array:
    """Transform along one or two axes.

    Arguments:
        transform: one of `TRANSFORMS[outputs, taps]`.
        x: float32[values, ...]: of all axes together, in row-major order.
        axes: their number.
        cuts: whether what goes from the first pass to the second is cut, as the transforms of operands to
            six points need it. (Those of sums cut by themselves what they multiply.)

    Returns:
        float32[values, ...].
    """
    if axes == 1:
        return jnp.stack(transform(list(x)))
    side = round(len(x) ** 0.5)
    # Loops, lest XLA compute a row again for each result. Compiling that can take it minutes.
    each = functools.partial(lax.map, functools.partial(along_axes, transform, axes=1))
    rows = each(x.reshape(side, side, *x.shape[1:]))
    columns = each((cut(rows) if cuts else rows).swapaxes(0, 1))
    return columns.swapaxes(0, 1).reshape(-1, *x.shape[1:])


@functools.cache
def normalizations(count: int, axes: int) -> np.ndarray:
    """1 / Π (x − the other finite points) for each finite point x, 1 for infinity; of two axes, the products.
    float32 of the points, in row-major order. `count` is their number along an axis."""
    points = np.array(POINTS[count])
    of_axis = [np.prod(x - np.delete(points, i)) for i, x in enumerate(points)] + [1.0]
    products = np.array(of_axis) if axes == 1 else np.outer(of_axis, of_axis).ravel()
    return (1 / products).astype(np.float32)
