"""A model for tests of everything but the model."""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from dfpjax.training.models import MODELS


class Tiny(nn.Module):
    """Compiles in no time, and has all that a state holds and a step depends on: batch norm and dropout."""

    classes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3), strides=2, dtype=self.dtype)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


MODEL = "tiny"
"""The name that a configuration may use wherever this module has been imported."""

MODELS[MODEL] = Tiny
