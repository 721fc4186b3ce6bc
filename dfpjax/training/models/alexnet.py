"""AlexNet, for images in NHWC.

Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012): its second,
fourth and fifth convolution have two groups, once for two GPUs. The paper speaks of 224×224 pixels, but
its arithmetic takes 227; the three that miss are padding here, so that 224 and 227 pixels both give the
55×55 of the paper.

Everything is plain Flax with automatic names (`Conv_1`, `Dense_0`): which operations run in int16 is decided
outside, by `dfpjax.mixed_precision(model.apply)`.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .normalization import local_response_norm


class AlexNet(nn.Module):
    """A classifier: five convolutions, then three dense layers of which two are followed by dropout.

    `large_stem` is the stem for photographs, a convolution of 11×11 pixels and stride 4, normalized and
    pooled; otherwise 3×3 pixels of stride 1 without a pool, for images of a few pixels.
    """

    classes: int
    width: int = 96  # channels of the first convolution, a multiple of 12; those of the others follow
    features: int = 4096  # of the two hidden dense layers
    large_stem: bool = True
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32  # of all arithmetic; parameters and logits are float32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.01)
    # Where the biases of the second, fourth and fifth convolution and of the hidden dense layers start. The
    # paper has 1 there, so that their rectifiers learn from the first step.
    bias: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits `float32[N, classes]` of images `float32[N, H, W, C]`.

        With `train=True` units are dropped: the caller passes `rngs={"dropout": key}`.
        """
        conv = partial(nn.Conv, dtype=self.dtype, kernel_init=self.kernel_init)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        bias = nn.initializers.constant(self.bias)
        pool = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
        first, middle, last = self.width, self.width * 4, self.width * 8 // 3

        if self.large_stem:
            x = local_response_norm(nn.relu(conv(first, (11, 11), 4, padding=((1, 2), (1, 2)))(x)))
            x = pool(x)
        else:
            x = local_response_norm(nn.relu(conv(first, (3, 3))(x)))
        x = nn.relu(conv(last, (5, 5), feature_group_count=2, bias_init=bias)(x))
        x = pool(local_response_norm(x))
        x = nn.relu(conv(middle, (3, 3))(x))
        x = nn.relu(conv(middle, (3, 3), feature_group_count=2, bias_init=bias)(x))
        x = pool(nn.relu(conv(last, (3, 3), feature_group_count=2, bias_init=bias)(x)))

        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(dense(self.features, bias_init=bias)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return dense(self.classes)(x).astype(jnp.float32)


# For 8×8 images: 24, 64, 96, 96 and 64 channels. Kernels of 0.01 are for thousands of inputs; in so narrow
# a network the signal would be lost among the biases.
DigitsAlexNet = partial(
    AlexNet,
    width=24,
    features=128,
    large_stem=False,
    kernel_init=nn.initializers.he_normal(),
    bias=0.0,
    dropout=0.2,
)
