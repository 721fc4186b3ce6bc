from collections import Counter
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from transform_helpers import normal

from dfpjax.training.models import (
    MODELS,
    VGG16,
    AlexNet,
    CharLSTM,
    DigitsResNet,
    GoogLeNet,
    ResNet50,
    ViT,
    ViTS16,
)
from dfpjax.training.models.googlenet import Inception, average_pool
from dfpjax.training.models.normalization import local_response_norm
from dfpjax.training.models.resnet import Basic, Bottleneck
from dfpjax.training.models.vit import Attention, Block


@cache
def _shapes(model: nn.Module, image_shape: tuple[int, ...]) -> dict:
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *image_shape)))


def _outputs(model: nn.Module, layer: type[nn.Module], image_shape: tuple[int, ...]) -> dict:
    """The output shape of each layer of this type for an image, by the layer's name."""
    apply = partial(
        model.apply, train=False, capture_intermediates=lambda module, _: isinstance(module, layer)
    )
    images = jnp.zeros((1, *image_shape))
    _, state = jax.eval_shape(apply, _shapes(model, image_shape), images)
    flat = traverse_util.flatten_dict(state.get("intermediates", {}), sep="/")
    return {path.removesuffix("/__call__"): calls[0].shape for path, calls in flat.items()}


def _main(variables: dict) -> dict:
    """The parameters without those of auxiliary heads."""
    params = variables["params"].items()
    return {"params": {name: layer for name, layer in params if not name.startswith("Auxiliary")}}


def _parameters(variables: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _kernels(variables: dict) -> list[tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    return [leaf.shape for path, leaf in leaves if path[-1].key == "kernel"]


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
    blocks = _outputs(model, Bottleneck, (224, 224, 3))
    shapes = [blocks[f"Bottleneck_{last}"] for last in (2, 6, 12, 15)]
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
    x = normal(1, 2, 6, 6, channels * block.expansion)
    variables = model.init(jax.random.key(0), x)
    y, _ = model.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, nn.relu(x))


def test_batch_statistics_change_in_training_alone():
    model = DigitsResNet(classes=10, stages=(1,), width=4)
    x = normal(1, 4, 8, 8, 1)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)
    _, updates = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, x)
    for before, after in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updates["batch_stats"]), strict=True
    ):
        assert not np.array_equal(before, after)
    # Flax raises an error if an immutable collection changes.
    jax.eval_shape(partial(model.apply, train=False), variables, x)


def test_vgg16_is_the_published_one():
    model = VGG16(classes=1000)
    variables = _shapes(model, (224, 224, 3))
    assert _parameters(variables) == 138_357_544
    assert len(_kernels(variables)) == 16
    shapes = _outputs(model, nn.Conv, (224, 224, 3))
    last = [shapes[f"Conv_{index}"] for index in (1, 3, 6, 9, 12)]
    assert last == [
        (1, 224, 224, 64),
        (1, 112, 112, 128),
        (1, 56, 56, 256),
        (1, 28, 28, 512),
        (1, 14, 14, 512),
    ]


@pytest.mark.parametrize("size", [224, 227])
def test_alexnet_is_the_published_one(size):
    model = AlexNet(classes=1000)
    variables = _shapes(model, (size, size, 3))
    assert _parameters(variables) == 60_965_224
    # The kernels of grouped convolutions see half of their input's channels.
    inputs = [variables["params"][f"Conv_{index}"]["kernel"].shape[2] for index in range(5)]
    assert inputs == [3, 48, 256, 192, 192]
    shapes = _outputs(model, nn.Conv, (size, size, 3))
    channels = (384, 384, 256)
    assert [*shapes.values()] == [(1, 55, 55, 96), (1, 27, 27, 256), *((1, 13, 13, c) for c in channels)]
    assert variables["params"]["Dense_0"]["kernel"].shape == (6 * 6 * 256, 4096)


