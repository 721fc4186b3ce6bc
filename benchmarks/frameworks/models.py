"""Models of other libraries, with what their users write around `dfpjax.mixed_precision`.

Each function takes a transform of functions, which is the identity or `mixed_precision`, and returns the
outputs and the gradients of one training step, both pytrees. Seeds are fixed, so two calls differ by the
transform alone.
"""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import optax
from flax import nnx

Transform = Callable[[Callable], Callable]
Step = Callable[[Transform], tuple[Any, Any]]

CLASSES = 10


def batch(*shape: int) -> tuple[jax.Array, jax.Array]:
    """Inputs `float32[*shape]`, normally distributed, and their classes."""
    return jax.random.normal(jax.random.key(1), shape), jnp.arange(shape[0]) % CLASSES


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """In the mean over the batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Convolutional(nnx.Module):
    """Convolutions with batch normalization and dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.convs = nnx.List(nnx.Conv(3 if n == 0 else 64, 64, (3, 3), rngs=rngs) for n in range(3))
        self.norms = nnx.List(nnx.BatchNorm(64, rngs=rngs) for _ in range(3))
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(self.dropout(x.mean((1, 2))))


class Recurrent(nnx.Module):
    """An LSTM."""

    def __init__(self, rngs: nnx.Rngs):
        self.lstm = nnx.RNN(nnx.LSTMCell(64, 128, rngs=rngs))
        self.head = nnx.Linear(128, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.lstm(x)[:, -1])


def _nnx(module: Callable[[nnx.Rngs], nnx.Module], *shape: int) -> Step:
    def step(transform: Transform):
        def loss_fn(model, x, labels):
            logits = model(x)
            return cross_entropy(logits, labels), logits

        compiled = nnx.jit(nnx.value_and_grad(transform(loss_fn), has_aux=True))
        (_, logits), gradients = compiled(module(nnx.Rngs(0)), *batch(*shape))
        return logits, gradients

    return step


def equinox_convolutional(transform: Transform):
    """Convolutions and batch normalization, whose statistics are Equinox's `State`."""

    class Network(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear

        def __init__(self, key):
            first, second = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(3, 64, 3, key=first)
            self.norm = eqx.nn.BatchNorm(64, axis_name="batch", mode="batch")
            self.head = eqx.nn.Linear(64, CLASSES, key=second)

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            return self.head(jax.nn.relu(x).mean((1, 2))), state

    network, state = eqx.nn.make_with_state(Network)(jax.random.key(0))

    def loss_fn(network, state, x, labels):
        over_batch = jax.vmap(network, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        logits, state = over_batch(x, state)
        return cross_entropy(logits, labels), (logits, state)

    compiled = eqx.filter_jit(eqx.filter_value_and_grad(transform(loss_fn), has_aux=True))
    (_, (logits, _)), gradients = compiled(network, state, *batch(16, 3, 32, 32))
    return logits, gradients


def haiku_resnet(transform: Transform):
    """Haiku's own ResNet-18."""
    network = hk.transform_with_state(lambda x: hk.nets.ResNet18(CLASSES)(x, is_training=True))
    x, labels = batch(16, 96, 96, 3)
    params, state = jax.jit(network.init)(jax.random.key(0), x)
    # The last layer begins at zero, so no gradient would pass through it.
    params["res_net18/~/logits"]["w"] = jax.random.normal(jax.random.key(2), (512, CLASSES)) / 512**0.5
    apply = transform(network.apply)

    def loss_fn(params):
        logits, _ = apply(params, state, None, x)
        return cross_entropy(logits, labels), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    return logits, gradients


def keras_mobilenet(transform: Transform):
    """Keras's own MobileNetV2: the method that its `fit` differentiates, transformed."""
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        (96, 96, 3), weights=None, classes=CLASSES, classifier_activation=None
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, labels = batch(16, 96, 96, 3)
    variables = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables
    trained, others, optimizer = ([v.value for v in of_kind] for of_kind in variables)
    compute = jax.value_and_grad(transform(model.compute_loss_and_updates), has_aux=True)

    @jax.jit
    def step(trained):
        how = {"training": True, "optimizer_variables": optimizer}
        (_, (_, logits, *_)), gradients = compute(trained, others, [], x, labels, None, **how)
        return logits, gradients

    return step(trained)


MODELS: dict[str, Step] = {
    "Flax nnx, convolutions, batch norm, dropout": _nnx(Convolutional, 16, 32, 32, 3),
    "Flax nnx, LSTM": _nnx(Recurrent, 16, 20, 64),
    "Equinox, convolution, batch norm": equinox_convolutional,
    "Haiku, ResNet-18": haiku_resnet,
    "Keras, MobileNetV2": keras_mobilenet,
}
"""By name."""
