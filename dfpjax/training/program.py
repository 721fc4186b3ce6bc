"""What all runs of a configuration share: the model, its initial state and its compiled steps."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import LayerStatistics

from .config import TrainConfig
from .data import Dataset
from .devices import Devices
from .frozen import frozen, split
from .models import MODELS
from .optimizer import learning_rate, optimizer
from .precision import model_dtype, with_precision
from .state import TrainState, measured_step, shared_step, train_step

Step = Callable[[TrainState, np.ndarray, np.ndarray], tuple[TrainState, dict[str, jax.Array]]]
MeasuredStep = Callable[
    [TrainState, np.ndarray, np.ndarray],
    tuple[tuple[TrainState, dict[str, jax.Array]], dict[str, LayerStatistics]],
]


class Program:
    """The functions of a training run, compiled on first use, and its length.

    **Raises:** `DatasetError` if the training split has no full batch; `PatternError` if a pattern of the
    parameters to train matches none.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        self._config = config
        self.devices = Devices(config)
        self._dataset = dataset
        self._updates = config.epochs * dataset.steps_per_epoch(config.batch_size)
        # A step takes one part of a batch.
        self.steps_per_epoch = dataset.steps_per_epoch(config.batch_size) * config.accumulate
        self.steps = config.epochs * self.steps_per_epoch
        self._model = MODELS[config.model](classes=dataset.classes, dtype=model_dtype(config.precision))
        # All seeds share these two, and with them the compiled step.
        self._apply = with_precision(self._model.apply, config.precision)
        self._tx = optimizer(config, updates=self._updates)
        if config.trained:
            split(self.variable_shapes["params"], config.trained)
        self._is_compiled = False
        self._initialized, self._started = jax.jit(self._initialize), jax.jit(self._start)

    def start(self, seed: int, variables: dict[str, Any] | None = None) -> TrainState:
        """The state that a seed starts from, on one device, in float32. `variables` replace random ones."""
        return self._started(seed, self.initial(seed) if variables is None else variables)

    def initial(self, seed: int) -> dict[str, Any]:
        """The random variables `params` and `batch_stats` of a seed."""
        return self._initialized(seed)

    def _initialize(self, seed: int) -> dict[str, Any]:
        variables = self._model.init(jax.random.key(seed), self._images(1), train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def _images(self, count: int) -> jax.Array:
        return jnp.zeros((count, *self._dataset.image_shape))

    def _start(self, seed: int, variables: dict[str, Any]) -> TrainState:
        trained, kept = split(variables["params"], self._config.trained)
        return TrainState.create(
            apply_fn=self._apply,
            tx=self._tx,
            params=trained,
            kept=kept,
            batch_stats=variables["batch_stats"],
            seed=jnp.int32(seed),
        )

    def ready(self, state: TrainState) -> TrainState:
        """A float32 state as the steps take it: parameters that are not trained are in DFP16 where the steps
        read them so."""
        if not state.kept:
            return state
        images = self._images(self._config.batch_size // self._config.accumulate)
        kept = frozen(
            state.params, state.kept, state.batch_stats, self._model.apply, images, self._config.precision
        )
        return state.replace(kept=kept)

    @functools.cached_property
    def state_shapes(self) -> TrainState:
        """Shapes and dtypes of a state in float32, as checkpoints have it."""
        return jax.eval_shape(self._start, 0, self.variable_shapes)

    @functools.cached_property
    def variable_shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the model's variables."""
        return jax.eval_shape(self._initialize, 0)

    def state_for_evaluation(self, variables: dict[str, Any]) -> TrainState:
        """A state with these variables and without optimizer state."""
        return TrainState(
            step=0, apply_fn=self._apply, tx=self._tx, opt_state=(), seed=jnp.int32(0), **variables
        )

    @functools.cached_property
    def step(self) -> Step:
        """The compiled training step."""
        return self._compiled(measured=False)

    @functools.cached_property
    def measured_step(self) -> MeasuredStep:
        """The compiled training step that also gives statistics."""
        return self._compiled(measured=True)

    def compile(self) -> float:
        """Compiles the steps that the configuration needs; returns the seconds taken, 0 if done before.

        Compiling ahead keeps compilation out of the speed of the first epoch.
        """
        if self._is_compiled:
            return 0.0
        began = time.perf_counter()
        _ = self.learning_rates, self.step, self._config.statistics_every and self.measured_step
        self._is_compiled = True
        return time.perf_counter() - began

    def _compiled(self, *, measured: bool) -> Any:
        size = self._config.batch_size // self._config.accumulate
        images = jax.ShapeDtypeStruct((size, *self._dataset.image_shape), np.float32)
        labels = jax.ShapeDtypeStruct((size,), np.int32)
        state = jax.eval_shape(self.ready, self.state_shapes)
        if self.devices.count == 1:
            step = measured_step if measured else train_step
        else:
            gradient_dtype = self._config.gradient_dtype
            step = shared_step(self.devices, gradient_dtype=gradient_dtype, measured=measured)
            state = jax.tree.map(lambda x: x.update(sharding=self.devices.replicated), state)
            images, labels = (x.update(sharding=self.devices.split) for x in (images, labels))
        smoothing = self._config.label_smoothing
        return step.lower(state, images, labels, label_smoothing=smoothing).compile()

    @functools.cached_property
    def learning_rates(self) -> np.ndarray:
        """Of every step, float32[steps]."""
        rates = jax.vmap(learning_rate(self._config, updates=self._updates))(jnp.arange(self._updates))
        return np.repeat(np.asarray(rates), self._config.accumulate)