def test_googlenet_is_the_published_one():
    model = GoogLeNet(classes=1000)
    variables = _shapes(model, (224, 224, 3))
    # The counts of Caffe's replication. Table 1 of the paper, without auxiliary heads, rounds to 6.8 million.
    assert _parameters(variables) == 13_378_280
    assert _parameters(_main(variables)) == 6_998_552
    channels = [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    sizes = [28] * 2 + [14] * 5 + [7] * 2
    shapes = _outputs(model, Inception, (224, 224, 3))
    assert [*shapes.values()] == [(1, s, s, c) for s, c in zip(sizes, channels, strict=True)]
    for name, inner in (("Auxiliary_0", 512), ("Auxiliary_1", 528)):
        head = variables["params"][name]
        assert head["Conv_0"]["kernel"].shape == (1, 1, inner, 128)
        assert head["Dense_0"]["kernel"].shape == (4 * 4 * 128, 1024)


def test_auxiliary_heads_are_for_training():
    model = MODELS["googlenet_digits"](classes=10)
    variables = _shapes(model, (8, 8, 1))
    assert set(variables) == {"params"}
    images = jnp.zeros((3, 8, 8, 1))

    def apply(variables: dict, train: bool) -> tuple[jax.Array, dict]:
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=train, mutable=["auxiliary"], rngs=rngs)

    logits, state = jax.eval_shape(partial(apply, train=True), variables)
    assert [leaf.shape for leaf in jax.tree.leaves((logits, state))] == [(3, 10), (3, 10)]
    _, state = jax.eval_shape(partial(apply, train=False), variables)
    assert jax.tree.leaves(state) == []
    # Evaluation does not even need their parameters.
    jax.eval_shape(partial(model.apply, train=False), _main(variables), images)


def test_vit_s16_is_the_published_one():
    model = ViTS16(classes=1000)
    variables = _shapes(model, (224, 224, 3))
    assert _parameters(variables) == 22_050_664
    assert [*_outputs(model, Attention, (224, 224, 3)).values()] == [(1, 1 + 14 * 14, 384)] * 12


