"""Programs with batch normalization and pooling that are large enough to be fused.

Tensors have one exponent here, because such an exponent may be fused as well."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from forced import TENSOR_WIDE
from jax import lax
from transform_helpers import normal

from dfpjax import explain
from dfpjax.policy import Policy
from dfpjax.transform import mixed_precision

UNFUSED = Policy(default=TENSOR_WIDE.default, fuse=False)
ROWS = (0, 1, 2)
LARGE = (4, 64, 64, 64)  # 2^20 numbers, the least for which sums are fused
SUM_TOLERANCE = 1e-4  # relative; XLA's float32 sums of so many numbers err by up to 4e-5 in JAX 0.10.1
PASSES = ("dfp_moments", "dfp_paired_sums", "dfp_rectified_sums", "dfp_rectified_sum", "dfp_max_pool",
          "dfp_max_pool_gradient", "dfp_broadcast_rows", "dfp_normalize_tangent",
          "dfp_rectified_tangent")  # fmt: skip
STATISTICS, NORMALIZATION, BIAS = "channel statistics", "normalization", "bias"
RECTIFIED, SUM = "rectified normalization", "rectified sum"
EXPONENT = "exponent from statistics"
OPERAND, COTANGENT = "operand from rectification", "cotangent from gradient"
POOLED_OPERAND = "operand from pooling"

fused = functools.partial(mixed_precision, policy=TENSOR_WIDE)
unfused = functools.partial(mixed_precision, policy=UNFUSED)


def both(fun, *args):
    """The results of the fused and of the unfused program, which are compiled together."""
    return jax.device_get(jax.jit(lambda *args: (fused(fun)(*args), unfused(fun)(*args)))(*args))


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def moments_of(x):
    mean = jnp.mean(x, ROWS, keepdims=True)
    return mean, jnp.mean(jnp.square(x), ROWS, keepdims=True) - jnp.square(mean)


def batch_norm(x, scale, shift):
    mean, variance = moments_of(x)
    return (x - mean) * (lax.rsqrt(variance + 1e-5) * scale) + shift


def pool(x, window=3, stride=2):
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )


def stem(params, x):
    """The first layers of the networks."""
    with jax.named_scope("first"):
        x = conv(x, params["first"])
    with jax.named_scope("norm"):
        return jax.nn.relu(batch_norm(x, params["scale"], params["shift"]))


def network(params, x):
    x = stem(params, x)
    with jax.named_scope("second"):
        x = conv(x, params["second"]) + params["bias"]
    with jax.named_scope("pool"):
        x = pool(x)
    with jax.named_scope("third"):
        return conv(x, params["third"])


PARAMS = {
    "first": normal(0, 1, 1, 3, 64),
    "scale": normal(1, 1, 1, 1, 64),
    "shift": normal(2, 1, 1, 1, 64),
    "second": normal(3, 1, 1, 64, 64) / 8,
    "bias": normal(4, 1, 1, 1, 64),
    "third": normal(5, 1, 1, 64, 4),
}
X = normal(6, *LARGE[:3], 3)


def loss(params, x):
    return jnp.mean(jnp.square(network(params, x)))


def kinds(fun, *args, policy=TENSOR_WIDE):
    return [record.kind for record in explain(fun, *args, policy=policy).fused]


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


LARGE_X, OF_CHANNELS, W = shape(*LARGE), shape(1, 1, 1, 64), shape(1, 1, 64, 4)


def random(*sizes):
    return np.random.default_rng(0).standard_normal(sizes, np.float32)


WEIGHTS = random(1, 1, 64, 4)
