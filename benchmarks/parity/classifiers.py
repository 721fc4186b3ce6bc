"""Tasks of `benchmarks.parity`: networks that learn to classify the digits."""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from benchmarks.parity.splits import TEST, TRAIN, VALIDATION, data_dir
from benchmarks.parity.tasks import Recipe, Run, Step, Task
from configs import digits
from dfpjax.training import TrainConfig
from dfpjax.training.data import Dataset, load_dataset
from dfpjax.training.evaluation import test_totals
from dfpjax.training.metrics import Totals
from dfpjax.training.models import MODELS
from dfpjax.training.program import Program
from dfpjax.training.state import TrainState, train_step

BATCH = 16

TITLES = {
    "resnet": ("residual network", "digits_resnet"),
    "vgg": ("VGG", "vgg_digits"),
    "googlenet": ("GoogLeNet", "googlenet_digits"),
    "alexnet": ("AlexNet, grouped", "alexnet_digits"),
    "vit": ("vision transformer", "vit_digits"),
}
"""What each network is, and its name in `dfpjax.training.models.MODELS`."""


def _config(model: str, recipe: Recipe) -> TrainConfig:
    """`configs/digits.py` but for the model, the recipe and the splits; it tests on the validation split."""
    values = digits.get_config().to_dict() | {
        "model": model,
        "learning_rate": recipe.rate,
        "epochs": recipe.length,
        "batch_size": BATCH,
        # The size of the validation split, so that the test split runs through the same compiled step.
        "eval_batch_size": 200,
        "train_split": TRAIN,
        "test_split": VALIDATION,
        "data_dir": data_dir(),
        "mesh": (1,),  # so runs are the same however many devices there are
    }
    return TrainConfig.from_dict(values)


def _measures(state: TrainState, dataset: Dataset, config: TrainConfig) -> dict[str, float]:
    totals = test_totals(state, dataset, config.eval_batch_size)
    return {"accuracy": totals.accuracy, "loss": totals.loss}


def _train(name: str, config: TrainConfig, precision: str, seeds: list[int], *, test: bool) -> Iterator[Run]:
    config = dataclasses.replace(config, precision=precision)
    dataset = load_dataset(config)
    test_dataset = load_dataset(dataclasses.replace(config, test_split=TEST)) if test else None
    program = Program(config, dataset)
    program.compile()
    for seed in seeds:
        start = time.perf_counter()
        state = program.start(seed)
        curves: dict[str, list[float]] = {"training loss": [], "accuracy": [], "loss": []}
        finite = True
        with contextlib.closing(dataset.train_batches(config.batch_size, seed=seed)) as batches:
            for _ in range(config.epochs):
                totals = Totals()
                for images, labels in itertools.islice(batches, program.steps_per_epoch):
                    state, metrics = program.step(state, images, labels)
                    totals.add(metrics, len(labels))
                finite = math.isfinite(totals.loss)
                if not finite:
                    break
                for measure, value in _measures(state, dataset, config).items():
                    curves[measure].append(value)
                curves["training loss"].append(totals.loss)
        yield Run(
            task=name,
            precision=precision,
            seed=seed,
            curves=curves,
            test=_measures(state, test_dataset, config) if test and finite else {},
            seconds=time.perf_counter() - start,
            diverged=not finite,
        )


def _step(config: TrainConfig) -> tuple[Step, tuple]:
    model = MODELS[config.model](classes=10)
    images = jax.ShapeDtypeStruct((config.batch_size, 8, 8, 1), jnp.float32)
    labels = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)

    def start(images: jax.Array) -> TrainState:
        variables = model.init(jax.random.key(0), images, train=False)
        return TrainState.create(
            apply_fn=model.apply,
            tx=optax.sgd(config.learning_rate, momentum=config.momentum),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            seed=jnp.int32(0),
        )

    step = functools.partial(train_step, label_smoothing=config.label_smoothing)
    return step, (jax.eval_shape(start, images), images, labels)


def classifier(name: str, recipe: Recipe) -> Task:
    """A network of `TITLES` that learns the digits; a part of its run is an epoch."""
    title, model = TITLES[name]
    config = _config(model, recipe)
    return Task(
        name=name,
        title=title,
        recipe=f"SGD, {recipe.rate:g}, {recipe.length} epochs",
        measures={"accuracy": True, "loss": False},
        train=functools.partial(_train, name, config),
        step=functools.partial(_step, config),
    )
