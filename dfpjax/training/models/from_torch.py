"""Pretrained weights of PyTorch's models, under the names and in the layouts of ours.

Our residual networks and vision transformers compute what torchvision's and timm's do, so weights carry over:
those of `resnet50` in either library to our `resnet50`, and those of timm's `vit_small_patch16_224` to `vit`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

_Name = tuple[str, ...]

# What a layer's parameters are called, in PyTorch and here.
_LEAVES = {
    "weight": ("params", "scale"),  # of a normalization; see _layer
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def from_torch(state: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of one of our models, given the state dict of the same network in torchvision or timm.

    Arguments:
        state: arrays by PyTorch's names, such as `safetensors.numpy.load_file` returns, or
            `{name: x.numpy() for name, x in model.state_dict().items()}`.
        like: variables of our model. If its last dense layer has another number of classes than the state
            dict, that layer stays as it is in `like`, for fine-tuning. Otherwise shapes suffice.

    Returns:
        the variables in the structure of `like`, float32.

    Raises:
        ValueError: if the state dict is of another network: arrays are unknown, missing or of other shapes.
            The message names them.
    """
    translate = _vit if "pos_embed" in state else _resnet(state)
    wanted = traverse_util.flatten_dict(dict(like))
    found, unknown = {}, []
    for name, array in state.items():
        if name.endswith(".num_batches_tracked"):  # a count that only PyTorch's batch norm needs
            continue
        array = np.asarray(array, np.float32)
        if (place := translate(name, array.ndim)) is None:
            unknown.append(name)
        else:
            found[place] = _layout(name, array)
    head = max((name for name in found if name[:2] == ("params", "Dense_0")), default=None)
    if head is not None and head in wanted and found[head].shape[-1] != wanted[head].shape[-1]:
        found |= {name: x for name, x in wanted.items() if name[:2] == head[:2]}
    if problems := [f"{name} is unknown" for name in unknown] + list(_differences(found, wanted)):
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(
            f"from_torch: the state dict is not of this model: {', '.join(problems[:4])}{more}; it must be of"
            " the same network, in torchvision or timm"
        )
    return traverse_util.unflatten_dict(found)


def _resnet(state: Mapping[str, np.ndarray]) -> Callable[[str, int], _Name | None]:
    """Translates the names of torchvision's and timm's ResNet."""
    # The blocks of all stages, numbered through.
    places = sorted(
        {(int(m[1]), int(m[2])) for name in state if (m := re.match(r"layer(\d+)\.(\d+)\.", name))}
    )
    block, convolutions = ("Bottleneck", 3) if "layer1.0.conv3.weight" in state else ("Basic", 2)

    def translate(name: str, ndim: int) -> _Name | None:
        inside: _Name = ()
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            inside = (f"{block}_{places.index((int(match[1]), int(match[2])))}",)
            name = name[match.end() :]
        layer, _, leaf = name.rpartition(".")
        if match := re.fullmatch(r"(conv|bn)(\d)", layer):
            kind, number = match[1], int(match[2]) - 1
        elif match := re.fullmatch(r"downsample\.([01])", layer):
            kind, number = ("conv", "bn")[int(match[1])], convolutions
        elif layer == "fc" and not inside:
            kind, number = "fc", 0
        else:
            return None
        ours = {"conv": "Conv", "bn": "BatchNorm", "fc": "Dense"}[kind]
        return _layer((*inside, f"{ours}_{number}"), leaf, ndim)

    return translate


_VIT_ARRAYS = {"cls_token": "class_token", "pos_embed": "positions"}
_VIT_LAYERS = {
    "patch_embed.proj": ("Conv_0",),
    "norm": ("LayerNorm_0",),
    "head": ("Dense_0",),
}
_VIT_BLOCK = {
    "norm1": ("LayerNorm_0",),
    "attn.qkv": ("Attention_0", "Dense_0"),
    "attn.proj": ("Attention_0", "Dense_1"),
    "norm2": ("LayerNorm_1",),
    "mlp.fc1": ("Dense_0",),
    "mlp.fc2": ("Dense_1",),
}


def _vit(name: str, ndim: int) -> _Name | None:
    """Translates the names of timm's VisionTransformer."""
    if name in _VIT_ARRAYS:
        return "params", _VIT_ARRAYS[name]
    layer, _, leaf = name.rpartition(".")
    if match := re.match(r"blocks\.(\d+)\.", layer):
        inside = _VIT_BLOCK.get(layer[match.end() :])
        return None if inside is None else _layer((f"Block_{match[1]}", *inside), leaf, ndim)
    return _layer(_VIT_LAYERS[layer], leaf, ndim) if layer in _VIT_LAYERS else None


def _layer(path: _Name, leaf: str, ndim: int) -> _Name | None:
    if leaf not in _LEAVES:
        return None
    collection, ours = _LEAVES[leaf]
    return collection, *path, "kernel" if ndim > 1 else ours


def _layout(name: str, array: np.ndarray) -> np.ndarray:
    if name == "cls_token":  # [1, 1, width]
        return array.reshape(-1)
    if name == "pos_embed":  # [1, tokens, width]
        return array[0]
    if array.ndim == 4:  # [outputs, inputs, height, width]
        return array.transpose(2, 3, 1, 0)
    return array.T  # a dense layer's [outputs, inputs], or a vector


def _differences(found: Mapping[_Name, Any], wanted: Mapping[_Name, Any]) -> list[str]:
    differences = []
    for name in sorted({*found, *wanted}):
        title = "/".join(name)
        if name not in found:
            differences.append(f"{title} is missing")
        elif name not in wanted:
            differences.append(f"{title} is none of the model's")
        elif found[name].shape != wanted[name].shape:
            differences.append(f"{title} is {list(found[name].shape)}, not {list(wanted[name].shape)}")
    return differences
