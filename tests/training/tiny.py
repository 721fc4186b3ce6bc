"""A model for tests in which the model does not matter."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from dfpjax.training.models import MODELS


class Tiny(nn.Module):
    """Compiles quickly, and has batch norm and dropout, so it uses all parts of a state and of a step."""

    classes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3), strides=2, dtype=self.dtype)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


MODEL = "tiny"
"""The model's name in configurations, once this module has been imported."""

MODELS[MODEL] = Tiny
