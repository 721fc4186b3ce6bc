"""VGG, for images in NHWC.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv
1409.1556). The authors initialized deeper configurations with the layers of a shallower trained one. Here
the kernels are initialized as He et al. propose (arXiv 1502.01852), which makes that unnecessary.

The model is plain Flax with automatic names (`Conv_12`, `Dense_0`). `dfpjax.mixed_precision(model.apply)`
decides which operations run in int16.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class VGG(nn.Module):
    """A classifier: stages of 3×3 convolutions, each with a pool at its end, then three dense layers.

    Each stage halves the image's height and width and doubles the channels, up to eight times the channels
    of the first stage.
    """

    classes: int
    stages: tuple[int, ...]  # convolutions in each stage
    width: int = 64  # channels of the first stage
    features: int = 4096  # units of each of the two hidden dense layers
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32  # of all arithmetic; parameters and logits are float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits `float32[N, classes]` of images `float32[N, H, W, C]`.

        With `train=True` dropout is active, and the caller passes `rngs={"dropout": key}`.
        """
        conv = partial(nn.Conv, dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        for stage, convolutions in enumerate(self.stages):
            for _ in range(convolutions):
                x = nn.relu(conv(self.width * min(2**stage, 8), (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(dense(self.features)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        # Small kernels, so that the first predictions favour no class.
        return dense(self.classes, kernel_init=nn.initializers.normal(0.01))(x).astype(jnp.float32)


# For 8×8 images: 32, 64 and 128 channels at 8, 4 and 2 pixels.
DigitsVGG = partial(VGG, stages=(2, 2, 1), width=32, features=128)

# VGG-16, configuration D: 138,357,544 parameters for 1000 classes, 224×224×3 images.
VGG16 = partial(VGG, stages=(2, 2, 3, 3, 3))
