"""AlexNet, for images in NHWC.

Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012). The
second, fourth and fifth convolutions have two groups, which the authors ran on two GPUs. The paper says
224×224 pixels, but its layer sizes need 227. Here the missing three pixels are padding, so 224 and 227 pixels
both give the paper's 55×55 outputs.

The model is plain Flax with automatic names (`Conv_1`, `Dense_0`). `dfpjax.mixed_precision(model.apply)`
decides which operations run in int16.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .normalization import local_response_norm


class AlexNet(nn.Module):
    """A classifier: five convolutions, then three dense layers, the first two with dropout.

    With `large_stem`, for photographs, the first convolution has 11×11 pixels and stride 4, followed by
    normalization and a pool. Without it, for images of a few pixels, it has 3×3 pixels and stride 1, followed
    by normalization only.
    """

    classes: int
    width: int = 96  # channels of the first convolution, a multiple of 12; the others scale with it
    features: int = 4096  # units of each of the two hidden dense layers
    large_stem: bool = True
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32  # of all arithmetic; parameters and logits are float32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.01)
    # Initial biases of the second, fourth and fifth convolutions and of the hidden dense layers. The paper
    # uses 1, so that the rectifiers of these layers learn from the first step.
    bias: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits `float32[N, classes]` of images `float32[N, H, W, C]`.

        With `train=True` dropout is active, and the caller passes `rngs={"dropout": key}`.
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


# For 8×8 images: 24, 64, 96, 96 and 64 channels. A deviation of 0.01 suits kernels with thousands of inputs.
# In this narrow network the biases would dominate the signal.
DigitsAlexNet = partial(
    AlexNet,
    width=24,
    features=128,
    large_stem=False,
    kernel_init=nn.initializers.he_normal(),
    bias=0.0,
    dropout=0.2,
)
