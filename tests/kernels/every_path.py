"""Runs a native pass on every instruction set path, with one thread and with several, and compares its
results."""

import functools

import jax
import numpy as np

from dfpjax import kernels

PATHS = [(isa, threads) for isa in kernels.runtime_info().usable for threads in (1, 3)]


def on_every_path(fun, *args):
    """The results of a pass, after a check that all paths and numbers of threads give the same bits."""

    first, *others = jax.device_get(_runner(fun)(*args))
    for path, other in zip(PATHS[1:], others, strict=True):
        jax.tree.map(functools.partial(assert_same_bits, message=str(path)), other, first)
    return first


@functools.cache
def _runner(fun):
    return jax.jit(lambda *args: [fun(*args, isa=isa, threads=threads) for isa, threads in PATHS])


def assert_same_bits(actual, expected, message=""):
    """Equal in every bit; all NaNs count as equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    np.testing.assert_array_equal(actual, expected, err_msg=message)
    if np.issubdtype(actual.dtype, np.floating):
        signs = np.signbit(actual) == np.signbit(expected)
        assert (signs | np.isnan(actual)).all(), f"zeros differ in sign: {message}"


def assert_sums(actual, terms, axis=1):
    """The error of float32 sums over 32 rows is below 32 roundings of the sum of magnitudes."""
    bound = 32 * 2.0**-24 * np.abs(terms).sum(axis)
    assert (np.abs(actual - terms.sum(axis)) <= bound).all()
