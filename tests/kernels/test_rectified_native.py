"""The native passes that rectify: the same bits on every path and with any number of threads. The rectified
sum has the bits of NumPy in float32, with one rounding for a product and its addition to the shift, as XLA
has it on CPUs; sums over channels agree with float64."""

import functools

import numpy as np
import pytest
from every_path import assert_same_bits, assert_sums, on_every_path
from fused import fused

from dfpjax.kernels import passes

unmasked = functools.partial(passes.rectified_sum, masked=False)
SHAPES = [
    (1, 0, 3), (2, 1, 100), (1, 31, 37), (3, 33, 1), (2, 2000, 16), (1, 700, 53), (0, 5, 7), (1, 5, 0),
    (2, 33, 48), (1, 32, 33),
]  # fmt: skip


def operands(groups, rows, channels, scale=1.0):
    """x, mean, scale, shift and a residual or cotangents."""
    rng = np.random.default_rng(0)

    def normal(*shape, mean=0.0):
        return (rng.normal(mean, 1, shape) * scale).astype(np.float32)

    of_channels = [normal(groups, channels, mean=mean) for mean in (1, 0, 0)]
    of_channels[1] /= np.float32(scale)
    return normal(groups, rows, channels, mean=1), *of_channels, normal(groups, rows, channels)


def affine(x, mean, scale, shift):
    with np.errstate(invalid="ignore", over="ignore"):
        return fused(x - mean[:, None], scale[:, None], shift[:, None])


def assert_rectified_sum(x, mean, scale, shift, residual):
    """Check all results, with the mask and without."""
    with np.errstate(invalid="ignore", over="ignore"):
        y = np.maximum(affine(x, mean, scale, shift) + residual, np.float32(0))
    actual, positive, low, high = on_every_path(passes.rectified_sum, x, residual, mean, scale, shift)
    assert positive.dtype == np.bool_
    # Compare bytes, since a bool must be exactly 0 or 1.
    np.testing.assert_array_equal(positive.view(np.uint8), (y > 0).astype(np.uint8))
    assert_same_bits(actual, y)
    assert_same_bits(low, y.min(1, initial=np.inf))
    assert_same_bits(high, y.max(1, initial=0))
    again, nothing, *extremes = on_every_path(unmasked, x, residual, mean, scale, shift)
    assert nothing.shape == (0,)
    for a, b in zip((again, *extremes), (actual, low, high), strict=True):
        assert_same_bits(a, b)
    return y


def assert_rectified_sums(x, mean, scale, shift, g):
    sums, products = on_every_path(passes.rectified_sums, g, x, mean, scale, shift)
    with np.errstate(invalid="ignore", over="ignore"):
        counted = np.where(affine(x, mean, scale, shift) > 0, g, 0).astype(np.float64)
    assert_sums(sums, counted)
    assert_sums(products, counted * (x.astype(np.float64) - mean[:, None]))


@pytest.mark.parametrize(("groups", "rows", "channels"), SHAPES)
def test_ordinary_numbers(groups, rows, channels):
    args = operands(groups, rows, channels)
    y = assert_rectified_sum(*args)
    assert y.size < 100 or 0.2 < (y > 0).mean() < 0.8
    assert_rectified_sums(*args)


