"""SGD with momentum, and its learning rate schedule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .config import TrainConfig


def optimizer(config: TrainConfig, *, updates: int) -> optax.GradientTransformation:
    """SGD with momentum, for a run of `updates` updates of the parameters.

    If a batch has several parts, the optimizer accumulates their gradients and updates the parameters with
    the mean, as for one batch.
    """
    sgd = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_kernels),
        optax.sgd(learning_rate(config, updates=updates), momentum=config.momentum),
    )
    if config.accumulate == 1:
        return sgd
    return optax.MultiSteps(sgd, config.accumulate).gradient_transformation()


def _kernels(params: Any) -> Any:
    """True for each kernel; false for biases and batch-norm scales, which do not decay."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def learning_rate(config: TrainConfig, *, updates: int) -> Callable[[Any], jax.Array]:
    """The learning rate as a function of the updates made so far, for a run of `updates` updates.

    It rises linearly over the warm-up and then follows `config.schedule`.
    """
    warmup = int(config.warmup * updates)
    highest, rest = config.learning_rate, updates - warmup
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(highest)
        case "cosine":
            after = optax.cosine_decay_schedule(highest, rest)
        case "polynomial":
            after = optax.polynomial_schedule(highest, 0.0, config.power, rest)
        case "step":
            boundaries = jnp.array([round(share * updates) - warmup for share in config.boundaries])
            after = lambda count: highest * config.decay_factor ** jnp.sum(count >= boundaries)  # noqa: E731
    return optax.join_schedules([optax.linear_schedule(0.0, highest, warmup), after], [warmup])
