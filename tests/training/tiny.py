"""A model for tests in which the model does not matter."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from dfpjax.training.models import MODELS


class Tiny(nn.Module):
    """Compiles quickly, and has batch norm and dropout, so it uses all parts of a state and of a step."""

    classes: int
    dtype: DTypeLike
    middle: int = 0
    """Convolutions between the first and the last layer, which `dfp16_paper` leaves in float32."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3), strides=2, dtype=self.dtype)(images)
        for _ in range(self.middle):
            x = nn.Conv(8, (3, 3), dtype=self.dtype)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.classes, dtype=self.dtype)(x).astype(jnp.float32)


MODEL = "tiny"
"""The model's name in configurations, once this module has been imported."""

MODEL_IN_DFP16 = "tiny_in_dfp16"
"""One with a layer that precision `dfp16_paper` computes in dynamic fixed point."""

MODELS[MODEL] = Tiny
MODELS[MODEL_IN_DFP16] = functools.partial(Tiny, middle=1)
