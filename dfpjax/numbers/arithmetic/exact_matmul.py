"""Exact matrix products of integers, as a primitive, with its computation in ordinary JAX operations.

Where there is native code for it, `dfpjax.operations.exact_matmul` registers that. Both give the same
integers.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from dfpjax import _compat
from dfpjax.numbers.format.explicit import lower_fun
from dfpjax.numbers.format.wide import Wide, add, widen

CHUNK = 256
"""Number of products of an int16 and an 8-bit integer whose sum fits an int32 for any data."""

exact_matmul_p = Primitive("dfp_exact_matmul")
exact_matmul_p.multiple_results = True


def exact_matmul(a: jax.Array, b: jax.Array) -> Wide:
    """a @ b in 64-bit integers, for sums below 2^63.

    Arguments:
        a, b: arrays of at least two axes, of shapes as for `numpy.matmul`: int16, or int32 of at most 23 bits
            and a sign.
    """
    return Wide(*exact_matmul_p.bind(*_compat.vary_together(a, b)))


@exact_matmul_p.def_abstract_eval
def _abstract_eval(a, b):
    wide = [x.update(dtype=jnp.dtype("int32"), weak_type=False) for x in (a, b)]
    product = _compat.trace(jnp.matmul, wide, "exact_matmul")[0].outvars[0].aval
    return product, product.update(dtype=jnp.dtype("uint32"))


def _batch(operands, dims):
    # Leading axes broadcast, so an operand that is not mapped stays as it is.
    rank = max(x.ndim - (dim is not None) for x, dim in zip(operands, dims, strict=True))

    def with_leading(x, dim):
        missing = tuple(range(1, rank + 2 - x.ndim))
        return x if dim is None else jnp.expand_dims(jnp.moveaxis(x, dim, 0), missing)

    return exact_matmul_p.bind(*map(with_leading, operands, dims)), (0, 0)


exact_matmul_p.def_impl(functools.partial(_compat.apply_primitive, exact_matmul_p))
batching.primitive_batchers[exact_matmul_p] = _batch


def exact_matmul_in_hlo(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The computation of `exact_matmul_p` in HLO."""
    # Of a whole int16, or two bytes of more, at once, of b one byte: no sum of 256 products reaches 2^31.
    a_bytes, b_bytes = (x.dtype.itemsize // 2 for x in (a, b))
    a, b = a.astype(jnp.int32), b.astype(jnp.int32)

    def chunk_sum(a, b):
        total = None
        for left, left_shift in _split(a, a_bytes - 1):
            for right, right_shift in _split(b, b_bytes):
                part = widen(jnp.matmul(left, right), left_shift + right_shift)
                total = part if total is None else add(total, part)
        return total

    count = a.shape[-1]
    first = count % CHUNK or min(count, CHUNK)
    total = chunk_sum(a[..., :first], b[..., :first, :])
    if count > first:
        chunks_a = jnp.moveaxis(a[..., first:].reshape(*a.shape[:-1], -1, CHUNK), -2, 0)
        chunks_b = b[..., first:, :].reshape(*b.shape[:-2], -1, CHUNK, b.shape[-1])
        chunks = chunks_a, jnp.moveaxis(chunks_b, -3, 0)
        total, _ = lax.scan(lambda total, chunk: (add(total, chunk_sum(*chunk)), None), total, chunks)
    return total


def _split(x: jax.Array, low_bytes: int) -> list[tuple[jax.Array, int]]:
    """x as the sum of part · 2^shift: so many bytes without sign, and what stands above them."""
    low = [((x >> 8 * position) & 255, 8 * position) for position in range(low_bytes)]
    return [*low, (x >> 8 * low_bytes, 8 * low_bytes)]


mlir.register_lowering(exact_matmul_p, lower_fun(exact_matmul_in_hlo, multiple_results=True))
