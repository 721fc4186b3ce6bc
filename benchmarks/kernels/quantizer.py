"""Time of the quantizer in each rounding mode: ``python -m benchmarks.kernels.quantizer``.

A tensor is read twice, for its exponent and for its mantissas, and written once at half its size. Each line
compares the modes with rounding to nearest, and that with a copy of the tensor, which reads and writes it
once. Contenders take turns within one process, so that ratios hold on a machine whose speed drifts.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.environment import add_allocator, use_allocator
from benchmarks.common.timing import best_seconds
from dfpjax.numbers import Quantizer
from dfpjax.numbers.format.quantize import quantize_array

SHAPES = [(32, 56, 56, 64), (32, 14, 14, 1024), (3, 3, 512, 512), (64, 1000)]
ROUNDINGS = ("nearest", "stochastic", "biased", "truncate")


def contenders(x: jax.Array) -> dict:
    """Every rounding mode with one exponent, nearest with one for each slice along the last axis, and a
    copy. Stochastic rounding also as in operations, where no seed is given."""
    channels = (x.ndim - 1,)
    functions = {rounding: _quantizer(rounding, seeded=rounding == "stochastic") for rounding in ROUNDINGS}
    functions["channels"] = functools.partial(_quantizer("nearest"), slice_axes=channels)
    functions["no seed"] = _quantizer("stochastic")
    functions["copy"] = jnp.copy
    compiled = {name: jax.jit(f).lower(x).compile() for name, f in functions.items()}
    return {name: functools.partial(_run, f, x) for name, f in compiled.items()}


def _quantizer(rounding: str, seeded: bool = False):
    seed = jnp.uint32(0) if seeded else None
    return functools.partial(quantize_array, quantizer=Quantizer(rounding=rounding), seed=seed)


def _run(f, x):
    return jax.block_until_ready(f(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_allocator(parser)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for each contender")
    arguments = parser.parse_args()
    use_allocator(arguments.allocator, "benchmarks.kernels.quantizer")
    print("ms, ratio to nearest; of the copy, its bandwidth in GB/s and nearest's ratio to it")
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        seconds = best_seconds(contenders(x), budget=arguments.budget, rounds=20)
        copy, nearest = seconds.pop("copy"), seconds["nearest"]
        print("x".join(map(str, shape)), f"{x.nbytes / 1e6:.1f} MB")
        for name, s in seconds.items():
            print(f"  {name:12} {s * 1e3:8.3f}   {s / nearest:5.2f}")
        print(
            f"  {'copy':12} {copy * 1e3:8.3f}   {2 * x.nbytes / copy / 1e9:5.1f} GB/s  {nearest / copy:5.2f}"
        )


if __name__ == "__main__":
    main()
