from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dfpjax.training.models import MODELS, DigitsResNet, ResNet50
from dfpjax.training.models.resnet import Basic, Bottleneck


def _shapes(model: nn.Module, image_shape: tuple[int, ...]) -> dict:
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *image_shape)))


def _parameters(variables: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _kernels(variables: dict) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]


def test_resnet50_is_the_published_one():
    model = ResNet50(classes=1000)
    variables = _shapes(model, (224, 224, 3))
    assert _parameters(variables) == 25_557_032
    assert len(_kernels(variables)) == 54  # 53 convolutions and the classifier
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    logits = jax.eval_shape(partial(model.apply, train=False), variables, images)
    assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)


def test_resnet50_halves_the_image_five_times():
    model = ResNet50(classes=1000)
    is_block = lambda module, _: isinstance(module, Bottleneck)  # noqa: E731
    apply = partial(model.apply, train=False, capture_intermediates=is_block)
    _, state = jax.eval_shape(apply, _shapes(model, (224, 224, 3)), jnp.zeros((1, 224, 224, 3)))
    blocks = state["intermediates"]
    shapes = [blocks[f"Bottleneck_{last}"]["__call__"][0].shape for last in (2, 6, 12, 15)]
    assert shapes == [(1, 56, 56, 256), (1, 28, 28, 512), (1, 14, 14, 1024), (1, 7, 7, 2048)]


def test_digits_resnet_has_strided_and_plain_convolutions():
    model = DigitsResNet(classes=10)
    variables = _shapes(model, (8, 8, 1))
    kernels = _kernels(variables)
    assert sorted(shape[-1] for shape in kernels if shape[:2] == (3, 3)) == [32] * 3 + [64] * 2 + [128] * 2
    logits = jax.eval_shape(partial(model.apply, train=False), variables, jnp.zeros((5, 8, 8, 1)))
    assert logits.shape == (5, 10)


@pytest.mark.parametrize("block", [Basic, Bottleneck])
def test_a_block_starts_as_the_identity(block):
    channels = 4
    norm = partial(nn.BatchNorm, use_running_average=False)
    model = block(channels, norm=norm)
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, channels * block.expansion))
    variables = model.init(jax.random.key(0), x)
    y, _ = model.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, nn.relu(x))


def test_batch_statistics_change_in_training_alone():
    model = DigitsResNet(classes=10, stages=(1,), width=4)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)
    _, updates = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, x)
    for before, after in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updates["batch_stats"]), strict=True
    ):
        assert not np.array_equal(before, after)
    # Flax raises an error where a collection changes that is not mutable.
    jax.eval_shape(partial(model.apply, train=False), variables, x)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_any_number_of_classes(name):
    variables = _shapes(MODELS[name](classes=7), (32, 32, 3))
    assert variables["params"]["Dense_0"]["kernel"].shape[-1] == 7
