"""Operands in blocks for the tests of contractions, their exact products, and every way to run a plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from cases import COMPILED_QUICKLY
from test_native import ISAS

from dfpjax import kernels
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.numbers.contraction.reference import run_plan
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT


def wide(rng, shape):
    """Values whose blocks differ by many powers of two; some are zero."""
    x = rng.standard_normal(shape) * np.exp(6 * rng.standard_normal(shape))
    return np.where(rng.random(shape) < 0.2, 0, x)


def normal(rng, shape):
    return rng.standard_normal(shape)


def block_quantize(x, blocks):
    """Mantissas and exponents by the definition, in NumPy."""
    outer, rows, columns = blocks.view(x.shape)
    mantissas = np.zeros((outer, rows, columns), np.int16)
    exponents = np.zeros(blocks.counts(x.shape), np.int32)
    values = x.reshape(mantissas.shape)
    size = blocks.size(x.shape)
    for index in np.ndindex(exponents.shape):
        block = (
            index[0],
            slice(index[1] * size[0], (index[1] + 1) * size[0]),
            slice(index[2] * size[1], (index[2] + 1) * size[1]),
        )
        mantissas[block], exponents[index] = oracle.quantize(values[block])
    return mantissas.reshape(x.shape), exponents


def dequantized(mantissas, exponents, blocks):
    _, rows, columns = blocks.view(mantissas.shape)
    block_rows, block_columns = blocks.size(mantissas.shape)
    each = np.repeat(np.repeat(exponents, block_rows, 1), block_columns, 2)[:, :rows, :columns]
    return np.ldexp(mantissas.astype(np.float64), each.reshape(mantissas.shape))


def problem(case, data, *, blocks, lost=False, seed=0, algorithm="direct"):
    """A plan, its operands, and the values of lhs and rhs in float64.

    Arguments:
        case: (contraction, lhs_shape, rhs_shape), one of `cases.passes`.
        data: makes an operand from a generator and a shape.
        blocks: the sizes of lhs's and rhs's blocks, or None for one exponent.
        lost: whether each operand in blocks has a block that is not finite.
        algorithm: of the plan.
    """
    contraction, *shapes = case
    rng = np.random.default_rng(seed)
    operands, values = [], []
    for shape, size in zip(shapes, blocks, strict=True):
        x = data(rng, shape).astype(np.float32)
        if size is None:
            mantissas, exponent = oracle.quantize(x)
            exponents = np.full((1,) * len(shape), exponent, np.int32)
            values.append(np.ldexp(mantissas.astype(np.float64), exponent))
        else:
            mantissas, exponents = block_quantize(x, size)
            values.append(dequantized(mantissas, exponents, size))
            if lost:
                exponents.reshape(-1)[rng.integers(exponents.size)] = NONFINITE_EXPONENT - 14
        operands.append((jnp.asarray(mantissas, jnp.int16), jnp.asarray(exponents)))
    (lhs, lhs_exponent), (rhs, rhs_exponent) = operands
    plan = make_plan(contraction, *shapes, lhs_exponent.shape, rhs_exponent.shape, blocks, algorithm)
    if plan.swapped:
        return plan, (rhs, lhs, rhs_exponent, lhs_exponent), values
    return plan, (lhs, rhs, lhs_exponent, rhs_exponent), values


@functools.partial(jax.jit, static_argnames="plan")
def everywhere(*operands, plan):
    run = functools.partial(kernels.contract, plan, *operands)
    return [run(isa=isa, threads=threads) for isa in ISAS for threads in (1, 2)]


@functools.partial(jax.jit, static_argnames="plan", compiler_options=COMPILED_QUICKLY)
def reference(*operands, plan):
    return run_plan(plan, *operands)


def exact(contraction, lhs, rhs):
    out = np.zeros(contraction.out_shape)
    for index, products in oracle.products(contraction, lhs, rhs):
        out[index] = products.sum(axis=-1)
    return out
