"""Independent references for the tests: NumPy and exact Python numbers, nothing of dfpjax."""

from fractions import Fraction

import jax
import numpy as np


def quantize(x, bits=16):
    """Nearest-even quantization from the definition, its exponent found with exact rationals.

    Returns int64 mantissas and the exponent.
    """
    x = np.asarray(x, np.float32)
    largest = Fraction(float(np.abs(x).max(initial=0)))
    if largest == 0:
        return np.zeros(x.shape, np.int64), -149 - (bits - 2)
    log2 = largest.numerator.bit_length() - largest.denominator.bit_length()
    log2 -= largest < Fraction(2) ** log2
    exponent = log2 - (bits - 2)
    limit = 2 ** (bits - 1) - 1
    scaled = np.ldexp(x.astype(np.float64), -exponent)  # float64 holds every float32 scaled so
    return np.clip(np.rint(scaled), -limit, limit).astype(np.int64), exponent


def relative_error(actual, expected) -> float:
    """Largest norm-wise relative error over the leaves of two pytrees."""
    errors = []
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape, (a.shape, e.shape)
        errors.append(np.linalg.norm(a - e) / max(np.linalg.norm(e), 1e-30))
    return max(errors)


def full_scale(rng, shape):
    """Mantissas of ±32767 only."""
    return np.where(rng.random(shape) < 0.5, -32767, 32767).astype(np.int16)


def one_outlier(rng, shape):
    """Small mantissas and a single full-scale one."""
    x = rng.integers(-40, 41, shape).astype(np.int16)
    x.reshape(-1)[rng.integers(x.size)] = 32767
    return x


def gaussian(rng, shape):
    """As a normally distributed tensor is quantized: full scale at about 4.5 standard deviations."""
    return np.clip(np.rint(rng.standard_normal(shape) * 7000), -32767, 32767).astype(np.int16)


def small(rng, shape):
    """Mantissas that every chain length is certified for."""
    return rng.integers(-300, 301, shape).astype(np.int16)


DATA = {f.__name__: f for f in (full_scale, one_outlier, gaussian, small)}
