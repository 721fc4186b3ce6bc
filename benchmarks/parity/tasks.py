"""What `benchmarks.parity` trains: the form of a task, and classifiers of the digits."""

import dataclasses
import functools
import io
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

import dfpjax
from configs import digits
from dfpjax.training import EpochMetrics, Report, TrainConfig, train
from dfpjax.training.models import MODELS
from dfpjax.training.precision import POLICIES
from dfpjax.training.state import TrainState, train_step

PRECISIONS = ("float32", "dfp16_forced", "dfp16_forced_stochastic", "bfloat16")
"""The forced ones compute in DFP16 whatever can be; all else is the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training of one task."""

    task: str
    precision: str
    seed: int
    curves: dict[str, list[float]]
    """The value of each measure after each epoch, or other part of the run."""

    seconds: float
    diverged: bool = False
    """Whether a loss that was not finite ended the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """How much of a training step is computed in dynamic fixed point."""

    operations: int
    operations_dfp16: int
    macs: int
    macs_dfp16: int


Step = Callable[..., Any]
"""A training step, with its arguments bound but for those that `dfpjax.explain` is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One network to train, by the same recipe in every precision."""

    name: str
    title: str
    """What it is, in a few words for the table."""

    recipe: str
    """How it is trained, likewise."""

    measures: dict[str, bool]
    """The measures that are tested, the most important one first: whether more is better."""

    seeds: int
    """How many the benchmark runs by default."""

    part: str = "epoch"
    """What of a run the points of a curve are counted in."""

    train: Callable[[str, list[int], Callable[[Run], None]], None]
    """Trains in a precision with each of the seeds, and hands over each run as soon as it is over."""

    step: Callable[[], tuple[Step, tuple]]
    """A training step in float32 and its arguments, for `share`."""

    def share(self, precision: str) -> Share | None:
        """What the precision makes of a training step; None where that is not dynamic fixed point."""
        if precision not in POLICIES:
            return None
        step, arguments = self.step()
        ops = dfpjax.explain(step, *arguments, policy=POLICIES[precision]).ops
        quantized = [op for op in ops if op.dtype == "dfp16"]
        return Share(
            operations=len(ops),
            operations_dfp16=len(quantized),
            macs=sum(op.macs for op in ops),
            macs_dfp16=sum(op.macs for op in quantized),
        )


class _Recorder(Report):
    """Hands over each run of a task after its last epoch."""

    def __init__(self, name: str, config: TrainConfig, record: Callable[[Run], None]):
        super().__init__(Console(file=io.StringIO()))
        # The report has private attributes of its own.
        self.name, self.config, self.record = name, config, record
        self.curves: dict[str, list[float]] = {}
        self.finished: list[int] = []

    def start_run(self, *, seed: int, **more: Any) -> list[EpochMetrics]:
        self.curves = {}
        return super().start_run(seed=seed, **more)

    def epoch(self, metrics: EpochMetrics) -> None:
        super().epoch(metrics)
        for name in ("train_loss", "test_loss", "test_accuracy"):
            self.curves.setdefault(name.replace("_", " "), []).append(float(getattr(metrics, name)))
        if metrics.epoch == self.config.epochs:
            self.hand_over(metrics.seed, metrics.seconds)

    def hand_over(self, seed: int, seconds: float, diverged: bool = False) -> None:
        """The run of that seed is over."""
        self.finished.append(seed)
        self.record(
            Run(
                task=self.name,
                precision=self.config.precision,
                seed=seed,
                curves=self.curves,
                seconds=seconds,
                diverged=diverged,
            )
        )


@functools.cache
def _data_dir() -> tempfile.TemporaryDirectory:
    """Where the prepared digits are kept while the program runs."""
    return tempfile.TemporaryDirectory()


def _train_classifier(
    name: str, settings: dict[str, Any], precision: str, seeds: list[int], record: Callable[[Run], None]
) -> None:
    config = _config(settings, precision, seeds)
    recorder = _Recorder(name, config, record)
    while missing := tuple(seed for seed in seeds if seed not in recorder.finished):
        start = time.perf_counter()
        try:
            with recorder:
                train(dataclasses.replace(config, seed=missing), recorder)
        except FloatingPointError:
            (seed, *_) = (seed for seed in missing if seed not in recorder.finished)
            recorder.hand_over(seed, time.perf_counter() - start, diverged=True)


def _config(settings: dict[str, Any], precision: str, seeds: list[int]) -> TrainConfig:
    values = digits.get_config().to_dict()
    values |= settings | {"precision": precision, "seed": tuple(seeds), "data_dir": _data_dir().name}
    return TrainConfig.from_dict(values)


def _classifier_step(settings: dict[str, Any]) -> tuple[Step, tuple]:
    config = _config(settings, "float32", [0])
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


# Those of `configs/digits.py` but for these, chosen in float32. What has no batch norm wants a smaller rate.
_CLASSIFIERS = {
    "resnet": ("residual network", 5, {"model": "digits_resnet", "learning_rate": 0.1}),
    "vgg": ("VGG", 3, {"model": "vgg_digits", "learning_rate": 0.05}),
    "googlenet": ("GoogLeNet", 3, {"model": "googlenet_digits", "learning_rate": 0.02}),
    "alexnet": ("AlexNet, grouped", 3, {"model": "alexnet_digits", "learning_rate": 0.02}),
    "vit": ("vision transformer", 3, {"model": "vit_digits", "learning_rate": 0.05, "epochs": 60}),
}


def classifiers(*, quick: bool) -> list[Task]:
    """Networks that learn the digits, through `dfpjax.training.train`."""
    tasks = []
    for name, (title, seeds, changes) in _CLASSIFIERS.items():
        settings = changes | ({"epochs": 2, "train_split": "train[:256]"} if quick else {})
        epochs = _config(settings, "float32", [0]).epochs
        tasks.append(
            Task(
                name=name,
                title=title,
                recipe=f"SGD, {changes['learning_rate']}, {epochs} epochs",
                measures={"test accuracy": True, "test loss": False},
                seeds=seeds,
                train=functools.partial(_train_classifier, name, settings),
                step=functools.partial(_classifier_step, settings),
            )
        )
    return tasks
