"""The native lowering of exact matrix products, which sums of bytes make.

The kernels add chains in float32, which has 24 bits. So integers are taken apart into bytes with a sign, and
products of bytes are contracted, so few at a time that no sum needs more bits. Partitioned programs take the
computation in HLO.
"""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir

from dfpjax import _compat, kernels
from dfpjax.numbers.arithmetic.exact_matmul import exact_matmul_in_hlo, exact_matmul_p
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.numbers.format.explicit import lower_fun
from dfpjax.numbers.format.wide import Wide, add, widen

CHUNK = 512
"""Number of products that are contracted at once. Bytes with a sign reach 2^7, so float32 has all sums of
1024 products. With fewer, the bytes of a chunk are still in a cache when they are multiplied."""


def exact_matmul(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The computation of `exact_matmul_p` in native kernels."""
    a, b, contraction, out_shape = _as_contraction(a, b)
    count = a.shape[-1]
    if not count or 0 in out_shape:
        return jnp.zeros(out_shape, jnp.int32), jnp.zeros(out_shape, jnp.uint32)
    first = count % CHUNK or CHUNK

    def chunk_sum(start, size: int) -> Wide:
        of_a = lax.dynamic_slice_in_dim(a, start, size, a.ndim - 1)
        of_b = lax.dynamic_slice_in_dim(b, start, size, b.ndim - 2)
        if a.size <= b.size:
            return _sum_of_products(of_a, of_b, contraction)
        return _sum_of_products(of_b, of_a, contraction.swap())

    def add_chunk(position, total):
        return add(total, chunk_sum(first + CHUNK * position, CHUNK))

    total = chunk_sum(0, first)
    return lax.fori_loop(0, (count - first) // CHUNK, add_chunk, total) if count > CHUNK else total


def _as_contraction(a, b) -> tuple[jax.Array, jax.Array, Contraction, tuple[int, ...]]:
    """a @ b as a contraction, whose operands lack the axes that broadcast."""
    leading = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out_shape = (*leading, a.shape[-2], b.shape[-1])
    row, column, summed = (len(leading) + position for position in range(3))

    def without_broadcast(x) -> tuple[jax.Array, tuple[int, ...]]:
        own = range(len(leading) - (x.ndim - 2), len(leading))
        kept = [label for label, size in zip(own, x.shape[:-2], strict=True) if size == leading[label]]
        return x.reshape(*(leading[label] for label in kept), *x.shape[-2:]), tuple(kept)

    (a, of_a), (b, of_b) = without_broadcast(a), without_broadcast(b)
    lhs, rhs = (*of_a, row, summed), (*of_b, summed, column)
    out = (*range(len(leading)), row, column)
    return a, b, Contraction(lhs=lhs, rhs=rhs, out=out, out_shape=out_shape), out_shape


def _sum_of_products(lhs: jax.Array, rhs: jax.Array, contraction: Contraction) -> Wide:
    """The exact sum of at most 1024 products, which takes the bytes of lhs, the smaller operand, together."""
    left = jnp.stack([*_bytes(lhs)])
    label = 1 + max(*contraction.lhs, *contraction.rhs)
    of_bytes = replace(
        contraction,
        lhs=(label, *contraction.lhs),
        out=(label, *contraction.out),
        out_shape=(len(left), *contraction.out_shape),
    )
    total = None
    for right_position, right in enumerate(_bytes(rhs)):
        products = _contract(left, right, of_bytes).astype(jnp.int32)
        for left_position in range(len(left)):
            part = widen(products[left_position], 8 * (left_position + right_position))
            total = part if total is None else add(total, part)
    return total


def _bytes(x: jax.Array) -> Iterator[jax.Array]:
    """The bytes of x from the lowest on, as int16 from −128 to 128: two of an int16, and three of an int32 of
    at most 23 bits and a sign."""
    for _ in range(x.dtype.itemsize // 2):
        yield x.astype(jnp.int8).astype(jnp.int16)
        x = (x >> 8) + ((x >> 7) & 1)
    yield x.astype(jnp.int16)


def _contract(lhs: jax.Array, rhs: jax.Array, contraction: Contraction) -> jax.Array:
    """The contraction of int16 whose sums float32 can hold."""
    exponents = (1,) * lhs.ndim, (1,) * rhs.ndim
    plan = make_plan(contraction, lhs.shape, rhs.shape, *exponents)
    operands = lhs, rhs, *(jnp.zeros(shape, jnp.int32) for shape in exponents)
    if plan.swapped:
        operands = operands[1], operands[0], operands[3], operands[2]
    return kernels.contract(plan, *operands)


_native = lower_fun(exact_matmul, multiple_results=True)
_hlo = lower_fun(exact_matmul_in_hlo, multiple_results=True)


def _lower(ctx, *operands):
    by_xla = _compat.is_partitioned(ctx) or _compat.is_partly_manual(ctx)
    return (_hlo if by_xla else _native)(ctx, *operands)


mlir.register_lowering(exact_matmul_p, _lower, platform="cpu")
