"""What the quantization of transformed operands loses, compared with numerics.md in NumPy."""

import functools

import by_the_page_winograd as page
import jax
import numpy as np
import pytest
from blocked import normal, problem, wide
from by_the_page_winograd import F23, F25, F43, in_patches
from cases import SAME, conv, passes
from winograd_cases import same

from dfpjax.numbers.contraction import transformed
from dfpjax.numbers.format.blocks import Blocks, expanded
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT

BOTH = (Blocks(), Blocks())


def measured(case, data, algorithm):
    """(mantissas, exponents) of A and of B for each of their elements, and what is measured."""
    plan, operands, _ = problem(case, data, blocks=BOTH, algorithm=algorithm)
    found = sqnr_db(*operands, plan=plan)
    elements = [
        (np.asarray(x, np.int64), expanded(np.asarray(e), x.shape, Blocks()))
        for x, e in (operands[::2], operands[1::2])
    ]
    return elements, found


@pytest.fixture
def everything(monkeypatch):
    """The sample is everything."""
    monkeypatch.setattr(transformed, "SAMPLE", 2**20)
    sqnr_db.clear_cache()
    yield
    sqnr_db.clear_cache()


@functools.partial(jax.jit, static_argnames="plan")
def sqnr_db(a, b, exponent_a, exponent_b, *, plan):
    operands = transformed.operands_of(plan.parts[0], plan.grids)
    arrays = (a.ravel(), exponent_a.ravel()), (b.ravel(), exponent_b.ravel())
    return [transformed.transformed_sqnr_db(x, *of_x) for x, of_x in zip(operands, arrays, strict=True)]


def by_the_page(m, e, transform, c, tile, block):
    """Of mantissas and exponents [rows, k, side, side]."""
    signal = lost = 0
    for i in range(len(m)):
        for k in range(0, m.shape[1], block):
            of_block = m[i, k : k + block], e[i, k : k + block]
            v, largest = page.transformed(*of_block, transform, tile)
            mantissas, exponents, _ = page.quantized(*of_block, transform, c, tile)
            v = np.ldexp(v.astype(np.float64) * c, largest)
            signal += np.sum(v**2)
            lost += np.sum((v - np.ldexp(mantissas.astype(np.float64), exponents)) ** 2)
    return 10 * np.log10(signal / lost)


def patches(x, low, shape, tile):
    return [in_patches(z, low, shape, tile, fill) for z, fill in zip(x, (0, page.ABSENT), strict=True)]


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(("data", "tile"), [(wide, F23), (normal, F43), (normal, F25)])
def test_fprop(data, tile):
    """Several blocks of channels."""
    taps = tile.taps
    case = passes(*conv((2, 6, 5, 262), (taps, taps, 262, 67), padding=same(taps)))["fprop"]
    (x, w), found = measured(case, data, f"winograd{tile.outputs}")
    c = page.normalizations(tile)
    a = patches(x, taps // 2, (6, 5), tile)
    expected = [
        by_the_page(*a, page.INPUT[tile], np.ones_like(c), tile, 256),
        by_the_page(*(z.transpose(3, 2, 0, 1) for z in w), page.KERNEL[tile], c, tile, 256),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(("data", "tile"), [(normal, F23), (wide, F43), (wide, F25)])
def test_wgrad(data, tile):
    """Several blocks of tiles, the last of which is not full."""
    t, taps, size = tile.outputs, tile.taps, 5 * tile.outputs + 1
    case = passes(*conv((4, size, size, 7), (taps, taps, 7, 9), padding=same(taps)))["wgrad"]
    (x, dy), found = measured(case, data, f"winograd{t}")
    c, shape = page.normalizations(tile), (size, size)
    a = [z.swapaxes(0, 1) for z in patches(x, taps // 2, shape, tile)]
    b = [z.swapaxes(0, 1)[..., :t, :t] for z in patches(dy, 0, shape, tile)]
    expected = [
        by_the_page(*a, page.INPUT[tile], np.ones_like(c), tile, 128),
        by_the_page(*b, page.COTANGENT[tile], c, tile, 128),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sample_of_many_tiles(request):
    """Images and channels of different size: the sample has its share of each."""

    def data(rng, shape):
        of_image, of_channel = rng.standard_normal((shape[0], 1, 1, 1)), rng.standard_normal(shape[-1])
        return rng.standard_normal(shape) * np.exp((of_image + of_channel) / 2)

    case = passes(*conv((20, 16, 16, 32), (3, 3, 32, 4), padding=SAME))["fprop"]
    plan, operands, _ = problem(case, data, blocks=BOTH, algorithm="winograd2")
    tiles, _ = transformed.operands_of(plan.parts[0], plan.grids)
    assert tiles.elements.shape[1] == 20 * 8 * 8 > transformed.SAMPLE
    sample = sqnr_db(*operands, plan=plan)
    request.getfixturevalue("everything")
    whole = sqnr_db(*operands, plan=plan)
    np.testing.assert_allclose(sample, whole, atol=0.5)
    assert sample[0] != whole[0] and sample[1] == whole[1]  # a small kernel is measured as a whole


@pytest.mark.parametrize("total", [65, 128, 512, 3 * 14 * 14, 32 * 56 * 56])
def test_the_sample_is_spread_evenly(total):
    places = transformed._spread(total, 64)
    assert len({*places}) == 64 and places.min() >= 0 and places.max() < total
    for period in (2, 4, 7, total):  # of rows of tiles, such as those at a border
        counts = np.histogram(places % period, bins=min(period, 8), range=(0, period))[0]
        shares = np.histogram(np.arange(total) % period, bins=min(period, 8), range=(0, period))[0] / total
        np.testing.assert_allclose(counts / 64, shares, atol=0.05)


def test_zeros_lose_nothing_and_what_is_not_finite_everything():
    case = passes(*conv((1, 4, 4, 8), (3, 3, 8, 4), padding=SAME))["fprop"]
    plan, (x, w, of_x, of_w), _ = problem(case, normal, blocks=BOTH, algorithm="winograd2")
    of_x = np.array(of_x)
    of_x[0, 0, 0] = NONFINITE_EXPONENT - 14
    of_input, of_kernel = sqnr_db(x, np.zeros_like(w), of_x, of_w, plan=plan)
    assert np.isnan(of_input) and np.isposinf(of_kernel)
