"""The precisions that `benchmarks.robustness` compares, and the products that it computes in each."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.common.shapes import Dot, Einsum
from benchmarks.fidelity.precisions import BFLOAT16, DFP16, DFP16_BLOCKS, FLOAT32, Precision

COMPARED = (FLOAT32, BFLOAT16, DFP16, DFP16_BLOCKS)


def products_of_tokens(texts: int, tokens: int, channels: int, features: int) -> tuple[Einsum, Dot]:
    """`[texts, tokens, channels]` · `[channels, features]`, and the same with the tokens in one axis."""
    return (
        Einsum(equation="ntc,cd->ntd", lhs=(texts, tokens, channels), rhs=(channels, features)),
        Dot(m=texts * tokens, k=channels, n=features),
    )


@functools.cache
def matmul(precision: Precision, m: int, k: int, n: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The product of float32 `[m, k]` and `[k, n]`, whose three passes are all in that precision."""
    product = precision.operation(Dot(m=m, k=k, n=n))
    if precision.bits:
        return product

    @jax.custom_vjp
    def rounded(x, w):
        return jnp.matmul(precision.round(x), precision.round(w))

    def forward(x, w):
        return rounded(x, w), (x, w)

    def backward(operands, dy):
        x, w = map(precision.round, operands)
        dy = precision.round(dy)
        return jnp.matmul(dy, w.T), jnp.matmul(x.T, dy)

    rounded.defvjp(forward, backward)
    return rounded
