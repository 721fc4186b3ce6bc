"""A task of `benchmarks.parity`: a generative adversarial network that learns the digits."""

import functools
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from benchmarks.parity.splits import TEST, TRAIN, VALIDATION, digits
from benchmarks.parity.tasks import Recipe, Run, Step, Task
from dfpjax.training.precision import model_dtype, with_precision

BATCH, NOISE = 64, 32
JUDGED = 4096  # made-up digits that are compared with the real ones
PARTS = 5  # of a run, after each of which they are

_init = nn.initializers.normal(0.02)


class Generator(nn.Module):
    """Images `float32[N, 8, 8, 1]` from -1 to 1 of noise `float32[N, NOISE]` (Radford et al., 1511.06434)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, noise: jax.Array, *, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        up = functools.partial(nn.ConvTranspose, kernel_size=(4, 4), strides=(2, 2), dtype=self.dtype)
        x = nn.Dense(2 * 2 * 64, dtype=self.dtype, kernel_init=_init)(noise).reshape(-1, 2, 2, 64)
        x = up(32, kernel_init=_init)(nn.relu(norm()(x)))
        x = up(1, kernel_init=_init)(nn.relu(norm()(x)))
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Logits `float32[N]` that images `float32[N, 8, 8, 1]` are real."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for channels in (32, 64):
            conv = nn.Conv(channels, (4, 4), strides=(2, 2), dtype=self.dtype, kernel_init=_init)
            x = nn.leaky_relu(conv(x), 0.2)
        x = x.reshape(len(x), -1)
        return nn.Dense(1, dtype=self.dtype, kernel_init=_init)(x)[:, 0].astype(jnp.float32)


class Applies(NamedTuple):
    """What computes the two networks."""

    generator: Callable
    discriminator: Callable


class Game(NamedTuple):
    """What changes from step to step."""

    generator: dict
    statistics: dict
    discriminator: dict
    states: tuple[optax.OptState, optax.OptState]


def _optimizer(rate: float) -> optax.GradientTransformation:
    return optax.adam(rate, b1=0.5)


def _start(tx: optax.GradientTransformation, seed: int) -> Game:
    made, judge = jax.random.split(jax.random.key(seed))
    variables = Generator().init(made, jnp.zeros((1, NOISE)), train=False)
    params = Discriminator().init(judge, jnp.zeros((1, 8, 8, 1)))["params"]
    states = tuple(tx.init(p) for p in (variables["params"], params))
    return Game(variables["params"], variables["batch_stats"], params, states)


def update(
    applies: Applies, tx: optax.GradientTransformation, game: Game, real: jax.Array, key: jax.Array
) -> tuple[Game, dict]:
    """A step of the discriminator, then one of the generator; the losses before them beside the result."""
    noise = jax.random.normal(key, (2, BATCH, NOISE))

    def made(params: dict, noise: jax.Array) -> tuple[jax.Array, dict]:
        variables = {"params": params, "batch_stats": game.statistics}
        images, updates = applies.generator(variables, noise, train=True, mutable=["batch_stats"])
        return images, updates["batch_stats"]

    def judge_loss(params: dict) -> jax.Array:
        fake, _ = made(game.generator, noise[0])
        on_real, on_fake = (applies.discriminator({"params": params}, images) for images in (real, fake))
        return jnp.mean(nn.softplus(-on_real)) + jnp.mean(nn.softplus(on_fake))

    judge, slopes = jax.value_and_grad(judge_loss)(game.discriminator)
    changes, judge_state = tx.update(slopes, game.states[1])
    discriminator = optax.apply_updates(game.discriminator, changes)

    def maker_loss(params: dict) -> tuple[jax.Array, dict]:
        fake, statistics = made(params, noise[1])
        return jnp.mean(nn.softplus(-applies.discriminator({"params": discriminator}, fake))), statistics

    (maker, statistics), slopes = jax.value_and_grad(maker_loss, has_aux=True)(game.generator)
    changes, maker_state = tx.update(slopes, game.states[0])
    generator = optax.apply_updates(game.generator, changes)
    losses = {"discriminator loss": judge, "generator loss": maker}
    return Game(generator, statistics, discriminator, (maker_state, judge_state)), losses


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions with the moments of `[N, features]` each.

    |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), as in Heusel et al. (arXiv 1706.08500).
    """
    means = [np.mean(features, axis=0, dtype=np.float64) for features in (one, other)]
    covariances = [np.cov(features.astype(np.float64), rowvar=False) for features in (one, other)]
    # The product of two positive matrices has real eigenvalues, none negative, but for rounding.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0))
    return float(np.sum((means[0] - means[1]) ** 2) + sum(map(np.trace, covariances)) - 2 * roots.sum())


