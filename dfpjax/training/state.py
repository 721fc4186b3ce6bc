"""What a run changes step by step, and the two functions that compute a step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

import dfpjax

from .config import TrainConfig


class TrainState(train_state.TrainState):
    """Parameters, optimizer state and batch-norm statistics, all float32 in every precision."""

    batch_stats: Any


def optimizer(config: TrainConfig, *, steps: int) -> optax.GradientTransformation:
    """SGD with momentum; over so many steps the learning rate rises linearly and falls along a cosine."""
    learning_rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=int(config.warmup * steps),
        decay_steps=steps,
    )
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_kernels),
        optax.sgd(learning_rate, momentum=config.momentum),
    )


def _kernels(params: Any) -> Any:
    """True for each kernel, false for biases and batch-norm scales, which gain nothing from decay."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def step_metrics(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> dict[str, jax.Array]:
    """Sums over the batch: `loss` float32[] (cross-entropy) and `correct` int32[]."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return {
        "loss": jnp.sum(optax.softmax_cross_entropy(logits, targets)),
        "correct": jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32),
    }


def _step(
    state: TrainState, images: jax.Array, labels: jax.Array, *, label_smoothing: float
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of SGD on images `float32[N, H, W, C]` and labels `int32[N]`.

    Returns the next state and the `step_metrics` of the batch before the step. `state` is donated.
    """

    def loss_fn(params):
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats}, images, train=True, mutable=["batch_stats"]
        )
        metrics = step_metrics(logits, labels, label_smoothing)
        return metrics["loss"] / len(labels), (metrics, updates["batch_stats"])

    (_, (metrics, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), metrics


_compiled = partial(jax.jit, static_argnames="label_smoothing", donate_argnames="state")

train_step = _compiled(_step)

measured_step = _compiled(dfpjax.with_statistics(_step, dfpjax.Policy(default=None)))
"""`train_step`, with the statistics of what it computes in DFP16 beside its result."""


@jax.jit
def eval_step(state: TrainState, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """The `step_metrics` of a batch, with the running statistics of batch norm."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return step_metrics(state.apply_fn(variables, images, train=False), labels)
