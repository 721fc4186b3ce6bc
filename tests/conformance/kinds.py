"""Kinds of operations: the convolutions and dot products around which the matrix builds its programs.

A kind is a function `apply(w, x)`, linear in each argument, whose result has the shape of `x`. So it can be
iterated, transposed and solved for. If the operation itself gives another shape, additions and copies alone
restore that of `x`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of operation."""

    name: str
    w: tuple[int, ...]
    """Shape of the weights."""
    x: tuple[int, ...]
    """Shape of the input and of the result."""
    apply: Callable[[jax.Array, jax.Array], jax.Array]


def _einsum(name: str, subscripts: str, w: tuple[int, ...], x: tuple[int, ...]) -> Kind:
    def apply(w, x):
        return jnp.einsum(subscripts, x, w)

    return Kind(name=name, w=w, x=x, apply=apply)


def _upsampled(y):
    return jnp.repeat(jnp.repeat(y, 2, 1), 2, 2)


def _pooled(y):
    n, h, w, c = y.shape
    return y.reshape(n, h // 2, 2, w // 2, 2, c).sum((2, 4))


def _conv(
    name: str,
    w: tuple[int, ...],
    x: tuple[int, ...] = (1, 4, 4, 2),
    *,
    numbers=NHWC,
    padding="SAME",
    strides=None,
    after: Callable = lambda y: y,
    **kwargs,
) -> Kind:
    def apply(w, x):
        y = lax.conv_general_dilated(
            x, w, strides or (1,) * (x.ndim - 2), padding, dimension_numbers=numbers, **kwargs
        )
        return after(y)

    return Kind(name=name, w=w, x=x, apply=apply)


def _matvec(w, x):
    return w @ x


DENSE = _einsum("dense", "ij,jk->ik", w=(6, 6), x=(4, 6))
CONV = _conv("convolution", w=(3, 3, 2, 2))

DOTS = [
    DENSE,
    _einsum("dense, w transposed", "ij,kj->ik", w=(6, 6), x=(4, 6)),
    _einsum("vector-matrix", "j,jk->k", w=(6, 6), x=(6,)),
    Kind(name="matrix-vector", w=(6, 6), x=(6,), apply=_matvec),
    _einsum("batched", "bij,bjk->bik", w=(2, 4, 4), x=(2, 3, 4)),
    _einsum("attention scores", "qhd,khd->qhk", w=(4, 2, 4), x=(3, 2, 4)),
    _einsum("attention values", "hqk,khd->hqd", w=(4, 2, 4), x=(2, 3, 4)),
    _einsum("several contracted axes", "abij,ijkl->abkl", w=(2, 3, 2, 3), x=(1, 2, 2, 3)),
]

CONVS = [
    CONV,
    _conv("1x1", w=(1, 1, 3, 3), x=(1, 3, 3, 3)),
    _conv("NCHW", w=(2, 2, 3, 3), x=(1, 2, 4, 4), numbers=NCHW),
    _conv("1-D", w=(3, 2, 2), x=(2, 5, 2), numbers=("NHC", "HIO", "NHC")),
    _conv("3-D", w=(2, 2, 2, 2, 2), x=(1, 3, 2, 3, 2), numbers=("NDHWC", "DHWIO", "NDHWC")),
    _conv("strided", w=(3, 3, 2, 2), strides=(2, 2), after=_upsampled),
    _conv("dilated kernel", w=(3, 3, 2, 2), rhs_dilation=(2, 2)),
    _conv("asymmetric padding", w=(2, 3, 2, 2), padding=((2, -1), (-1, 3))),
    _conv("grouped", w=(3, 3, 2, 4), x=(1, 4, 4, 4), feature_group_count=2),
    _conv("depthwise", w=(3, 3, 1, 4), x=(1, 4, 4, 4), feature_group_count=4),
    _conv("transposed", w=(3, 3, 2, 2), padding=((1, 2), (1, 2)), lhs_dilation=(2, 2), after=_pooled),
    _conv(
        "batch groups",
        w=(3, 3, 2, 4),
        x=(4, 4, 4, 2),
        batch_group_count=2,
        after=lambda y: y.reshape(4, 4, 4, 2),
    ),
]

KINDS = {kind.name: kind for kind in (*DOTS, *CONVS)}
