"""Trains a character model with an LSTM in DFP16: python examples/lstm.py [--steps N] [--width N]

The text is the documentation of Python's own modules. The products of the cell with its inputs need no
state, so they move out of the loop over time: `explain` lists them as run once.
"""

import argparse
import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dfpjax
from dfpjax.training.models import CharLSTM

LENGTH, BATCH = 64, 32


def main(argv=None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args(argv)

    text = "".join(pydoc_data.topics.topics.values())
    alphabet = sorted(set(text))
    codes = np.searchsorted(alphabet, list(text)).astype(np.int32)
    model = CharLSTM(characters=len(alphabet), width=arguments.width)
    x = jnp.zeros((BATCH, LENGTH), jnp.int32)
    params = model.init(jax.random.key(0), x)
    print(dfpjax.explain(model.apply, params, x))

    apply = dfpjax.mixed_precision(model.apply)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, text):
        def loss_fn(params):
            logits = apply(params, text[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss / jnp.log(2)

    random, bits = np.random.default_rng(0), np.nan
    for number in range(1, arguments.steps + 1):
        starts = random.choice(len(codes) - LENGTH - 1, BATCH)
        params, state, bits = step(params, state, np.stack([codes[s : s + LENGTH + 1] for s in starts]))
        if number % 50 == 0 or number == arguments.steps:
            print(f"step {number}: {float(bits):.2f} bits per character")
    return float(bits)


if __name__ == "__main__":
    main()
