"""The state of a run, and the functions that compute a step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state
from jax.sharding import Mesh, PartitionSpec

import dfpjax

from .devices import AXIS, Devices
from .frozen import merged

# Of each auxiliary head's loss in the sum that is differentiated (Szegedy et al., arXiv 1409.4842, §5).
AUXILIARY_WEIGHT = 0.3


class TrainState(train_state.TrainState):
    """Parameters, optimizer state and batch-norm statistics, all float32 in every precision.

    `params` has the parameters that are trained.
    """

    # Empty for a model without batch norm.
    batch_stats: Any
    # int32[], that of the run.
    seed: jax.Array
    # The parameters that are not trained: float32, or frozen in DFP16 during a run.
    kept: Any = struct.field(default_factory=dict)


def step_metrics(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> dict[str, jax.Array]:
    """Sums over the batch: `loss` float32[] (cross-entropy), `correct` and `correct_top5` int32[].

    `logits` are float32[..., classes] and `labels` int32[...]: one for each image, or for each character of
    each text. Images with a negative label only pad the batch and do not count. With five classes
    or fewer, every image is correct in the top 5.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    _, first = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    return {
        "loss": jnp.sum(losses, where=labels >= 0),
        "correct": jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32),
        "correct_top5": jnp.sum(first == labels[..., None], dtype=jnp.int32),
    }


def _step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float,
    axis: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of SGD on images `float32[N, H, W, C]`, labels `int32[N]`; or texts and labels `int32[N, T]`.

    The loss is the mean cross-entropy, plus 0.3 times that of each auxiliary head. Where only a part of the
    network is trained, all of it computes as in evaluation, with its running statistics. Otherwise dropout
    depends on the run's seed and the step alone, so a resumed run continues exactly.

    Inside shard_map over `axis`, the images are a device's share of the batch, with batch statistics and
    dropout of their own. The devices exchange gradients in DFP16.

    Returns the next state, and the `step_metrics` of the batch before the step, without auxiliary heads.
    Donates `state`.
    """
    dropout = jax.random.fold_in(jax.random.key(state.seed), state.step)
    if axis is not None:
        dropout = jax.random.fold_in(dropout, jax.lax.axis_index(axis))

    def loss_fn(params):
        logits, updates = state.apply_fn(
            {"params": merged(params, state.kept), "batch_stats": state.batch_stats},
            images,
            train=not state.kept,
            mutable=["batch_stats", "auxiliary"],
            rngs={"dropout": dropout},
        )
        metrics = step_metrics(logits, labels, label_smoothing)
        loss = metrics["loss"]
        for auxiliary in jax.tree.leaves(updates.get("auxiliary", {})):
            loss += AUXILIARY_WEIGHT * step_metrics(auxiliary, labels, label_smoothing)["loss"]
        batch_stats = state.batch_stats if state.kept else updates.get("batch_stats", {})
        return loss / labels.size, (metrics, batch_stats)

    (_, (metrics, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    if axis is not None:
        grads = dfpjax.distributed.all_reduce_mean(grads, axis)
        metrics, batch_stats = jax.lax.psum(metrics, axis), jax.lax.pmean(batch_stats, axis)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), metrics


_measured = dfpjax.with_statistics(_step, dfpjax.Policy(default=None))

_compiled = partial(jax.jit, static_argnames="label_smoothing", donate_argnames="state")

train_step = _compiled(_step)

measured_step = _compiled(_measured)
"""`train_step`, which also returns the statistics of the operations in DFP16."""


def shared_step(devices: Devices, *, gradient_dtype: str, measured: bool) -> Callable:
    """`train_step`, or `measured_step`, by several devices.

    With gradients in float32 it computes what one device would, up to the rounding of float32 sums.
    """
    if gradient_dtype == "dfp16":
        function = partial(_exchanging_step, mesh=devices.mesh)
    else:
        function = _measured if measured else _step
    return _compiled(function, out_shardings=devices.replicated)


def _exchanging_step(
    state: TrainState, images: jax.Array, labels: jax.Array, *, label_smoothing: float, mesh: Mesh
) -> tuple[TrainState, dict[str, jax.Array]]:
    shard = jax.shard_map(
        partial(_step, label_smoothing=label_smoothing, axis=AXIS),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,  # so the gradients of a device are those of its own images
    )
    return shard(state, images, labels)


@jax.jit
def eval_step(state: TrainState, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """The `step_metrics` of a batch, with the running statistics of batch norm and without dropout."""
    variables = {"params": merged(state.params, state.kept), "batch_stats": state.batch_stats}
    return step_metrics(state.apply_fn(variables, images, train=False), labels)
