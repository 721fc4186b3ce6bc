"""A character language model of long short-term memory.

Everything is plain Flax with automatic names: which operations run in int16 is decided outside, by
`dfpjax.mixed_precision(model.apply)`. The products of a layer are those of its cell, inside a scan over time.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class CharLSTM(nn.Module):
    """Predicts the next character: an embedding, LSTM layers, one dense layer."""

    characters: int  # of the alphabet
    width: int = 128  # of the embedding, and of every layer's state
    layers: int = 1
    dtype: DTypeLike = jnp.float32  # of all arithmetic; parameters, cell states and logits are float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits `float32[N, T, characters]` of text `int32[N, T]`: at `t`, those of the next character.

        Each text starts from a state of zeros. `train` changes nothing; other models have dropout.
        """
        x = nn.Embed(self.characters, self.width, dtype=self.dtype)(x)
        for _ in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.width, dtype=self.dtype))(x)
        return nn.Dense(self.characters, dtype=self.dtype)(x).astype(jnp.float32)
