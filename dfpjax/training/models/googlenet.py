"""GoogLeNet, the first Inception network, for images in NHWC.

Source: Szegedy et al., "Going Deeper with Convolutions" (arXiv 1409.4842), table 1 and §5. Two auxiliary
heads in the middle of the network contribute to the training loss only. The paper does not specify
normalization, initialization and padding. Here the normalization is AlexNet's, kernels and biases are
initialized as in Caffe's published replication, and output sizes of strided layers are rounded up, as the
sizes in table 1 require.

The model is plain Flax with automatic names (`Conv_0`, `Inception_3/Conv_2`, `Auxiliary_0/Dense_0`).
`dfpjax.mixed_precision(model.apply)` decides which operations run in int16.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .normalization import local_response_norm

_FIRST_WIDTH = 64  # channels of the published stem; `width` / `_FIRST_WIDTH` scales all channels

# Uniform, with variance 1/fan_in.
_xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Branches(NamedTuple):
    """Channels of one Inception module, in the order of table 1's columns."""

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int


# Modules 3a and 3b; 4a to 4e; 5a and 5b.
STAGES = (
    (Branches(64, 96, 128, 16, 32, 32), Branches(128, 128, 192, 32, 96, 64)),
    (
        Branches(192, 96, 208, 16, 48, 64),
        Branches(160, 112, 224, 24, 64, 64),
        Branches(128, 128, 256, 24, 64, 64),
        Branches(112, 144, 288, 32, 64, 64),
        Branches(256, 160, 320, 32, 128, 128),
    ),
    (Branches(256, 160, 320, 32, 128, 128), Branches(384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Parallel 1×1, 3×3 and 5×5 convolutions and a pool. `[N, H, W, C]` to `[N, H, W, sum of branches]`."""

    branches: Branches
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = _xavier
    bias: float = 0.2  # initial biases

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(channels: int, size: int, inputs: jax.Array) -> jax.Array:
            layer = nn.Conv(
                channels,
                (size, size),
                dtype=self.dtype,
                kernel_init=self.kernel_init,
                bias_init=nn.initializers.constant(self.bias),
            )
            return nn.relu(layer(inputs))

        branches = self.branches
        one = conv(branches.one, 1, x)
        three = conv(branches.three, 3, conv(branches.three_reduce, 1, x))
        five = conv(branches.five, 5, conv(branches.five_reduce, 1, x))
        pooled = conv(branches.pool, 1, nn.max_pool(x, (3, 3), padding="SAME"))
        return jnp.concatenate([one, three, five, pooled], axis=-1)


def average_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Means over square windows of images `[N, H, W, C]`, without padding.

    It averages one axis after the other, which differs only in rounding. XLA for CPU takes 15 times as long
    for the gradient of both axes at once.
    """
    return nn.avg_pool(nn.avg_pool(x, (size, 1), strides=(stride, 1)), (1, size), strides=(1, stride))


class Auxiliary(nn.Module):
    """A classifier on an inner layer: `[N, H, W, C]` to logits `float32[N, classes]`."""

    classes: int
    width: int  # channels of its convolution
    pool: int  # pixels of its average pool along each axis
    stride: int  # stride of its average pool
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = _xavier
    bias: float = 0.2  # initial biases, except those of the last layer, which are 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = average_pool(x, self.pool, self.stride)
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        bias = nn.initializers.constant(self.bias)
        x = nn.relu(nn.Conv(self.width, (1, 1), bias_init=bias, **settings)(x))
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(self.width * 8, bias_init=bias, **settings)(x))
        x = nn.Dropout(0.7, deterministic=not train)(x)
        return nn.Dense(self.classes, **settings)(x).astype(jnp.float32)


class GoogLeNet(nn.Module):
    """A classifier: stem, stages of Inception modules with pools between them, global average, a dense layer.

    With `large_stem`, for photographs, the stem reduces the size to an eighth. Without it, for images of a
    few pixels, the stem is one 3×3 convolution that keeps the size and has no normalization.
    """

    classes: int
    stages: tuple[tuple[Branches, ...], ...] = STAGES
    # An auxiliary head follows each of these modules, numbered from 0 through all stages.
    auxiliary_after: tuple[int, ...] = (2, 5)
    auxiliary_pool: tuple[int, int] = (5, 3)  # size and stride of its average pool
    width: int = _FIRST_WIDTH  # channels of the first convolution, a multiple of 8; scales all others
    large_stem: bool = True
    dropout: float = 0.4
    dtype: DTypeLike = jnp.float32  # of all arithmetic; parameters and logits are float32
    kernel_init: nn.initializers.Initializer = _xavier
    bias: float = 0.2  # initial biases, except those of the classifiers' last layers, which are 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits `float32[N, classes]` of images `float32[N, H, W, C]`.

        With `train=True` dropout is active, and the caller passes `rngs={"dropout": key}`. The logits of the
        auxiliary heads are then sown into the collection `auxiliary`, which the caller must make mutable.
        """
        pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        settings = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        conv = partial(nn.Conv, bias_init=nn.initializers.constant(self.bias), **settings)
        if self.large_stem:
            x = nn.relu(conv(self.width, (7, 7), 2, padding=3)(x))
            x = local_response_norm(pool(x))
            x = nn.relu(conv(self.width, (1, 1))(x))
            x = nn.relu(conv(3 * self.width, (3, 3))(x))
            x = pool(local_response_norm(x))
        else:
            x = nn.relu(conv(self.width, (3, 3))(x))

        module = 0
        for stage, modules in enumerate(self.stages):
            if stage > 0:
                x = pool(x)
            for branches in modules:
                x = Inception(self._scaled(branches), bias=self.bias, **settings)(x)
                if module in self.auxiliary_after:
                    self._auxiliary(x, train)
                module += 1

        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, **settings)(x).astype(jnp.float32)

    def _auxiliary(self, x: jax.Array, train: bool) -> None:
        """Compute and sow the logits of an auxiliary head on `x`, in training only. Called in the compact
        method."""
        if not (train or self.is_initializing()):
            return
        head = Auxiliary(
            self.classes,
            2 * self.width,
            *self.auxiliary_pool,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias=self.bias,
        )
        logits = head(x, train=train)
        if train:
            self.sow("auxiliary", "logits", logits)

    def _scaled(self, branches: Branches) -> Branches:
        return Branches(*(channels * self.width // _FIRST_WIDTH for channels in branches))


# For 8×8 images: modules 3a and 3b at 8×8 pixels, 4a and 4e at 4×4 and 5b at 2×2, with a quarter of the
# channels. Biases of 0.2, and a normalized stem that halves the signal, would slow this narrow network's
# first steps.
DigitsGoogLeNet = partial(
    GoogLeNet,
    stages=(STAGES[0], (STAGES[1][0], STAGES[1][4]), STAGES[2][1:]),
    auxiliary_after=(2,),
    auxiliary_pool=(2, 2),
    width=16,
    large_stem=False,
    dropout=0.2,
    kernel_init=nn.initializers.he_uniform(),
    bias=0.0,
)
