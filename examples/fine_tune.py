"""Fine-tunes a Flax model in DFP16: python examples/fine_tune.py [--steps N]

A small residual network learns the digits 0 to 4 in float32, in place of a pretrained one. Its weights then
go, as they are, into a network for the digits 5 to 9, which is trained in DFP16: the head is new, and the
body is fine-tuned at a tenth of the learning rate.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import dfpjax
from dfpjax.training.models import MODELS


def data(classes: range) -> tuple[np.ndarray, np.ndarray]:
    """Images `float32[N, 8, 8, 1]` and labels `int32[N]`, counted from 0, of some digits."""
    digits = load_digits()
    chosen = np.isin(digits.target, classes)
    images = (digits.images[chosen] / 16)[..., None].astype(np.float32)
    return images, (digits.target[chosen] - classes.start).astype(np.int32)


def train(apply, variables, optimizer, images, labels, steps: int):
    """The variables after some steps with batches of 64, and the last loss."""

    @jax.jit
    def step(params, statistics, state, x, y):
        def loss_fn(params):
            inputs = {"params": params, "batch_stats": statistics}
            logits, updates = apply(inputs, x, train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return loss, updates["batch_stats"]

        (loss, statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), statistics, state, loss

    params, statistics = variables["params"], variables["batch_stats"]
    state, loss, random = optimizer.init(params), jnp.nan, np.random.default_rng(0)
    for _ in range(steps):
        batch = random.choice(len(images), 64)
        params, statistics, state, loss = step(params, statistics, state, images[batch], labels[batch])
    return {"params": params, "batch_stats": statistics}, float(loss)


def main(argv=None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args(argv).steps

    images, labels = data(range(5))
    model = MODELS["digits_resnet"](classes=5)
    variables = model.init(jax.random.key(0), images[:1], train=False)
    pretrained, loss = train(model.apply, variables, optax.adam(1e-3), images, labels, steps)
    print(f"float32, digits 0 to 4: loss {loss:.3f}")

    images, labels = data(range(5, 10))
    images, labels, held_out, truth = images[:-200], labels[:-200], images[-200:], labels[-200:]
    head = model.init(jax.random.key(1), images[:1], train=False)["params"]["Dense_0"]
    variables = {**pretrained, "params": {**pretrained["params"], "Dense_0": head}}
    rates = {name: "head" if name == "Dense_0" else "body" for name in variables["params"]}
    optimizer = optax.multi_transform({"head": optax.adam(1e-3), "body": optax.adam(1e-4)}, rates)
    apply = dfpjax.mixed_precision(model.apply, dfpjax.Policy(default=dfpjax.OpConfig(force=True)))
    tuned, loss = train(apply, variables, optimizer, images, labels, steps)
    predicted = apply(tuned, held_out, train=False).argmax(axis=-1)
    accuracy = float((predicted == truth).mean())
    print(f"DFP16, digits 5 to 9: loss {loss:.3f}, accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
