"""Residual networks with batch norm, for images in NHWC.

The architecture follows He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), with
the activation after the addition. It has two later changes, because all published ResNet-50 figures assume
them: a bottleneck has its stride on the 3×3 convolution, and the last batch-norm scale of each block is
initialized to zero, so that a block starts as the identity (Goyal et al., arXiv 1706.02677, §5.1).

The models are plain Flax with automatic names (`Conv_0`, `Bottleneck_3/Conv_1`, `Dense_0`), which a policy's
patterns match. `dfpjax.mixed_precision(model.apply)` decides which operations run in int16.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# He et al., "Delving Deep into Rectifiers" (arXiv 1502.01852), with the variance from the fan-out.
_kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def _conv(channels: int, size: int, stride: int = 1, *, dtype: DTypeLike) -> nn.Conv:
    """A convolution with symmetric padding. It has no bias, because batch norm follows it."""
    return nn.Conv(
        channels,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=_kaiming,
    )


class Basic(nn.Module):
    """Two 3×3 convolutions and a shortcut: `[N, H, W, C]` to `[N, H/stride, W/stride, channels]`."""

    channels: int
    stride: int = 1
    norm: Callable[..., nn.Module] = nn.BatchNorm
    dtype: DTypeLike = jnp.float32
    expansion = 1  # output channels of the block per channel of its 3×3 convolutions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(_conv, dtype=self.dtype)
        y = conv(self.channels, 3, self.stride)(x)
        y = nn.relu(self.norm()(y))
        y = conv(self.channels, 3)(y)
        y = self.norm(scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + _shortcut(x, y, partial(conv, stride=self.stride), self.norm))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut: `[N, H, W, C]` to `[N, H/stride, W/stride, 4·channels]`."""

    channels: int
    stride: int = 1
    norm: Callable[..., nn.Module] = nn.BatchNorm
    dtype: DTypeLike = jnp.float32
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(_conv, dtype=self.dtype)
        y = conv(self.channels, 1)(x)
        y = nn.relu(self.norm()(y))
        y = conv(self.channels, 3, self.stride)(y)
        y = nn.relu(self.norm()(y))
        y = conv(self.channels * self.expansion, 1)(y)
        y = self.norm(scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + _shortcut(x, y, partial(conv, stride=self.stride), self.norm))


def _shortcut(
    x: jax.Array, y: jax.Array, conv: Callable[..., nn.Module], norm: Callable[..., nn.Module]
) -> jax.Array:
    """`x` itself if it has the shape of `y`, otherwise its projection to that shape. Called in a compact
    method."""
    if x.shape == y.shape:
        return x
    return norm()(conv(y.shape[-1], 1)(x))


class ResNet(nn.Module):
    """A classifier: stem, stages of residual blocks, global average, a dense layer.

    Each stage after the first halves the image's height and width and doubles the channels. With
    `large_stem`, for photographs, the stem is a strided 7×7 convolution and a max pool, which reduce the size
    to a quarter. Without it, for images of a few pixels, the stem is one 3×3 convolution that keeps the size.
    """

    classes: int
    stages: tuple[int, ...]  # residual blocks in each stage
    block: type[Basic] | type[Bottleneck]
    width: int = 64  # channels of the stem, and of the first stage before expansion
    large_stem: bool = True
    norm_momentum: float = 0.9
    dtype: DTypeLike = jnp.float32  # of all arithmetic; parameters, statistics and logits are float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits `float32[N, classes]` of images `float32[N, H, W, C]`.

        With `train=True` batch norm uses the statistics of the batch and updates the running statistics. The
        caller then passes `mutable=["batch_stats"]` and keeps the updated collection.
        """
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=self.norm_momentum, dtype=self.dtype
        )
        conv = partial(_conv, dtype=self.dtype)
        x = conv(self.width, 7, 2)(x) if self.large_stem else conv(self.width, 3)(x)
        x = nn.relu(norm()(x))
        if self.large_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                x = self.block(self.width * 2**stage, stride, norm, self.dtype)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


# For 8×8 images: 32, 64 and 128 channels at 8, 4 and 2 pixels.
DigitsResNet = partial(ResNet, stages=(1, 1, 1), block=Basic, width=32, large_stem=False)

# ResNet-50: 25,557,032 parameters for 1000 classes, 224×224×3 images.
ResNet50 = partial(ResNet, stages=(3, 4, 6, 3), block=Bottleneck)
