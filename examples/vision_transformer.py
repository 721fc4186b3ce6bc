"""Trains a vision transformer in DFP16 and in float32: python examples/vision_transformer.py [--steps N]

Both start from the same parameters and see the same images. Attention's two products, which have no
parameters, run on integers too.
"""

import argparse

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import dfpjax
from dfpjax.training.models import MODELS


def train(apply, params, images, labels, steps: int) -> list[float]:
    """The losses of all steps."""
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        def loss_fn(params):
            logits = apply(params, x, train=False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    random, losses = np.random.default_rng(0), []
    for _ in range(steps):
        batch = random.choice(len(images), 32)
        params, state, loss = step(params, state, images[batch], labels[batch])
        losses.append(float(loss))
    return losses


def main(argv=None) -> tuple[list[float], list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args(argv).steps

    digits = load_digits()
    images, labels = (digits.images / 16)[..., None].astype(np.float32), digits.target.astype(np.int32)
    model = MODELS["vit_digits"](classes=10)
    params = model.init(jax.random.key(0), images[:1], train=False)
    policy = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
    report = dfpjax.explain(model.apply, params, images[:32], train=False, policy=policy)
    print(f"{report.coverage:.0%} of {report.macs / 1e6:.0f} million products in DFP16")

    exact = train(model.apply, params, images, labels, steps)
    ours = train(dfpjax.mixed_precision(model.apply, policy), params, images, labels, steps)
    print(f"loss after {steps} steps: float32 {exact[-1]:.4f}, DFP16 {ours[-1]:.4f}")
    return exact, ours


if __name__ == "__main__":
    main()