class Judge:
    """Measures the distance of generated digits from real ones, by the features of a classifier.

    The features are the 64 hidden units of scikit-learn's `MLPClassifier`, trained in float64 on the training
    and validation splits.
    """

    def __init__(self) -> None:
        from sklearn.neural_network import MLPClassifier

        seen = [digits(split) for split in (TRAIN, VALIDATION)]
        images, labels = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        self._classifier = MLPClassifier((64,), max_iter=60, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sixty epochs are enough, whether it has converged or not
            self._classifier.fit(self._flat(images), labels)

    @staticmethod
    def _flat(images: np.ndarray) -> np.ndarray:
        return np.asarray(images, np.float64).reshape(len(images), -1)

    def features(self, images: np.ndarray) -> np.ndarray:
        """`[N, 64]`."""
        hidden = self._flat(images) @ self._classifier.coefs_[0] + self._classifier.intercepts_[0]
        return np.maximum(hidden, 0)

    def distance(self, images: np.ndarray, split: str) -> float:
        """The Fréchet distance of images' features from those of the real digits of a split."""
        return frechet_distance(self.features(images), self.features(digits(split)[0]))


@functools.cache
def judge() -> Judge:
    """The one of all runs."""
    return Judge()


def _applies(precision: str) -> Applies:
    networks = (module(dtype=model_dtype(precision)) for module in (Generator, Discriminator))
    return Applies(*(with_precision(network.apply, precision) for network in networks))


def _train(recipe: Recipe, precision: str, seeds: list[int], *, test: bool) -> Iterator[Run]:
    applies, tx, steps = _applies(precision), _optimizer(recipe.rate), recipe.length
    step = jax.jit(functools.partial(update, applies, tx), donate_argnums=0)
    make = jax.jit(functools.partial(applies.generator, train=False))
    begin = jax.jit(functools.partial(_start, tx))
    images, _ = digits(TRAIN)
    for seed in seeds:
        start = time.perf_counter()
        game, random = begin(seed), np.random.default_rng(seed)
        key = jax.random.key(seed + 1)
        noise = jax.random.normal(jax.random.fold_in(key, steps), (JUDGED, NOISE))
        names = ("discriminator loss", "generator loss", "Fréchet distance")
        curves: dict[str, list[float]] = {name: [] for name in names}
        finite, made = True, None
        for number in range(1, steps + 1):
            real = images[random.integers(len(images), size=BATCH)]
            game, losses = step(game, real, jax.random.fold_in(key, number - 1))
            finite = all(np.isfinite(float(loss)) for loss in losses.values())
            if not finite:
                break
            if number * PARTS % steps < PARTS:
                made = np.asarray(make({"params": game.generator, "batch_stats": game.statistics}, noise))
                for name, loss in losses.items():
                    curves[name].append(float(loss))
                curves["Fréchet distance"].append(judge().distance(made, VALIDATION))
        yield Run(
            task="gan",
            precision=precision,
            seed=seed,
            curves=curves,
            test={"Fréchet distance": judge().distance(made, TEST)} if test and finite else {},
            seconds=time.perf_counter() - start,
            diverged=not finite,
        )


def _step(recipe: Recipe) -> tuple[Step, tuple]:
    tx = _optimizer(recipe.rate)
    game = jax.eval_shape(functools.partial(_start, tx), 0)
    real = jax.ShapeDtypeStruct((BATCH, 8, 8, 1), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    return functools.partial(update, _applies("float32"), tx), (game, real, key)


def gan_task(recipe: Recipe) -> Task:
    """A small DCGAN, measured by the Fréchet distance of its digits from the real ones."""
    return Task(
        name="gan",
        title="DCGAN",
        recipe=f"Adam, {recipe.rate:g}, {recipe.length} steps",
        measures={"Fréchet distance": False},
        part=f"part of {max(recipe.length // PARTS, 1)} steps",
        train=functools.partial(_train, recipe),
        step=functools.partial(_step, recipe),
    )
