"""Pretrained weights of PyTorch's models: names, layouts, and the logits that PyTorch computes with them."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dfpjax
from dfpjax.training.models.from_torch import from_torch
from dfpjax.training.models.resnet import Basic, Bottleneck, ResNet
from dfpjax.training.models.vit import ViT
from dfpjax.training.weights import CheckpointError, load_weights

RESNETS = {block: ResNet(classes=5, stages=(1, 1, 1, 1), block=block) for block in (Bottleneck, Basic)}
VIT = ViT(classes=5, patch=8, width=48, depth=2, heads=3)

# Of the two images below, as PyTorch 2.13 computes them with timm 1.0.31: ResNet(Bottleneck or BasicBlock,
# [1, 1, 1, 1], num_classes=5) and VisionTransformer(img_size=16, patch_size=8, embed_dim=48, depth=2,
# num_heads=3, num_classes=5), with the state dicts below.
LOGITS = {
    Bottleneck: [
        [0.321232, -0.385559, 0.167466, 0.333809, 0.024095],
        [0.287456, -0.341929, 0.15453, 0.293503, 0.067749],
    ],
    Basic: [
        [0.311844, -0.249802, 0.305486, -0.130896, -0.161894],
        [0.048786, -0.16696, 0.411874, -0.027412, -0.227317],
    ],
    ViT: [
        [0.147517, -0.940933, -1.078848, -0.435068, -2.07],
        [-0.727209, -0.803735, -0.407412, 2.114926, 0.024082],
    ],
}


def images(size):
    return np.random.default_rng(0).standard_normal((2, size, size, 3), dtype=np.float32)


def random_state(shapes):
    """A state dict that depends on names and shapes alone."""
    return {name: _random(name, shape) for name, shape in shapes.items()}


def _random(name, shape):
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        return 1 + x * x
    if x.ndim > 1:
        return (x / np.sqrt(np.prod(shape[1:])).astype(np.float32)).astype(np.float32)
    return 1 + x / 10 if name.endswith("weight") else x / 10


def norm(name, channels):
    return {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def dense(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def resnet_shapes(block):
    """Names and shapes of torchvision's and timm's ResNet with a block in each stage."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    inputs = 64
    for stage in range(4):
        width, start = 64 << stage, f"layer{stage + 1}.0"
        if block is Bottleneck:
            outputs, sizes = 4 * width, ((inputs, width, 1), (width, width, 3), (width, 4 * width, 1))
        else:
            outputs, sizes = width, ((inputs, width, 3), (width, width, 3))
        for number, (before, after, taps) in enumerate(sizes, 1):
            shapes[f"{start}.conv{number}.weight"] = (after, before, taps, taps)
            shapes |= norm(f"{start}.bn{number}", after)
        if inputs != outputs:
            shapes[f"{start}.downsample.0.weight"] = (outputs, inputs, 1, 1)
            shapes |= norm(f"{start}.downsample.1", outputs)
        inputs = outputs
    return shapes | dense("fc", inputs, 5)


def vit_shapes():
    """Names and shapes of timm's VisionTransformer with VIT's sizes."""

    def layer_norm(name):
        return {f"{name}.weight": (48,), f"{name}.bias": (48,)}

    shapes = {"cls_token": (1, 1, 48), "pos_embed": (1, 5, 48)}
    shapes |= {"patch_embed.proj.weight": (48, 3, 8, 8), "patch_embed.proj.bias": (48,)}
    for block in ("blocks.0", "blocks.1"):
        shapes |= layer_norm(f"{block}.norm1") | layer_norm(f"{block}.norm2")
        shapes |= dense(f"{block}.attn.qkv", 48, 144) | dense(f"{block}.attn.proj", 48, 48)
        shapes |= dense(f"{block}.mlp.fc1", 48, 192) | dense(f"{block}.mlp.fc2", 192, 48)
    return shapes | layer_norm("norm") | dense("head", 48, 5)


def variable_shapes(model, x):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


@pytest.mark.parametrize("block", [Bottleneck, Basic])
def test_a_resnet_computes_what_pytorch_does(block):
    model, x = RESNETS[block], images(32)
    state = random_state(resnet_shapes(block)) | {"bn1.num_batches_tracked": np.int64(3)}
    variables = from_torch(state, variable_shapes(model, x))
    logits = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, x)
    np.testing.assert_allclose(logits, LOGITS[block], atol=1e-5)


def test_a_vision_transformer_computes_what_pytorch_does():
    x = images(16)
    variables = from_torch(random_state(vit_shapes()), variable_shapes(VIT, x))

    def apply(variables, x):
        return VIT.apply(variables, x, train=False)

    np.testing.assert_allclose(jax.jit(apply)(variables, x), LOGITS[ViT], atol=1e-5)
    forced = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
    logits = jax.jit(dfpjax.mixed_precision(apply, forced))(variables, x)
    np.testing.assert_allclose(logits, LOGITS[ViT], atol=2e-3)


def test_a_head_of_other_classes_stays():
    x = images(16)
    own = ViT(classes=3, patch=8, width=48, depth=2, heads=3).init(jax.random.key(0), x, train=False)
    state = random_state(vit_shapes())
    params = from_torch(state, own)["params"]
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], own["params"]["Dense_0"]["kernel"])
    np.testing.assert_array_equal(params["Block_1"]["Dense_0"]["kernel"], state["blocks.1.mlp.fc1.weight"].T)


def test_a_run_starts_from_a_file(tmp_path):
    x = images(16)
    own = ViT(classes=3, patch=8, width=48, depth=2, heads=3).init(jax.random.key(0), x, train=False)
    file = tmp_path / "timm.safetensors"
    save_file(random_state(vit_shapes()), str(file))
    found = load_weights(file, dict(own))
    assert jax.tree.all(
        jax.tree.map(np.array_equal, found["params"], from_torch(load_file(str(file)), own)["params"])
    )
    with pytest.raises(
        CheckpointError, match=r"timm\.safetensors cannot be used: from_torch: .*positions is \[5,"
    ):
        load_weights(file, variable_shapes(VIT, images(24)))

    dfpjax.serving.save_safetensors(tmp_path / "own.safetensors", dfpjax.freeze(dict(own)))
    found = load_weights(tmp_path / "own.safetensors", dict(own))
    assert found["params"]["Dense_0"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(
        found["params"]["Dense_0"]["kernel"], own["params"]["Dense_0"]["kernel"], rtol=0, atol=1e-5
    )
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"broken\.safetensors cannot be used"):
        load_weights(tmp_path / "broken.safetensors", dict(own))


def test_another_network_is_refused_by_name():
    state, like = random_state(vit_shapes()), variable_shapes(VIT, jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(
        ValueError, match=r"fc_norm\.weight is unknown.*params/Block_0/LayerNorm_0/bias is miss"
    ):
        renamed = {**state, "fc_norm.weight": state["norm.weight"]}
        from_torch({k: v for k, v in renamed.items() if k != "blocks.0.norm1.bias"}, like)
    with pytest.raises(ValueError, match=r"params/positions is \[4, 48\], not \[5, 48\]"):
        from_torch(state | {"pos_embed": state["pos_embed"][:, 1:]}, like)
    with pytest.raises(ValueError, match=r"not of this model.* more"):
        from_torch(random_state(resnet_shapes(Basic)), like)
