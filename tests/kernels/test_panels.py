"""Contractions with a matrix in panels, on every path."""

import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax
from dfpjax import _native, kernels
from dfpjax.kernels.panels import contract_panels
from dfpjax.numbers import Blocks
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.numbers.format.panels import Panels
from dfpjax.operations.panels import packed

PATHS = [name for name, why_not in _native.isas() if not why_not]


def quantized(shape, seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=shape) * np.exp2(random.integers(-6, 7, (shape[0], 1)))
    x[0, : shape[1] // 2] = 0  # blocks of zeros
    q = dfpjax.quantize(jnp.asarray(x, jnp.float32), blocks=Blocks())
    return q.mantissa, q.block_exponent


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 8, 14, 20])
def test_bits_are_those_of_the_matrix_itself(path, rows):
    for k, n, contracted in ((1100, 560, 0), (1100, 560, 1)):  # large enough to stream
        shape = (k, n) if contracted == 0 else (n, k)
        form = Panels(shape=shape, contracted=contracted, blocks=Blocks())
        a, ea = quantized((rows, k), 1)
        b, eb = quantized(shape, 2)
        rhs = (1, 2) if contracted == 0 else (2, 1)
        contraction = Contraction(lhs=(0, 1), rhs=rhs, out=(0, 2), out_shape=(rows, n))
        plan = make_plan(contraction, a.shape, b.shape, ea.shape, eb.shape, (Blocks(), Blocks()))
        words, info, _ = packed(form, b, eb)
        out = contract_panels(plan, a, words, info, ea, shape_b=b.shape, exponents_b=eb.shape, isa=path)
        expected = kernels.contract(plan, a, b, ea, eb, isa="portable")
        np.testing.assert_array_equal(out, expected)


def test_wrong_sizes_are_errors():
    form = Panels(shape=(64, 64), contracted=0, blocks=Blocks())
    a, ea = quantized((2, 64), 1)
    b, eb = quantized((64, 64), 2)
    contraction = Contraction(lhs=(0, 1), rhs=(1, 2), out=(0, 2), out_shape=(2, 64))
    plan = make_plan(contraction, a.shape, b.shape, ea.shape, eb.shape, (Blocks(), Blocks()))
    words, info, _ = packed(form, b, eb)
    with pytest.raises(Exception, match="words: must have"):
        contract_panels(plan, a, words[:-2], info, ea, shape_b=b.shape, exponents_b=eb.shape)
    with pytest.raises(Exception, match="info: must have"):
        contract_panels(plan, a, words, info[:-1], ea, shape_b=b.shape, exponents_b=eb.shape)
