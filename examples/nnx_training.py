"""Trains an nnx module in DFP16: python examples/nnx_training.py [--steps N]

The module has batch normalization, so it changes in a step. It keeps its new statistics, as under `nnx.jit`.
"""

import argparse

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import dfpjax


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 32, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return self.head(nnx.relu(self.second(x)).mean((1, 2)))


def main(argv=None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args(argv).steps

    digits = load_digits()
    images, labels = (digits.images / 16)[..., None].astype(np.float32), digits.target.astype(np.int32)
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    def loss_fn(model, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    # The network is too small for the cost rule, which `force` overrules.
    fast_loss = dfpjax.mixed_precision(loss_fn, dfpjax.Policy(default=dfpjax.OpConfig(force=True)))

    @nnx.jit
    def step(model, optimizer, x, y):
        loss, grads = nnx.value_and_grad(fast_loss)(model, x, y)
        optimizer.update(model, grads)
        return loss

    random, loss = np.random.default_rng(0), np.nan
    for number in range(1, steps + 1):
        batch = random.choice(len(images), 64)
        loss = step(model, optimizer, images[batch], labels[batch])
        if number % 50 == 0 or number == steps:
            print(f"step {number}: loss {float(loss):.3f}")
    return float(loss)


if __name__ == "__main__":
    main()
