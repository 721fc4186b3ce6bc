"""The networks of `benchmarks.train_step`: what each takes, and its step in JAX."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import dfpjax
from configs import default
from dfpjax.training import TrainConfig
from dfpjax.training.models import MODELS, CharLSTM
from dfpjax.training.optimizer import optimizer
from dfpjax.training.precision import POLICIES, model_dtype, with_precision
from dfpjax.training.state import TrainState, train_step

CLASSES = 1000
CHARACTERS, WIDTH, LENGTH = 96, 512, 128
"""The language model's alphabet, its state, and the characters of a text."""

MODES = ("train", "inference")


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a benchmark must know of a network."""

    model: Callable[..., nn.Module]
    """Called with `dtype`."""

    batch: int
    """As long as no other is asked for."""

    takes: str = "images"


NETWORKS = {
    "resnet50": Network(model=functools.partial(MODELS["resnet50"], classes=CLASSES), batch=32),
    "vgg16": Network(model=functools.partial(MODELS["vgg16"], classes=CLASSES), batch=8),
    "alexnet": Network(model=functools.partial(MODELS["alexnet"], classes=CLASSES), batch=64),
    "googlenet": Network(model=functools.partial(MODELS["googlenet"], classes=CLASSES), batch=32),
    "vit": Network(model=functools.partial(MODELS["vit_s16"], classes=CLASSES), batch=32),
    "lstm": Network(
        model=functools.partial(CharLSTM, characters=CHARACTERS, width=WIDTH), batch=64, takes="texts"
    ),
}


def random_batch(network: Network, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels: images `float32[N, 224, 224, 3]` of classes `int32[N]`, or texts `int32[N, T]` of
    next characters."""
    random = np.random.default_rng(0)
    if network.takes == "texts":
        text = random.integers(CHARACTERS, size=(batch, LENGTH + 1), dtype=np.int32)
        return text[:, :-1], text[:, 1:]
    images = random.standard_normal((batch, 224, 224, 3), np.float32)
    return images, random.integers(CLASSES, size=batch, dtype=np.int32)


def initial_state(network: Network, precision: str, inputs: np.ndarray) -> TrainState:
    """What `dfpjax.training` starts a run from."""
    # So low that the loss stays finite on random labels, whatever the network.
    config = TrainConfig.from_dict({**default.get_config(), "learning_rate": 1e-4})
    model = network.model(dtype=model_dtype(precision))

    @jax.jit
    def initialize():
        return model.init(jax.random.key(0), jnp.asarray(inputs[:1]), train=False)

    @jax.jit
    def start(variables) -> TrainState:
        return TrainState.create(
            apply_fn=with_precision(model.apply, precision),
            tx=optimizer(config, updates=1000),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            seed=jnp.int32(0),
        )

    return start(initialize())


def with_frozen_weights(network: Network, state: TrainState, precision: str, inputs: jax.Array) -> TrainState:
    """The state with every weight in DFP16 that the network reads in it."""
    frozen = dfpjax.freeze(
        {"params": state.params, "batch_stats": state.batch_stats},
        POLICIES[precision],
        fun=network.model(dtype=model_dtype(precision)).apply,
        args=(inputs,),
        kwargs={"train": False},
    )
    return state.replace(**frozen)


@jax.jit
def infer(state: TrainState, inputs: jax.Array) -> jax.Array:
    """The logits, with the running statistics of batch norm and without dropout."""
    return state.apply_fn({"params": state.params, "batch_stats": state.batch_stats}, inputs, train=False)


def train(state: TrainState, inputs: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
    """`dfpjax.training`'s step, without its accuracy: the next state and the loss."""
    state, metrics = train_step(state, inputs, labels, label_smoothing=0.0)
    return state, metrics["loss"]
