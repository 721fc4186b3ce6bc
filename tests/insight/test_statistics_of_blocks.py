"""Statistics of tensors whose blocks have an exponent each, compared with the definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax
from dfpjax import Blocks
from dfpjax.insight._measures import of_quantized
from dfpjax.insight._statistics import operand_statistics
from dfpjax.numbers import Quantizer
from dfpjax.numbers.format.dtype import to_integers
from dfpjax.numbers.format.quantize import quantize_array

BLOCKS = Blocks(rows=2, columns=16)


def scaled_rows(bits: int) -> np.ndarray:
    """Rows of very different size, with numbers that round to zero and mantissas at the limit in each."""
    x = np.random.default_rng(0).normal(size=(3, 4, 40)).astype(np.float32)
    x[:, :, :3] *= np.float32(2.0**-bits)
    x[:, :, 5] = 7.9999
    return x * np.ldexp(np.float32(1), np.arange(-40, 44, 7).reshape(3, 4, 1))


@pytest.mark.parametrize("bits", [16, 6])
def test_each_block_counts_with_its_own_exponent(bits):
    x = scaled_rows(bits)
    mantissa, exponent = quantize_array(jnp.asarray(x), Quantizer(bits=bits), blocks=BLOCKS)
    found = of_quantized(jnp.asarray(x), mantissa, exponent, bits=bits, blocks=BLOCKS)
    q = dfpjax.quantize(x, bits=bits, blocks=BLOCKS)
    m, value, x = np.asarray(q.mantissa), np.asarray(q, np.float64), x.astype(np.float64)
    assert found.exponent == np.max(q.block_exponent)
    expected = {
        "rms_over_max": np.sqrt(np.mean(x**2)) / np.abs(x).max(),
        "sqnr_db": 10 * np.log10(np.sum(x**2) / np.sum((x - value) ** 2)),
        "zeros": np.mean(m == 0),
        "clamped": np.mean(np.abs(m) == 2 ** (bits - 1) - 1),
    }
    assert bits == 16 or expected["zeros"] > 0
    assert expected["clamped"] > 0
    for name, number in expected.items():
        np.testing.assert_allclose(getattr(found, name), number, rtol=2e-4, err_msg=name)


def test_examples_that_vmap_added_have_blocks_of_their_own():
    x = jnp.asarray(scaled_rows(8))
    quantize = jax.vmap(lambda x: quantize_array(x, Quantizer(bits=8), blocks=BLOCKS))
    mantissa, exponent = quantize(x)
    found = operand_statistics(x, to_integers(mantissa), exponent, bits=8, blocks=BLOCKS)
    examples = [np.asarray(dfpjax.quantize(one, bits=8, blocks=BLOCKS), np.float64) for one in x]
    lost = np.sum((np.asarray(x, np.float64) - np.stack(examples)) ** 2)
    signal = np.sum(np.asarray(x, np.float64) ** 2)
    np.testing.assert_allclose(found.sqnr_db, 10 * np.log10(signal / lost), rtol=2e-4)


def test_empty_and_not_finite():
    def measured(x):
        return operand_statistics(
            x, *integers(*quantize_array(x, Quantizer(), blocks=BLOCKS)), bits=16, blocks=BLOCKS
        )

    def integers(mantissa, exponent):
        return to_integers(mantissa), exponent

    empty = measured(jnp.zeros((0, 3)))
    assert (empty.zeros, empty.clamped, empty.sqnr_db) == (0, 0, np.inf)
    assert np.isnan(measured(jnp.zeros((3, 40)).at[1, 2].set(jnp.nan)).zeros)


def test_the_figure_shows_the_largest_block():
    q = dfpjax.quantize(scaled_rows(16), blocks=BLOCKS)
    label = dfpjax.plot_mantissas(q).axes[0].get_xlabel()
    assert label == f"mantissa (exponent {np.max(q.block_exponent)}, the largest of its blocks)"
