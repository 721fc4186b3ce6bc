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

from benchmarks.parity.tasks import Recipe, Run, Step, Task
from dfpjax.training.models import CharLSTM
from dfpjax.training.precision import model_dtype, with_precision

# Texts in a batch, and characters of each that are predicted.
BATCH, LENGTH = 32, 64
PARTS = 5  # of a run, after each of which the validation text is read


class Corpus(NamedTuple):
    """Text as numbers, int32."""

    characters: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@functools.cache
def corpus() -> Corpus:
    """The help texts that come with Python, in alphabetical order.

    The last twentieth is the test split, the one before it the validation split. What occurs fewer than 20
    times is all one character.
    """
    from pydoc_data.topics import topics

    text = np.array(list("\n".join(topics[name] for name in sorted(topics))))
    _, codes, counts = np.unique(text, return_inverse=True, return_counts=True)
    frequent = counts >= 20
    renumbered = np.where(frequent, np.cumsum(frequent) - 1, frequent.sum())
    codes = renumbered[codes].astype(np.int32)
    size = len(codes) // 20
    return Corpus(int(frequent.sum()) + 1, *np.split(codes, [-2 * size, -size]))


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


def optimizer(steps: int, rate: float = 4e-3) -> optax.GradientTransformation:
    """Of so many training steps."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps)))


def _pieces(text: np.ndarray) -> np.ndarray:
    """The text cut into pieces that overlap by one character: int32[N, LENGTH + 1]."""
    count = (len(text) - 1) // LENGTH
    return text[np.arange(count)[:, None] * LENGTH + np.arange(LENGTH + 1)]


def _train(recipe: Recipe, precision: str, seeds: list[int], *, test: bool) -> Iterator[Run]:
    text, steps = corpus(), recipe.length
    model = CharLSTM(text.characters, dtype=model_dtype(precision))
    apply, tx = with_precision(model.apply, precision), optimizer(steps, recipe.rate)
    step = jax.jit(functools.partial(update, apply, tx), donate_argnums=(0, 1))
    read, init, begin = jax.jit(functools.partial(bits, apply)), jax.jit(model.init), jax.jit(tx.init)
    for seed in seeds:
        start = time.perf_counter()
        params = init(jax.random.key(seed), _pieces(text.validation)[:1, 1:])["params"]
        state = begin(params)
        curves: dict[str, list[float]] = {"training loss": [], "bits per character": []}
        losses, finite = [], True
        for number, batch in zip(range(1, steps + 1), batches(text.train, seed), strict=False):
            params, state, loss = step(params, state, batch)
            losses.append(loss)
            if number * PARTS % steps < PARTS:
                mean = float(np.mean(losses))
                finite = math.isfinite(mean)
                if not finite:
                    break
                curves["training loss"].append(mean)
                curves["bits per character"].append(float(read(params, _pieces(text.validation))))
                losses.clear()
        yield Run(
            task="lstm",
            precision=precision,
            seed=seed,
            curves=curves,
            test={"bits per character": float(read(params, _pieces(text.test)))} if test and finite else {},
            seconds=time.perf_counter() - start,
            diverged=not finite,
        )


def _step(recipe: Recipe) -> tuple[Step, tuple]:
    model, tx = CharLSTM(corpus().characters), optimizer(recipe.length, recipe.rate)
    text = jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32)

    def start(text: jax.Array) -> tuple[dict, optax.OptState]:
        params = model.init(jax.random.key(0), text)["params"]
        return params, tx.init(params)

    return functools.partial(update, model.apply, tx), (*jax.eval_shape(start, text), text)


def text_task(recipe: Recipe) -> Task:
    """The character model, measured by the bits per character of text it has not seen."""
    return Task(
        name="lstm",
        title="character LSTM",
        recipe=f"Adam, {recipe.rate:g}, {recipe.length} steps",
        measures={"bits per character": False},
        part=f"part of {max(recipe.length // PARTS, 1)} steps",
        train=functools.partial(_train, recipe),
        step=functools.partial(_step, recipe),
    )
