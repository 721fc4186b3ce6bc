"""The networks whose tensors `benchmarks.fidelity` looks at while they are trained."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import flax.linen as nn
import jax
import optax

from benchmarks.fidelity.captured import Training
from benchmarks.fidelity.photographs import batches, photographs
from benchmarks.fidelity.tensors import Operands
from benchmarks.parity import text
from dfpjax.training.models import VGG, VGG16, CharLSTM, ResNet50, ViT, ViTS16
from dfpjax.training.models.resnet import Bottleneck, ResNet


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model, the layers to look at, and a small one that is quick to train in its place."""

    title: str
    model: Callable[[int], nn.Module]
    """Of the number of classes, or of characters."""
    quick: Callable[[int], nn.Module]
    layers: list[str]
    quick_layers: list[str]
    learning_rate: float = 0.01
    """Of SGD, on photographs."""
    reads_text: bool = False
    """Whether it learns to predict characters; others learn to tell photographs apart."""


def _vit_layers(*blocks: int) -> list[str]:
    """Every layer of these blocks, attention's two products included, the patches' embedding and the
    classifier."""
    attention = ("Dense_0", "nqhc,nkhc->nhqk", "nhqk,nkhc->nqhc", "Dense_1")
    parts = (*(f"Attention_0/{part}" for part in attention), "Dense_0", "Dense_1")
    return ["Conv_0", *(f"Block_{block}/{part}" for block in blocks for part in parts), "Dense_0"]


# The cell's dot products: that of its state, and that of its input.
_CELL = "RNN_0/OptimizedLSTMCell_0.scan_fn/OptimizedLSTMCell_0"
_LSTM_LAYERS = [_CELL, f"{_CELL} #2", "Dense_0"]

NETWORKS = {
    "resnet50": Network(
        title="ResNet-50",
        model=ResNet50,
        quick=functools.partial(ResNet, stages=(1, 1, 1, 1), block=Bottleneck),
        # A stage's second block has its usual shapes; the first one of stage 2 has the strided ones.
        layers=[
            "Conv_0",
            *(f"Bottleneck_{block}/Conv_{i}" for block in (1, 4, 8, 14) for i in range(3)),
            "Bottleneck_3/Conv_1",
            "Bottleneck_3/Conv_3",
            "Bottleneck_15/Conv_2",
            "Dense_0",
        ],
        quick_layers=["Conv_0", "Bottleneck_1/Conv_1", "Dense_0"],
    ),
    "vgg16": Network(
        title="VGG-16",
        model=VGG16,
        quick=functools.partial(VGG, stages=(1, 1, 1), width=16, features=64),
        # Without the first dense layer, whose 103 million weights would take gigabytes in float64.
        layers=[*(f"Conv_{i}" for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12)), "Dense_1", "Dense_2"],
        quick_layers=["Conv_0", "Conv_2", "Dense_1"],
        learning_rate=0.0005,  # without normalization, and few images in a batch
    ),
    "vit_s16": Network(
        title="ViT-S/16",
        model=ViTS16,
        quick=functools.partial(ViT, patch=16, width=64, depth=2, heads=2),
        layers=_vit_layers(0, 5, 11),
        quick_layers=_vit_layers(1),
    ),
    "lstm": Network(
        title="character LSTM",
        model=CharLSTM,
        quick=functools.partial(CharLSTM, width=32),
        layers=_LSTM_LAYERS,
        quick_layers=_LSTM_LAYERS,
        reads_text=True,
    ),
}
"""By the names that the command line has for them."""


def captured(
    network: Network, *, quick: bool, batch: int, image: int, steps: int, say: Callable[[str], None]
) -> Iterator[Operands]:
    """The layers' operands in the second step of training and in the last.

    Not in the first: there the last batch norm of each of ResNet's blocks has scale zero, and inside the
    blocks no gradient.

    Raises:
        ValueError: if the training diverges.
    """
    layers = network.quick_layers if quick else network.layers
    model = network.quick if quick else network.model
    prepare = _on_text if network.reads_text else _on_photographs
    make, examples = prepare(
        model, batch=batch, image=image, steps=steps, learning_rate=network.learning_rate
    )
    training = None
    for step in range(1, steps + 1):
        example = next(examples)
        training = training or make(layers, example)
        loss = training.step(*example)
        say(f"{network.title}, step {step}: loss {loss:.3f}")
        if not math.isfinite(loss):
            raise ValueError(
                f"{network.title} diverges at step {step}; give its Network a lower learning_rate"
            )
        if step in (2, steps):
            yield from training.operands(f"{network.title}, step {step}")


def _on_photographs(model, *, batch: int, image: int, learning_rate: float, **_):
    """A function that makes the training, with SGD, and the batches."""
    model = model(1000)

    def make(layers, example):
        init = jax.jit(model.init, static_argnames="train")
        variables = init(jax.random.key(0), example[0], train=False)
        optimizer = optax.sgd(learning_rate, momentum=0.9)
        return Training(functools.partial(classifier_loss, model), variables, layers, example, optimizer)

    return make, batches(list(photographs().values()), batch=batch, size=image)


def classifier_loss(model: nn.Module, variables: dict, step: int, images, labels):
    """The mean cross entropy of a model that takes `train`, and its new batch statistics if it has any."""
    rngs = {"dropout": jax.random.fold_in(jax.random.key(1), step)}
    logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated


def _on_text(model, *, steps: int, **_):
    """The same, as `benchmarks.parity` trains its character model."""
    corpus = text.corpus()
    model = model(corpus.characters)

    def loss(variables, step, characters):
        return text.bits(model.apply, variables["params"], characters), {}

    def make(layers, example):
        variables = jax.jit(model.init)(jax.random.key(0), example[0][:1, 1:])
        return Training(loss, variables, layers, example, text.optimizer(steps))

    return make, ((piece,) for piece in text.batches(corpus.train, seed=0))
