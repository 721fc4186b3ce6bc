"""Vision transformers, for images in NHWC.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929). The image's patches and a
class token form a sequence, and each block normalizes its input before attention and before its dense layers.
The small model for photographs is that of Touvron et al. (arXiv 2012.12877), without distillation.

The models are plain Flax with automatic names (`Block_3/Attention_0/Dense_1`).
`dfpjax.mixed_precision(model.apply)` decides which operations run in int16. Attention has two products
without parameters.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Initializer of embeddings and kernels in the published code of both papers.
_init = nn.initializers.truncated_normal(0.02)

# Their derivatives are computed from their inputs. JAX would keep two or three tensors of each, and so more
# memory than all else in a step.
_gelu = jax.checkpoint(partial(nn.gelu, approximate=False))
_softmax = jax.checkpoint(nn.softmax)
_LayerNorm = nn.remat(nn.LayerNorm)


class Attention(nn.Module):
    """Multi-head self-attention: `[N, T, width]` to the same shape."""

    heads: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = _init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        # One product for queries, keys and values. Flax's layer has three, and biases with two axes, which
        # weight decay would treat as kernels.
        projected = nn.Dense(3 * width, dtype=self.dtype, kernel_init=self.kernel_init)(x)
        projected = projected.reshape(*x.shape[:-1], 3, self.heads, width // self.heads)
        queries, keys, values = (projected[..., which, :, :] for which in range(3))
        scores = jnp.einsum("nqhc,nkhc->nhqk", queries, keys) / keys.shape[-1] ** 0.5
        # In float32, because bfloat16 sums lose too much precision.
        weights = _softmax(scores.astype(jnp.float32)).astype(scores.dtype)
        mixed = jnp.einsum("nhqk,nkhc->nqhc", weights, values)
        return nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)(mixed.reshape(x.shape))


class Block(nn.Module):
    """Attention, then two dense layers, each added to its input: `[N, T, width]` to the same shape."""

    heads: int
    dropout: float
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = _init

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        norm = partial(_LayerNorm, dtype=self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        attention = Attention(self.heads, self.dtype, self.kernel_init)
        x += drop()(attention(norm(name="LayerNorm_0")(x)))
        y = _gelu(dense(4 * width)(norm(name="LayerNorm_1")(x)))
        return x + drop()(dense(width)(y))


class ViT(nn.Module):
    """A classifier: a convolution embeds the patches, then blocks, then a dense layer on the class token.

    Position embeddings are learned, so variables fit only the image size that they were initialized for.
    """

    classes: int
    patch: int  # pixels of a patch along each axis; must divide the image's height and width
    width: int  # channels of every token, a multiple of `heads`
    depth: int  # blocks
    heads: int  # of the attention in each block
    dropout: float = 0.0  # dropout rate on the outputs that attention and dense layers add
    dtype: DTypeLike = jnp.float32  # of all arithmetic; parameters and logits are float32
    kernel_init: nn.initializers.Initializer = _init
    position_init: nn.initializers.Initializer = _init

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits `float32[N, classes]` of images `float32[N, H, W, C]`.

        With `train=True` dropout is active unless its rate is zero, and the caller passes
        `rngs={"dropout": key}`.

        **Raises:** `ValueError` if `patch` does not divide the images' height and width.
        """
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"images of {x.shape[1]}×{x.shape[2]} pixels cannot be cut into patches of {self.patch}; "
                "both sizes must be multiples of it"
            )
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, "VALID", dtype=self.dtype, kernel_init=self.kernel_init)(x)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (self.width,))
        x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, self.width)), x], axis=1)
        x += self.param("positions", self.position_init, x.shape[1:]).astype(x.dtype)
        for _ in range(self.depth):
            x = Block(self.heads, self.dropout, self.dtype, self.kernel_init)(x, train=train)
        # Only the class token is used after the last block.
        x = nn.LayerNorm(dtype=self.dtype)(x[:, 0])
        return nn.Dense(self.classes, dtype=self.dtype, kernel_init=self.kernel_init)(x).astype(jnp.float32)


# For 8×8 images: 16 patches of 2×2 pixels. A deviation of 0.02 suits kernels with hundreds of inputs. And
# SGD, unlike Adam, does not learn if patch and position embeddings start near zero.
DigitsViT = partial(
    ViT,
    patch=2,
    width=64,
    depth=4,
    heads=4,
    kernel_init=nn.initializers.lecun_normal(),
    position_init=nn.initializers.normal(0.2),
)

# ViT-S/16: 22,050,664 parameters for 1000 classes, 224×224×3 images.
ViTS16 = partial(ViT, patch=16, width=384, depth=12, heads=6)
