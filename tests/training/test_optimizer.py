import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transform_helpers import normal

from dfpjax.training.config import TrainConfig
from dfpjax.training.optimizer import learning_rate, optimizer

UPDATES = 40


def _rates(config: TrainConfig) -> np.ndarray:
    return np.asarray(jax.vmap(learning_rate(config, updates=UPDATES))(jnp.arange(UPDATES)))


# The rate relative to the peak, when a share `done` of the updates after the warm-up has been made.
COURSES = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + np.cos(np.pi * done)) / 2,
    "polynomial": lambda done: (1 - done) ** 0.5,
}


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("schedule", COURSES)
def test_the_learning_rate_rises_and_follows_its_course(make_config, schedule, warmup):
    config = make_config(schedule=schedule, warmup=warmup / UPDATES, learning_rate=0.2, power=0.5)
    rise = [0.2 * update / warmup for update in range(warmup)]
    course = [COURSES[schedule](update / (UPDATES - warmup)) for update in range(UPDATES - warmup)]
    np.testing.assert_allclose(_rates(config), rise + [0.2 * rate for rate in course], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 10])
def test_steps_are_taken_at_their_shares_of_the_whole_run(make_config, warmup):
    config = make_config(
        schedule="step", warmup=warmup / UPDATES, learning_rate=0.2, boundaries=(0.5, 0.75), decay_factor=0.1
    )
    rise = [0.2 * update / warmup for update in range(warmup)]
    course = [0.2] * (20 - warmup) + [0.02] * 10 + [0.002] * 10
    np.testing.assert_allclose(_rates(config), rise + course, rtol=1e-5)


def test_the_parts_of_a_batch_make_one_update_with_their_mean(make_config):
    changes = {"batch_size": 6, "warmup": 0.0, "weight_decay": 0.1, "schedule": "step", "boundaries": (0.5,)}
    whole = optimizer(make_config(**changes), updates=2)
    parts = optimizer(make_config(**changes, accumulate=3), updates=2)
    start = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    grads = [jax.tree.map(lambda leaf, seed=seed: normal(seed, *leaf.shape), start) for seed in range(6)]

    params, state = start, whole.init(start)
    expected = []
    for batch in (grads[:3], grads[3:]):
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *batch)
        updates, state = whole.update(mean, state, params)
        params = optax.apply_updates(params, updates)
        expected.append(params)

    params, state = start, parts.init(start)
    for index, part in enumerate(grads):
        updates, state = parts.update(part, state, params)
        params = optax.apply_updates(params, updates)
        # Parameters change only with the last part of a batch.
        wanted = [start, *expected][(index + 1) // 3]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, wanted)
