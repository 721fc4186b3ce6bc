"""Stochastic rounding: unbiased, uncorrelated, and independent of how the work is divided."""

import contextlib
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import dfpjax
from dfpjax.numbers import Quantizer
from dfpjax.numbers.format.dtype import to_integers
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.numbers.format.rounding import random_bits

pytestmark = pytest.mark.optimized

# Fails if another test module has already computed something on import.
with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", 4)

SIGMA = 4.5  # deviations: a normal distribution exceeds them one time in 150 000


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("fraction", [2.0**-12, 0.01, 0.25, 0.5, 0.7, 0.999])
def test_the_mean_over_seeds_is_the_value(fraction, sign):
    """This holds for every single element, and for all elements together."""
    seeds, count = 4096, 64
    x = np.full(count + 1, sign * (5 + fraction), np.float32)
    x[-1] = 2.0**14  # makes the exponent 0

    @jax.jit
    @jax.vmap
    def rounded_up(seed):
        return jnp.abs(dfpjax.quantize(x, rounding="stochastic", seed=seed).mantissa[:-1]) == 6

    up = np.asarray(rounded_up(jnp.arange(seeds, dtype=jnp.uint32)))
    p = float(np.float32(5 + fraction)) - 5
    deviation = np.sqrt(p * (1 - p))
    assert abs(up.mean() - p) < SIGMA * deviation / np.sqrt(up.size)
    if p * seeds > 20:  # enough seeds for a normal distribution
        assert (np.abs(up.mean(axis=0) - p) < SIGMA * deviation / np.sqrt(seeds)).all()


@functools.cache
def many_random_bits(seed, count=2**19):
    return np.asarray(random_bits((count,), jnp.uint32(seed)))


@pytest.mark.parametrize("distance", [1, 2, 3, 8, 16, 63, 64, 1000, 4096, 2**16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_elements_are_not_correlated(distance, probability):
    seeds = 8
    limit = np.uint32(probability * 2**32)
    products = []
    for seed in range(seeds):
        up = many_random_bits(seed) < limit
        deviation = (up - probability) / np.sqrt(probability * (1 - probability))
        products.append(deviation[distance:] * deviation[:-distance])
    products = np.concatenate(products)
    assert abs(products.mean()) * np.sqrt(products.size) < SIGMA


def test_every_element_has_bits_of_its_own_whatever_the_shape():
    bits = jax.jit(lambda seed: random_bits((8, 16, 32), seed))(jnp.uint32(0))
    np.testing.assert_array_equal(np.ravel(bits), many_random_bits(0)[: bits.size])


def test_seeds_are_not_correlated():
    bits = np.asarray(
        jax.jit(jax.vmap(lambda seed: random_bits((2**12,), seed)))(np.arange(128, dtype=np.uint32))
    )
    uniform = (bits / 2.0**32 - 0.5) * np.sqrt(12)
    for distance in (1, 2, 64):
        products = uniform[distance:] * uniform[:-distance]
        assert abs(products.mean()) * np.sqrt(products.size) < SIGMA


@pytest.mark.parametrize("scale", [1, 100, 16000])
def test_without_a_seed_the_numbers_themselves_serve(scale):
    units = (np.random.default_rng(0).random(2**18) * scale).astype(np.float32)
    units[-1] = 2**14
    quantize = jax.jit(lambda x: to_integers(quantize_array(x, Quantizer(rounding="stochastic"))[0]))
    first = np.asarray(quantize(units))
    np.testing.assert_array_equal(first, quantize(units))
    fraction = units.astype(np.float64) % 1
    error = first - units.astype(np.float64)
    deviation = np.sqrt((fraction * (1 - fraction)).sum())
    assert abs(error.sum()) < SIGMA * deviation
    products = (error[1:] * error[:-1])[:-1]
    assert abs(products.sum()) < SIGMA * np.sqrt((products**2).sum())
    # The same numbers in other places, and other numbers in the same places, round independently.
    for other in (np.roll(units[:-1], 1), np.nextafter(units[:-1], np.float32(-1))):
        other = np.append(other, np.float32(2**14))
        change = np.asarray(quantize(other)) - other.astype(np.float64)
        back = np.roll(change[:-1], -1) if other[1] == units[0] else change[:-1]
        products = back * error[:-1]
        assert abs(products.sum()) < SIGMA * np.sqrt((products**2).sum())


@functools.cache
def quantized_stochastically(slice_axes, seed):
    """A jitted function, an array, and the function's result for it on one device."""
    seed = None if seed is None else jnp.uint32(seed)

    @jax.jit
    def quantize(x):
        mantissa, exponent = quantize_array(
            x, Quantizer(rounding="stochastic"), slice_axes=slice_axes, seed=seed
        )
        return to_integers(mantissa), exponent

    x = np.random.default_rng(0).standard_normal((8, 12, 4096)).astype(np.float32)
    return quantize, x, quantize(x)


@pytest.mark.parametrize(("slice_axes", "seed"), [((), None), ((1,), 3)])
@pytest.mark.parametrize("spec", [("data",), (None, "data"), (None, None, "data")])
def test_sharding_does_not_change_a_bit(spec, slice_axes, seed):
    quantize, x, expected = quantized_stochastically(slice_axes, seed)
    mesh = jax.make_mesh((4,), ("data",))
    sharded = quantize(jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))))
    for got, wanted in zip(sharded, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


PROGRAM = """
import jax, numpy as np, zlib, dfpjax
x = np.random.default_rng(0).standard_normal((64, 128, 129)).astype(np.float32)
m = jax.jit(lambda x: dfpjax.quantize(x, rounding="stochastic", seed=5).mantissa)(x)
checksum = zlib.crc32(np.asarray(m).tobytes())
"""


def test_threads_do_not_change_a_bit():
    here = {}
    exec(PROGRAM, here)
    one_core = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})" + PROGRAM + "print(checksum)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", one_core], capture_output=True, text=True)
    assert done.stdout.strip() == str(here["checksum"]), done.stderr