def test_blocks_are_joined_in_every_group():
    """Each group has its own extremes, whichever block they are in."""
    x = np.ones((3, 40000, 2), np.float32)
    for group, row in enumerate((0, 20000, 39999)):
        x[group, row] = 5 + group
        x[group, -1 - row] = 0.5
    of_channels = [np.full((3, 2), v, np.float32) for v in (0, 1, 0)]
    _, _, low, high = on_every_path(passes.rectified_sum, x, np.zeros_like(x), *of_channels)
    assert (low == 0.5).all()
    np.testing.assert_array_equal(high, [[5, 5], [6, 6], [7, 7]])


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("special", [np.nan, -np.nan, np.inf, -np.inf, 3e38, -3e38, -0.0, 1e-45])
def test_a_special_number_stays_in_its_channel(special, at):
    """A special number in x, mean, scale, shift or residual; in vectorized channels and in the remainder."""
    args = operands(2, 700, 53)
    plain = on_every_path(passes.rectified_sum, args[0], args[4], *args[1:4])
    plain_sums = on_every_path(passes.rectified_sums, args[4], *args[:4])
    channels = [3, 40, 52]
    for channel in channels:
        args[at][(1, 650, channel) if at in (0, 4) else (1, channel)] = special
    assert_rectified_sum(*args)
    actual = on_every_path(passes.rectified_sum, args[0], args[4], *args[1:4])
    others = np.ones((2, 53), bool)
    others[1, channels] = False
    for a, b in zip(actual, plain, strict=True):
        of = others if a.ndim == 2 else np.broadcast_to(others[:, None], a.shape)
        assert_same_bits(a[of], b[of])
    actual_sums = on_every_path(passes.rectified_sums, args[4], *args[:4])
    for a, b in zip(actual_sums, plain_sums, strict=True):
        assert_same_bits(a[others], b[others])


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_cotangents_count_where_they_are_not_rectified(special):
    x, mean, scale, shift, g = operands(1, 100, 37)
    positive = affine(x, mean, scale, shift) > 0
    g[~positive] = special
    assert_rectified_sums(x, mean, scale, shift, g)
    channel = np.flatnonzero(positive[0, 50])[-1]
    g[0, 50, channel] = special
    sums, products = on_every_path(passes.rectified_sums, g, x, mean, scale, shift)
    np.testing.assert_equal(sums[0, channel], np.float32(special))
    assert not np.isfinite(products[0, channel])
    assert np.isfinite(np.delete(sums, channel, 1)).all()


def test_nans_are_not_positive():
    """Cotangents do not count where the rectified value is NaN, but the product of 0 and a NaN is NaN."""
    x, mean, scale, shift, g = operands(1, 100, 37)
    x[0, 50, 36], scale[0, 2] = np.nan, np.nan
    sums, products = on_every_path(passes.rectified_sums, g, x, mean, scale, shift)
    assert sums[0, 2] == products[0, 2] == 0
    assert np.isfinite(sums).all() and np.isnan(products[0, 36])


@pytest.mark.parametrize("scale", [1e-38, 1e-40, 1e-44])
def test_subnormal_numbers(scale):
    args = operands(2, 700, 37, scale)
    y = assert_rectified_sum(*args)
    assert (y[y > 0] < 1.2e-38).any()
    x, mean, factor, shift, g = args
    # Their sums are only as precise as subnormal numbers.
    sums, _ = on_every_path(passes.rectified_sums, g, x, mean, factor, shift)
    counted = np.where(affine(x, mean, factor, shift) > 0, g, 0).astype(np.float64)
    bound = 32 * 2.0**-24 * np.abs(counted).sum(1) + 2.0**-149
    assert counted.any() and (np.abs(sums - counted.sum(1)) <= bound).all()


@pytest.mark.parametrize("channels", [1, 16, 37])
def test_zeros_have_no_sign_and_are_not_positive(channels):
    zero, ones = np.full((1, 70, channels), -0.0, np.float32), np.ones((1, channels), np.float32)
    y, positive, low, high = on_every_path(passes.rectified_sum, zero, zero, 0 * ones, ones, zero[:, 0])
    assert not positive.any()
    for found in (y, low, high):
        assert_same_bits(found, np.zeros_like(found))
    # With x - mean = 0 the shift alone decides, and a value of 0 does not count.
    for shift, counts in ((0.0, 0), (-0.0, 0), (1e-45, 70)):
        shifts = np.full_like(ones, shift)
        sums, products = on_every_path(passes.rectified_sums, zero + 1, zero, 0 * ones, ones, shifts)
        assert (sums == counts).all() and not products.any()
