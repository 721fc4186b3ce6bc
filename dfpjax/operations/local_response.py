"""Local response normalization over the channels, in native passes forward and backward."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching

from dfpjax.kernels import passes
from dfpjax.operations.partitioning import Axes, Layout, per_shard
from dfpjax.operations.passes import jvp_by, jvp_in_hlo, mapped_first, pass_primitive, transpose_by

NATIVE_POWER = 0.75
"""The power that the native passes compute; other powers take ordinary operations."""


def local_response_norm(x: jax.Array, *, size: int, k: float, alpha: float, beta: float) -> jax.Array:
    """x / (k + alpha · s) ** beta, where s is the sum of x² over the `size` channels around each.

    Arguments:
        x: floating-point [..., channels].
        size: an odd number.

    Returns:
        An array of x's shape and dtype.
    """
    return response_p.bind(x, size=size, k=k, alpha=alpha, beta=beta)


def _response(x, *, size, k, alpha, beta):
    return x * _power(k + alpha * _window_sum(x * x, size), beta)


def _tangent(dx, x, *, size, k, alpha, beta):
    divisor = k + alpha * _window_sum(x * x, size)
    scale = _power(divisor, beta)
    return dx * scale - 2 * alpha * beta * (x * scale / divisor) * _window_sum(dx * x, size)


def _gradient(g, x, *, size, k, alpha, beta):
    """The gradient, written out because XLA for CPU takes 15 times as long for the one that JAX derives."""
    divisor = k + alpha * _window_sum(x * x, size)
    scale = _power(divisor, beta)
    # The window is symmetric, so the window sum is its own transpose.
    return g * scale - 2 * alpha * beta * x * _window_sum(g * x * scale / divisor, size)


def _window_sum(x: jax.Array, size: int) -> jax.Array:
    """The sum over the `size` channels around each channel."""
    channels, reach = x.shape[-1], size // 2
    # XLA fuses slices of one padded array into one pass, but not a window reduction.
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(reach, reach)])
    return sum(x[..., start : start + channels] for start in range(size))


def _power(x: jax.Array, beta: float) -> jax.Array:
    """x ** −beta, without a logarithm for the usual power."""
    if beta == NATIVE_POWER:
        root = lax.rsqrt(x)
        return root * lax.sqrt(root)
    return x**-beta


def _natively(native, in_hlo, *operands, size, k, alpha, beta):
    x = operands[0]
    if beta != NATIVE_POWER or x.dtype != jnp.float32:
        return in_hlo(*operands, size=size, k=k, alpha=alpha, beta=beta)
    # A reach beyond all channels means the same as one that includes them all.
    return native(*operands, reach=min(size // 2, x.shape[-1]), k=k, alpha=alpha)[0]


def _layout(x, *others, **_) -> Layout:
    axes = Axes(labels=tuple(range(x.ndim)))
    return Layout(operands=(axes,) * (1 + len(others)), results=(axes,), whole=frozenset([x.ndim - 1]))


def _per_shard(name, native):
    @per_shard(name, _layout)
    def run(*operands, **response):
        x = operands[0]
        rows = (v.reshape(x.size // max(x.shape[-1], 1), x.shape[-1]) for v in operands)
        return (native(*rows, **response).reshape(x.shape),)

    return run


def _primitive(name, in_hlo, native):
    return pass_primitive(name, in_hlo, functools.partial(_natively, native, in_hlo))


response_p = _primitive("dfp_local_response", _response, _per_shard("local_response", passes.local_response))
response_tangent_p = pass_primitive("dfp_local_response_tangent", _tangent, _tangent)
response_gradient_p = _primitive(
    "dfp_local_response_gradient",
    _gradient,
    _per_shard("local_response_gradient", passes.local_response_gradient),
)


def _batch(primitive, operands, dims, **params):
    return primitive.bind(*mapped_first(operands, dims), **params), 0


ad.primitive_jvps[response_p] = functools.partial(jvp_by, response_p, response_tangent_p)
for _p, _in_hlo, _other in (
    (response_tangent_p, _tangent, response_gradient_p),
    (response_gradient_p, _gradient, response_tangent_p),
):
    ad.primitive_jvps[_p] = functools.partial(jvp_in_hlo, _p, _in_hlo)
    ad.primitive_transposes[_p] = functools.partial(transpose_by, _other)
for _p in (response_p, response_tangent_p, response_gradient_p):
    batching.primitive_batchers[_p] = functools.partial(_batch, _p)
