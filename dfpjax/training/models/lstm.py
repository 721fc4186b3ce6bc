"""A character language model with long short-term memory (LSTM).

The model is plain Flax with automatic names. `dfpjax.mixed_precision(model.apply)` decides which operations
run in int16. The dot products of an LSTM layer are in its cell, inside a scan over time.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class CharLSTM(nn.Module):
    """Predicts the next character: an embedding, LSTM layers, one dense layer."""

    characters: int  # size of the alphabet
    width: int = 128  # size of the embedding and of each layer's state
    layers: int = 1
    dtype: DTypeLike = jnp.float32  # of all arithmetic; parameters, cell states and logits are float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits `float32[N, T, characters]` of text `int32[N, T]`: at `t`, the logits of character `t + 1`.

        Each text starts with a state of zeros. `train` has no effect; other models need it for dropout.
        """
        x = nn.Embed(self.characters, self.width, dtype=self.dtype)(x)
        for _ in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.width, dtype=self.dtype))(x)
        return nn.Dense(self.characters, dtype=self.dtype)(x).astype(jnp.float32)
