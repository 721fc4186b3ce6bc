"""Training steps of a small version of each network."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from transform_helpers import normal

import dfpjax
from dfpjax.training.models import VGG, AlexNet, CharLSTM, GoogLeNet, ResNet, ViT
from dfpjax.training.models.googlenet import STAGES
from dfpjax.training.models.resnet import Bottleneck
from dfpjax.training.precision import with_precision
from dfpjax.training.state import TrainState, eval_step, train_step

LABELS = jnp.array([3, 1, 4, 1])

# Each network for photographs, small but with all kinds of its layers, and the size of its images.
NETWORKS = {
    "alexnet": (partial(AlexNet, width=12, features=16), 67),
    "googlenet": (
        partial(
            GoogLeNet,
            stages=(STAGES[0][:1], STAGES[1][:1]),
            auxiliary_after=(0,),
            auxiliary_pool=(2, 2),
            width=8,
        ),
        32,
    ),
    "resnet50": (partial(ResNet, stages=(1, 1), block=Bottleneck, width=8), 32),
    "vgg16": (partial(VGG, stages=(1, 2), width=8, features=16), 16),
    "vit_s16": (partial(ViT, patch=4, width=16, depth=2, heads=2), 16),
}


def _start(apply: Callable, variables: dict, **changes: object) -> TrainState:
    """The state of a run whose steps subtract the gradients from the parameters. It owns its arrays."""
    variables = jax.tree.map(jnp.array, variables)
    fields = {"batch_stats": variables.get("batch_stats", {}), "seed": jnp.int32(5)} | changes
    return TrainState.create(apply_fn=apply, tx=optax.sgd(1.0), params=variables["params"], **fields)


def _expected_loss(
    model: nn.Module, params: dict, batch_stats: dict, images: jax.Array, step: int
) -> jax.Array:
    """The training loss in plain JAX: the main head's mean plus 0.3 times that of each auxiliary head."""
    logits, updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats", "auxiliary"],
        rngs={"dropout": jax.random.fold_in(jax.random.key(5), step)},
    )

    def cross_entropy(logits: jax.Array) -> jax.Array:
        chosen = jnp.take_along_axis(logits, LABELS[:, None], axis=-1)[:, 0]
        return jnp.mean(jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) - chosen)

    return cross_entropy(logits) + 0.3 * sum(
        map(cross_entropy, jax.tree.leaves(updates.get("auxiliary", {})))
    )


def _flat(tree: dict) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_follows_the_gradient_of_the_whole_loss(name):
    make, size = NETWORKS[name]
    model = make(classes=5)
    images = normal(1, len(LABELS), size, size, 3)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    gradient = jax.jit(jax.grad(partial(_expected_loss, model)))
    expected = _flat(gradient(variables["params"], variables.get("batch_stats", {}), images, 0))
    start = _flat(variables["params"])

    def error(precision: str) -> float:
        """The relative error of the gradient that a step follows."""
        state = _start(with_precision(model.apply, precision), variables)
        state, metrics = train_step(state, images, LABELS, label_smoothing=0.0)
        assert np.isfinite(metrics["loss"])
        return np.linalg.norm(start - _flat(state.params) - expected) / np.linalg.norm(expected)

    assert error("float32") < 1e-5
    # With this precision all layers but the first and the last are in dynamic fixed point, however small.
    assert 1e-6 < error("dfp16_paper") < 1e-3


@pytest.mark.slow
def test_the_character_model_learns_in_dynamic_fixed_point():
    model = CharLSTM(characters=6, width=16)
    text = jnp.tile(jnp.arange(6), (4, 3))
    start = jax.jit(model.init)(jax.random.key(0), text)
    apply = dfpjax.mixed_precision(model.apply, policy=dfpjax.Policy(default=dfpjax.OpConfig(force=True)))

    def loss(apply: Callable, params: dict) -> jax.Array:
        logits = apply({"params": params}, text[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]))

    expected = jax.jit(jax.grad(partial(loss, model.apply)))(start["params"])
    gradient = jax.jit(jax.value_and_grad(partial(loss, apply)))
    error = np.linalg.norm(_flat(gradient(start["params"])[1]) - _flat(expected))
    assert 1e-6 < error / np.linalg.norm(_flat(expected)) < 1e-3
    params, losses = start["params"], []
    for _ in range(30):
        value, slope = gradient(params)
        losses.append(float(value))
        params = jax.tree.map(lambda p, g: p - 1.0 * g, params, slope)
    assert losses[-1] < losses[0] / 4


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, dict, jax.Array]:
    """A network with dropout, its variables, and images."""
    model = VGG(classes=5, stages=(1,), width=4, features=16)
    images = normal(1, len(LABELS), 8, 8, 1)
    return model, jax.jit(partial(model.init, train=False))(jax.random.key(0), images), images


def test_dropout_is_a_function_of_seed_and_step(tiny):
    model, variables, images = tiny

    def loss(seed: int, step: int) -> float:
        state = _start(model.apply, variables, seed=jnp.int32(seed)).replace(step=jnp.int32(step))
        return float(train_step(state, images, LABELS, label_smoothing=0.0)[1]["loss"])

    losses = {(seed, step): loss(seed, step) for seed in (0, 1) for step in (0, 1)}
    assert len(set(losses.values())) == 4
    assert {place: loss(*place) for place in losses} == losses


def test_a_resumed_run_goes_on_to_the_last_bit(tiny):
    model, variables, images = tiny

    def run(state: TrainState, steps: int) -> TrainState:
        for _ in range(steps):
            state, _ = train_step(state, images, LABELS, label_smoothing=0.1)
        return state

    whole = run(_start(model.apply, variables), 4)
    saved = jax.device_get(run(_start(model.apply, variables), 2))
    resumed = run(jax.tree.map(jnp.array, saved), 2)
    np.testing.assert_array_equal(_flat(resumed.params), _flat(whole.params))


def test_evaluation_drops_nothing(tiny):
    model, variables, images = tiny
    state = _start(model.apply, variables)
    logits = model.apply(variables, images, train=False)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))
    expected = -log_probabilities[np.arange(len(LABELS)), LABELS].sum()
    assert float(eval_step(state, images, LABELS)["loss"]) == pytest.approx(expected, rel=1e-6)