def test_attention_is_that_of_flax():
    heads, width = 2, 6
    x = jax.random.normal(jax.random.key(1), (3, 5, width))
    model = Attention(heads, kernel_init=nn.initializers.normal(1.0))
    params = model.init(jax.random.key(0), x)["params"]
    parts = jnp.split(params["Dense_0"]["kernel"].reshape(width, 3, heads, -1), 3, axis=1)
    expected = nn.MultiHeadDotProductAttention(heads)
    names = ("query", "key", "value")
    zeros = jnp.zeros((heads, width // heads))
    theirs = {n: {"kernel": part[:, 0], "bias": zeros} for n, part in zip(names, parts, strict=True)}
    out = params["Dense_1"]["kernel"].reshape(heads, -1, width)
    theirs["out"] = {"kernel": out, "bias": jnp.zeros(width)}
    y = model.apply({"params": params}, x)
    np.testing.assert_allclose(y, expected.apply({"params": theirs}, x), rtol=1e-5, atol=1e-5)


def test_a_vit_keeps_the_inputs_of_its_functions_alone():
    x = jnp.zeros((2, 3, 8))
    block = Block(heads=2, dropout=0.0)
    variables = block.init(jax.random.key(0), x, train=True)
    backward = jax.vjp(partial(block.apply, train=True), variables, x)[1]
    kept = Counter(leaf.shape for leaf in jax.tree.leaves(backward))
    # The inputs of gelu and of the layer behind it, then those of softmax and of the product behind it.
    assert kept[2, 3, 4 * 8] == kept[2, 2, 3, 3] == 2
    # Both normalizations' and what follows each, and the attention's last layer.
    assert kept[2, 3, 8] == 5


def test_weight_decay_finds_no_bias_in_a_vit():
    variables = _shapes(MODELS["vit_digits"](classes=10), (8, 8, 1))
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    decayed = {path[-1].key for path, leaf in leaves if leaf.ndim > 1}
    assert decayed == {"kernel", "positions"}


def test_a_vit_says_what_cannot_be_cut_into_patches():
    with pytest.raises(ValueError, match="images of 8×9 pixels cannot be cut into patches of 2"):
        _shapes(ViT(classes=2, patch=2, width=4, depth=1, heads=2), (8, 9, 1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_character_model_looks_back_alone(dtype):
    model = CharLSTM(characters=11, width=8, layers=2, dtype=dtype)
    text = jax.random.randint(jax.random.key(1), (3, 6), 0, 11)
    variables = model.init(jax.random.key(0), text)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    logits = model.apply(variables, text)
    assert (logits.shape, logits.dtype) == ((3, 6, 11), jnp.float32)
    # Another character at one position changes the outputs from there on, and none before.
    changed = model.apply(variables, text.at[:, 3].set((text[:, 3] + 1) % 11))
    differs = np.any(np.asarray(changed != logits), axis=(0, 2))
    assert differs.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize(("shape", "size"), [((2, 3, 3, 7), 5), ((4, 2), 5), ((1, 9), 3), ((3, 8), 1)])
def test_local_response_norm_is_that_of_its_paper(shape, size):
    x = np.random.default_rng(0).normal(scale=20, size=shape)
    k, alpha, beta = 2.0, 1e-2, 0.75
    expected = np.empty_like(x)
    for channel in range(shape[-1]):
        first, last = max(0, channel - size // 2), min(shape[-1] - 1, channel + size // 2)
        total = (x[..., first : last + 1] ** 2).sum(axis=-1)
        expected[..., channel] = x[..., channel] / (k + alpha * total) ** beta
    y = local_response_norm(jnp.float32(x), size=size, k=k, alpha=alpha, beta=beta)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_local_response_norm_has_the_constants_of_alexnet():
    y = local_response_norm(jnp.full((1, 5), 100.0))
    np.testing.assert_allclose(y[0, 2], 100 / (2 + 1e-4 * 5 * 100**2) ** 0.75, rtol=1e-6)
    with pytest.raises(ValueError, match="size is 4; it must be odd"):
        local_response_norm(jnp.zeros((1, 5)), size=4)


@pytest.mark.parametrize(("beta", "size"), [(0.75, 5), (0.75, 1), (0.6, 3), (1.5, 5)])
def test_local_response_norm_has_the_gradient_that_jax_derives(beta, size):
    k, alpha = 2.0, 1e-2
    x, g = (np.random.default_rng(i).normal(scale=9, size=(2, 3, 7)) for i in (0, 1))

    def plain(x):
        neighbours = np.abs(np.subtract.outer(np.arange(7), np.arange(7))) <= size // 2
        return x / (k + alpha * x**2 @ neighbours.astype(x.dtype)) ** beta

    with jax.enable_x64(True):
        expected = jax.vjp(plain, jnp.float64(x))[1](jnp.float64(g))[0]
    written_out = partial(local_response_norm, size=size, k=k, alpha=alpha, beta=beta)
    (actual,) = jax.vjp(written_out, jnp.float32(x))[1](jnp.float32(g))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "size", "stride"), [((2, 14, 14, 3), 5, 3), ((1, 5, 8, 2), 2, 2)])
def test_average_pool_is_that_over_both_axes(shape, size, stride):
    x, weights = (np.random.default_rng(i).normal(size=shape).astype(np.float32) for i in (0, 1))
    expected = nn.avg_pool(jnp.asarray(x), (size, size), strides=(stride, stride))
    weights = weights[:, : expected.shape[1], : expected.shape[2]]
    np.testing.assert_allclose(average_pool(x, size, stride), expected, rtol=1e-5, atol=1e-6)
    windows = [(i, j) for i in range(expected.shape[1]) for j in range(expected.shape[2])]
    gradient = np.zeros_like(x)
    for i, j in windows:
        rows, columns = (slice(stride * at, stride * at + size) for at in (i, j))
        gradient[:, rows, columns] += weights[:, i : i + 1, j : j + 1] / size**2
    pool = partial(average_pool, size=size, stride=stride)
    (actual,) = jax.vjp(pool, jnp.asarray(x))[1](jnp.asarray(weights))
    np.testing.assert_allclose(actual, gradient, rtol=1e-5, atol=1e-6)


def _image_shape(name: str) -> tuple[int, int, int]:
    """The smallest shape that all networks for photographs accept, or the shape of the digits."""
    return (8, 8, 1) if "digits" in name else (80, 80, 3)


def _contractions(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """All convolutions and dot products, including those of inner functions."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            found.append(equation)
        inner = [value for value in equation.params.values() if isinstance(value, ClosedJaxpr)]
        found += [contraction for closed in inner for contraction in _contractions(closed.jaxpr)]
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_every_model_computes_in_its_dtype(name, dtype):
    model = MODELS[name](classes=7, dtype=dtype)
    variables = _shapes(model, _image_shape(name))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    images = jnp.zeros((2, *_image_shape(name)))
    traced = jax.make_jaxpr(partial(model.apply, train=False))(variables, images)
    (logits,) = traced.out_avals
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    contractions = _contractions(traced.jaxpr)
    # Each attention layer multiplies two activations twice.
    attention = _outputs(model, Attention, _image_shape(name))
    assert len(contractions) == len(_kernels(_main(variables))) + 2 * len(attention)
    operands = [operand for contraction in contractions for operand in contraction.invars]
    assert {operand.aval.dtype for operand in operands} == {np.dtype(dtype)}


def test_digits_networks_are_small():
    sizes = {
        name: _parameters(_shapes(MODELS[name](classes=10), (8, 8, 1))) for name in MODELS if "digits" in name
    }
    assert sizes == {
        "alexnet_digits": 170_298,
        "digits_resnet": 308_074,
        "googlenet_digits": 243_512,
        "vgg_digits": 173_162,
        "vit_digits": 202_186,
    }
