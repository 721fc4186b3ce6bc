"""PyTorch's twins of the networks in `dfpjax.training.models`, for `benchmarks.train_step`.

The same layers with the same numbers of parameters. Images are NCHW in shape and channels-last in memory, the
layout in which oneDNN is at its best. Nothing here needs JAX.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs: int, outputs: int, size: int, stride: int = 1, **options) -> nn.Conv2d:
    options = {"padding": size // 2, **options}
    return nn.Conv2d(inputs, outputs, size, stride, **options)


class LocalResponseNorm(nn.Module):
    """As `dfpjax.training.models.normalization`, in a form that is faster here than PyTorch's own module."""

    def forward(self, x):
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
        channels = x.shape[1]
        total = sum(squares[:, start : start + channels] for start in range(5))
        return x * (2.0 + 1e-4 * total) ** -0.75


class Flatten(nn.Module):
    """In memory order, so that nothing is copied."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        plain = functools.partial(conv, bias=False)
        self.body = nn.Sequential(
            plain(inputs, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            plain(channels, channels, 3, stride), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            plain(channels, 4 * channels, 1), nn.BatchNorm2d(4 * channels),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if inputs != 4 * channels:
            self.shortcut = nn.Sequential(
                plain(inputs, 4 * channels, 1, stride), nn.BatchNorm2d(4 * channels)
            )

    def forward(self, x):
        return F.relu_(self.body(x) + self.shortcut(x))


def resnet50(classes: int) -> nn.Module:
    layers = [conv(3, 64, 7, 2, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, 64 * 2**stage, 2 if stage and not block else 1))
            inputs = 4 * 64 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def vgg16(classes: int) -> nn.Module:
    layers, inputs = [], 3
    for stage, convolutions in enumerate((2, 2, 3, 3, 3)):
        for _ in range(convolutions):
            layers += [conv(inputs, 64 * min(2**stage, 8), 3), nn.ReLU(inplace=True)]
            inputs = 64 * min(2**stage, 8)
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers, Flatten(), *dense_layers(512 * 7 * 7, classes))


def alexnet(classes: int) -> nn.Module:
    relu, pool = functools.partial(nn.ReLU, inplace=True), functools.partial(nn.MaxPool2d, 3, 2)
    return nn.Sequential(
        conv(3, 96, 11, 4, padding=2), relu(), LocalResponseNorm(), pool(),
        conv(96, 256, 5, groups=2), relu(), LocalResponseNorm(), pool(),
        conv(256, 384, 3), relu(),
        conv(384, 384, 3, groups=2), relu(),
        conv(384, 256, 3, groups=2), relu(), pool(),
        Flatten(), *dense_layers(256 * 6 * 6, classes),
    )  # fmt: skip


def dense_layers(inputs: int, classes: int, features: int = 4096) -> list[nn.Module]:
    """Those that AlexNet and VGG end with."""
    return [
        nn.Linear(inputs, features), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(features, features), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(features, classes),
    ]  # fmt: skip


class Inception(nn.Module):
    def __init__(self, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int):
        super().__init__()
        relu = functools.partial(nn.ReLU, inplace=True)
        self.branches = nn.ModuleList(
            [
                nn.Sequential(conv(inputs, one, 1), relu()),
                nn.Sequential(conv(inputs, reduce3, 1), relu(), conv(reduce3, three, 3), relu()),
                nn.Sequential(conv(inputs, reduce5, 1), relu(), conv(reduce5, five, 5), relu()),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, pool, 1), relu()),
            ]
        )
        self.outputs = one + three + five + pool

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNet(nn.Module):
    """Returns the logits, and in training those of both auxiliary heads too."""

    def __init__(self, classes: int):
        super().__init__()
        # SAME padding of 224, 112 … pixels: one more pixel at the end alone.
        pool = functools.partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
        relu = functools.partial(nn.ReLU, inplace=True)
        stem = nn.Sequential(
            conv(3, 64, 7, 2), relu(), pool(), LocalResponseNorm(),
            conv(64, 64, 1), relu(), conv(64, 192, 3), relu(), LocalResponseNorm(), pool(),
        )  # fmt: skip
        first = [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)]
        second = [
            (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
            (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128),
        ]  # fmt: skip
        third = [(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)]
        modules, inputs = [], 192
        for branches in first + second + third:
            modules.append(Inception(inputs, *branches))
            inputs = modules[-1].outputs
        self.parts = nn.ModuleList(
            [
                nn.Sequential(stem, *modules[:2], pool(), modules[2]),
                nn.Sequential(*modules[3:6]),
                nn.Sequential(modules[6], pool(), *modules[7:]),
            ]
        )
        self.heads = nn.ModuleList(self.auxiliary(width, classes) for width in (512, 528))
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(inputs, classes)
        )

    @staticmethod
    def auxiliary(inputs: int, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.AvgPool2d(5, 3), conv(inputs, 128, 1), nn.ReLU(inplace=True), Flatten(),
            nn.Linear(2048, 1024), nn.ReLU(inplace=True), nn.Dropout(0.7), nn.Linear(1024, classes),
        )  # fmt: skip

    def forward(self, x):
        early = self.parts[0](x)
        middle = self.parts[1](early)
        logits = self.classifier(self.parts[2](middle))
        if not self.training:
            return logits
        return logits, self.heads[0](early), self.heads[1](middle)


class Block(nn.Module):
    """Of the vision transformer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.project, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, tokens, width = x.shape
        projected = self.project(self.norms[0](x)).view(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        x = x + self.mix(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.dense(self.norms[1](x))


class ViT(nn.Module):
    """ViT-S/16 for 224×224 pixels."""

    def __init__(self, classes: int, width: int = 384, depth: int = 12, heads: int = 6):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(0.02 * torch.randn(197, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.classifier = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1).flatten(1, 2)
        token = self.token.to(x.dtype).expand(len(x), 1, -1)
        x = self.blocks(torch.cat([token, x], 1) + self.positions.to(x.dtype))
        return self.classifier(self.norm(x[:, 0]))


class CharLSTM(nn.Module):
    def __init__(self, characters: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.layer = nn.LSTM(width, width, batch_first=True)
        # PyTorch has a second bias that is added to the first; Flax has one.
        self.layer.bias_ih_l0.requires_grad_(False).zero_()
        self.dense = nn.Linear(width, characters)

    def forward(self, x):
        return self.dense(self.layer(self.embedding(x))[0])


MODELS = {
    "resnet50": resnet50,
    "vgg16": vgg16,
    "alexnet": alexnet,
    "googlenet": GoogLeNet,
    "vit": ViT,
}
