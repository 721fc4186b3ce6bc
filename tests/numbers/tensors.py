"""Tensors for tests of arithmetic."""

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from dfpjax import DFP32Array, DFPArray

FULL = {DFPArray: 2**15 - 1, DFP32Array: 2**31 - 1}
INTEGER = {DFPArray: np.int16, DFP32Array: np.int32}
BITS = {DFPArray: 16, DFP32Array: 32}
KINDS = [DFPArray, DFP32Array]


def make(kind, mantissa, exponent):
    return kind(jnp.asarray(np.asarray(mantissa), INTEGER[kind]), exponent)


def mantissas(kind):
    full = FULL[kind]
    element = st.one_of(st.sampled_from([0, 1, -1, full, -full]), st.integers(-full, full))
    return st.one_of(st.lists(element, min_size=6, max_size=6), st.just([0] * 6))


def assert_tensor(actual, mantissa, exponent):
    np.testing.assert_array_equal(actual.mantissa, mantissa)
    np.testing.assert_array_equal(actual.exponent, exponent)
