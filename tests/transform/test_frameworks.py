"""Keras and Haiku: the lines that the page on frameworks gives."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from forced import FORCED
from transform_helpers import normal, quantized, relative_error

import dfpjax

IMAGES, LABELS = np.asarray(normal(0, 64, 8, 8, 1)), np.arange(64) % 10


def fitted(policy):
    """Losses and weights of a Keras model after `fit`."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    if policy is not None:
        model.compute_loss_and_updates = dfpjax.mixed_precision(model.compute_loss_and_updates, policy)
    history = model.fit(IMAGES, LABELS, batch_size=32, epochs=2, shuffle=False, verbose=0)
    return history.history["loss"], model.get_weights()


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")  # Keras asks JAX for it
def test_keras_fit_trains_in_dfp16():
    (losses, weights), (expected_losses, expected) = fitted(FORCED), fitted(None)
    assert losses != expected_losses
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    for found, wanted in zip(weights, expected, strict=True):
        assert relative_error(jnp.asarray(found), jnp.asarray(wanted)) < 3e-3


def test_a_haiku_network():
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 10])(x)))
    x = normal(1, 4, 64)
    params = network.init(jax.random.key(0), x)
    apply = dfpjax.mixed_precision(network.apply, FORCED)
    assert relative_error(apply(params, x), network.apply(params, x)) < 1e-3
    assert quantized(jax.make_jaxpr(apply)(params, x)) == 2

    policy = dfpjax.Policy(rules=[dfpjax.Rule("linear_1", None)], default=FORCED.default)
    apply = dfpjax.mixed_precision(network.apply, policy)
    assert quantized(jax.make_jaxpr(apply)(params, x)) == 1
