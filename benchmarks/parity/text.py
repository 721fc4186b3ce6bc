"""A task of `benchmarks.parity`: an LSTM that predicts the next character of a text."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.parity.tasks import Run, Step, Task
from dfpjax.training.models import CharLSTM
from dfpjax.training.precision import model_dtype, with_precision

# Texts in a batch, and characters of each that are predicted.
BATCH, LENGTH = 32, 64
PARTS = 10  # of a run, after each of which the held-out text is read


class Corpus(NamedTuple):
    """Text as numbers, int32."""

    characters: int
    train: np.ndarray
    test: np.ndarray


@functools.cache
def corpus() -> Corpus:
    """The help texts that come with Python, in alphabetical order; the last tenth is held out.

    What occurs fewer than 20 times is all one character.
    """
    from pydoc_data.topics import topics

    text = np.array(list("\n".join(topics[name] for name in sorted(topics))))
    _, codes, counts = np.unique(text, return_inverse=True, return_counts=True)
    frequent = counts >= 20
    renumbered = np.where(frequent, np.cumsum(frequent) - 1, frequent.sum())
    codes = renumbered[codes].astype(np.int32)
    held_out = len(codes) // 10
    return Corpus(int(frequent.sum()) + 1, codes[:-held_out], codes[-held_out:])


def batches(text: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Pieces from anywhere in the text, int32[BATCH, LENGTH + 1], without end."""
    random = np.random.default_rng(seed)
    while True:
        starts = random.integers(len(text) - LENGTH, size=BATCH)
        yield text[starts[:, None] + np.arange(LENGTH + 1)]


def bits(apply: Callable, params: dict, text: jax.Array) -> jax.Array:
    """Bits per character that the model needs for `int32[N, T + 1]`, given the first of each text."""
    logits = apply({"params": params}, text[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])
    return jnp.mean(losses) / math.log(2)


def update(
    apply: Callable, tx: optax.GradientTransformation, params: dict, state: optax.OptState, text: jax.Array
) -> tuple[dict, optax.OptState, jax.Array]:
    """One training step: the next parameters and optimizer state, and the loss before it, in bits."""
    loss, gradients = jax.value_and_grad(lambda params: bits(apply, params, text))(params)
    changes, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, changes), state, loss


def optimizer(steps: int) -> optax.GradientTransformation:
    """Of so many training steps."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(4e-3, steps)))


def _pieces(text: np.ndarray) -> np.ndarray:
    """The text cut into pieces that overlap by one character: int32[N, LENGTH + 1]."""
    count = (len(text) - 1) // LENGTH
    return text[np.arange(count)[:, None] * LENGTH + np.arange(LENGTH + 1)]


def _train(steps: int, precision: str, seeds: list[int], record: Callable[[Run], None]) -> None:
    text = corpus()
    model = CharLSTM(text.characters, dtype=model_dtype(precision))
    apply, tx = with_precision(model.apply, precision), optimizer(steps)
    step = jax.jit(functools.partial(update, apply, tx), donate_argnums=(0, 1))
    test = jax.jit(functools.partial(bits, apply))
    held_out = _pieces(text.test)
    for seed in seeds:
        start = time.perf_counter()
        params = jax.jit(model.init)(jax.random.key(seed), held_out[:1, 1:])["params"]
        state = jax.jit(tx.init)(params)
        curves: dict[str, list[float]] = {"train loss": [], "bits per character": []}
        losses = []
        for number, batch in zip(range(1, steps + 1), batches(text.train, seed), strict=False):
            params, state, loss = step(params, state, batch)
            losses.append(loss)
            if number * PARTS % steps < PARTS:
                curves["train loss"].append(float(np.mean(losses)))
                curves["bits per character"].append(float(test(params, held_out)))
                losses.clear()
        diverged = not np.all(np.isfinite(curves["train loss"]))
        seconds = time.perf_counter() - start
        record(
            Run(
                task="lstm",
                precision=precision,
                seed=seed,
                curves=curves,
                seconds=seconds,
                diverged=diverged,
            )
        )


def _step() -> tuple[Step, tuple]:
    model, tx = CharLSTM(corpus().characters), optimizer(1)
    text = jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32)

    def start(text: jax.Array) -> tuple[dict, optax.OptState]:
        params = model.init(jax.random.key(0), text)["params"]
        return params, tx.init(params)

    return functools.partial(update, model.apply, tx), (*jax.eval_shape(start, text), text)


def text_task(*, quick: bool) -> Task:
    """The character model, measured by the bits per character of text it has not seen."""
    steps = 2 if quick else 500
    return Task(
        name="lstm",
        title="character LSTM",
        recipe=f"Adam, 0.004, {steps} steps",
        measures={"bits per character": False},
        seeds=3,
        part=f"part of {max(steps // PARTS, 1)} steps",
        train=functools.partial(_train, steps),
        step=_step,
    )
