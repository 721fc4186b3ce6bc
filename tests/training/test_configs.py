"""The configurations of the paper's networks."""

import importlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dfpjax.training import TrainConfig
from dfpjax.training.optimizer import learning_rate

PAPER = {"resnet50": (1024, 90), "googlenet": (1024, 80), "vgg16": (256, 60), "alexnet": (1024, 88)}


@pytest.fixture
def paper_config(monkeypatch):
    """A function that returns the configuration of a network by name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])

    def make(name: str) -> TrainConfig:
        return TrainConfig.from_dict(importlib.import_module(f"configs.{name}").get_config())

    return make


@pytest.mark.parametrize("name", PAPER)
def test_batches_and_epochs_are_the_papers(paper_config, name):
    config = paper_config(name)
    assert (config.model, config.dataset, config.image_size) == (name, "imagenet2012", 224)
    assert (config.batch_size, config.epochs) == PAPER[name]
    assert config.momentum == 0.9


@pytest.mark.parametrize(
    ("name", "course"),
    [
        ("resnet50", {0: 0, 2.5: 0.05, 5: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 1e-3, 79: 1e-3, 80: 1e-4}),
        ("googlenet", {0: 0.0565685, 20: 0.0565685 * 0.75**0.5, 60: 0.0565685 / 2}),
        ("vgg16", {0: 0.01, 19: 0.01, 20: 1e-3, 39: 1e-3, 40: 1e-4, 49: 1e-4, 50: 1e-5, 59: 1e-5}),
        (
            "alexnet",
            {0: 0.02, 19: 0.02, 20: 2e-3, 39: 2e-3, 40: 2e-4, 58: 2e-4, 59: 2e-5, 78: 2e-5, 79: 2e-6},
        ),
    ],
)
def test_learning_rates_by_epoch(paper_config, name, course):
    config = paper_config(name)
    per_epoch = 1_281_167 // config.batch_size
    rate = learning_rate(config, updates=config.epochs * per_epoch)
    rates = [rate(jnp.int32(epoch * per_epoch)) for epoch in course]
    np.testing.assert_allclose(rates, list(course.values()), rtol=1e-3, atol=1e-7)
