"""The operations that the benchmarks time: convolutions of the paper's networks, and dot products."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Conv:
    """A square NHWC convolution with symmetric padding, by default as much as keeps the image's size."""

    batch: int
    channels: int
    features: int
    kernel: int
    image: int
    stride: int = 1
    groups: int = 1
    padding: int = -1
    rhs_channels = -2  # the kernel's axis of the input's channels

    def __post_init__(self):
        if self.padding < 0:
            object.__setattr__(self, "padding", self.kernel // 2)

    @property
    def name(self) -> str:
        stride = f" s{self.stride}" if self.stride > 1 else ""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        return f"{self.channels}→{self.features} k{self.kernel}{stride}{groups} {self.image}²"

    @property
    def lhs(self) -> tuple[int, ...]:
        return (self.batch, self.image, self.image, self.channels)

    @property
    def rhs(self) -> tuple[int, ...]:
        return (self.kernel, self.kernel, self.channels // self.groups, self.features)

    @property
    def out(self) -> tuple[int, ...]:
        size = (self.image + 2 * self.padding - self.kernel) // self.stride + 1
        return (self.batch, size, size, self.features)

    @property
    def macs(self) -> int:
        batch, height, width, features = self.out
        return batch * height * width * features * self.kernel**2 * self.channels // self.groups

    @property
    def suits_winograd(self) -> bool:
        """Whether all Winograd algorithms compute it and can gain: 3×3 taps without a stride, and channels
        enough for products to outweigh the transforms."""
        taps = (self.kernel, self.stride, self.groups)
        return taps == (3, 1, 1) and min(self.channels, self.features) >= 64


@dataclass(frozen=True, kw_only=True)
class Dot:
    """[batch, m, k] · [batch, k, n]; a batch of 1 is a plain matrix product."""

    m: int
    k: int
    n: int
    batch: int = 1
    role: str = "dot"
    """What it is in a network."""
    rhs_channels = -2  # rhs's axis that is summed over

    @property
    def name(self) -> str:
        batch = f"{self.batch}×" if self.batch > 1 else ""
        return f"{self.role} {batch}{self.m}×{self.k}×{self.n}"

    @property
    def lhs(self) -> tuple[int, ...]:
        return (self.batch, self.m, self.k) if self.batch > 1 else (self.m, self.k)

    @property
    def rhs(self) -> tuple[int, ...]:
        return (self.batch, self.k, self.n) if self.batch > 1 else (self.k, self.n)

    @property
    def out(self) -> tuple[int, ...]:
        return (self.batch, self.m, self.n) if self.batch > 1 else (self.m, self.n)

    @property
    def macs(self) -> int:
        return self.batch * self.m * self.k * self.n


@dataclass(frozen=True, kw_only=True)
class Einsum:
    """A dot product of any axes, with axes as a program has them.

    Raises:
        ValueError: if the result's axes are not in `jax.lax.dot_general`'s order: those of both operands,
            those of lhs alone, those of rhs alone.
    """

    equation: str
    """In `numpy.einsum`'s notation, such as ``nqhc,nkhc->nhqk``."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]

    def __post_init__(self):
        lhs, rhs, out = self.axes
        shared = [axis for axis in lhs if axis in rhs and axis in out]
        alone = [axis for axis in lhs if axis not in rhs] + [axis for axis in rhs if axis not in lhs]
        if out != "".join(sorted(shared, key=out.index) + alone):
            raise ValueError(f"Einsum: no dot product has its result's axes as {self.equation!r} says")

    @property
    def axes(self) -> tuple[str, str, str]:
        """The letters of lhs's axes, of rhs's and of the result's."""
        operands, out = self.equation.split("->")
        return (*operands.split(","), out)

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each letter's axis."""
        lhs, rhs, _ = self.axes
        return dict(zip(lhs, self.lhs, strict=True)) | dict(zip(rhs, self.rhs, strict=True))

    @property
    def contracted(self) -> list[str]:
        """The letters that are summed over."""
        return [axis for axis in self.sizes if axis not in self.axes[2]]

    @property
    def rhs_channels(self) -> int:
        """rhs's last axis that is summed over."""
        return max(map(self.axes[1].index, self.contracted))

    @property
    def name(self) -> str:
        return f"{self.equation.replace('->', '→')} {'×'.join(map(str, self.sizes.values()))}"

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(self.sizes[axis] for axis in self.axes[2])

    @property
    def macs(self) -> int:
        return math.prod(self.sizes.values())


def resnet50(batch: int = 32) -> list[Conv]:
    """The 23 distinct convolutions of ResNet-50 v1 (He et al., 2016; stride in the 3×3)."""
    shapes = [
        (3, 64, 7, 224, 2),
        (64, 64, 1, 56),
        (64, 64, 3, 56),
        (64, 256, 1, 56),
        (256, 64, 1, 56),
        (256, 128, 1, 56),
        (128, 128, 3, 56, 2),
        (128, 512, 1, 28),
        (256, 512, 1, 56, 2),
        (512, 128, 1, 28),
        (128, 128, 3, 28),
        (512, 256, 1, 28),
        (256, 256, 3, 28, 2),
        (256, 1024, 1, 14),
        (512, 1024, 1, 28, 2),
        (1024, 256, 1, 14),
        (256, 256, 3, 14),
        (1024, 512, 1, 14),
        (512, 512, 3, 14, 2),
        (512, 2048, 1, 7),
        (1024, 2048, 1, 14, 2),
        (2048, 512, 1, 7),
        (512, 512, 3, 7),
    ]
    return [Conv(batch, *shape) for shape in shapes]


def vgg16(batch: int = 8) -> list[Conv]:
    """The distinct convolutions of VGG-16 (Simonyan & Zisserman, 2015)."""
    shapes = [
        (3, 64, 3, 224),
        (64, 64, 3, 224),
        (64, 128, 3, 112),
        (128, 128, 3, 112),
        (128, 256, 3, 56),
        (256, 256, 3, 56),
        (256, 512, 3, 28),
        (512, 512, 3, 28),
        (512, 512, 3, 14),
    ]
    return [Conv(batch, *shape) for shape in shapes]


def winograd(batch: int | None = None) -> list[Conv]:
    """The convolutions of ResNet-50 and VGG-16 that Winograd algorithms suit, by default with the batch
    size that each network has here."""
    networks = [network(batch) if batch else network() for network in (resnet50, vgg16)]
    return [case for cases in networks for case in cases if case.suits_winograd]


def alexnet(batch: int = 64) -> list[Conv]:
    """AlexNet's convolutions, with its two groups (Krizhevsky et al., 2012)."""
    return [
        Conv(batch, 3, 96, 11, 227, stride=4, padding=0),
        Conv(batch, 96, 256, 5, 27, groups=2),
        Conv(batch, 256, 384, 3, 13),
        Conv(batch, 384, 384, 3, 13, groups=2),
        Conv(batch, 384, 256, 3, 13, groups=2),
    ]


def googlenet(batch: int = 32) -> list[Conv]:
    """The distinct convolutions of GoogLeNet, stem and nine modules (Szegedy et al., 2015, table 1)."""
    stem = [(3, 64, 7, 224, 2), (64, 64, 1, 56), (64, 192, 3, 56)]
    modules = [  # image, channels, then the columns of the table from "#1×1" to "pool proj"
        (28, 192, 64, 96, 128, 16, 32, 32),
        (28, 256, 128, 128, 192, 32, 96, 64),
        (14, 480, 192, 96, 208, 16, 48, 64),
        (14, 512, 160, 112, 224, 24, 64, 64),
        (14, 512, 128, 128, 256, 24, 64, 64),
        (14, 512, 112, 144, 288, 32, 64, 64),
        (14, 528, 256, 160, 320, 32, 128, 128),
        (7, 832, 256, 160, 320, 32, 128, 128),
        (7, 832, 384, 192, 384, 48, 128, 128),
    ]
    shapes = [Conv(batch, *shape) for shape in stem]
    for image, channels, one, reduce_3, three, reduce_5, five, pool in modules:
        shapes += [Conv(batch, channels, features, 1, image) for features in (one, reduce_3, reduce_5, pool)]
        shapes += [Conv(batch, reduce_3, three, 3, image), Conv(batch, reduce_5, five, 5, image)]
    return list(dict.fromkeys(shapes))


def depthwise(batch: int = 32) -> list[Conv]:
    """MobileNet's depthwise convolutions (Howard et al., 2017), but for the last, of 1024 channels at 7×7."""
    shapes = [
        (32, 112),
        (64, 112, 2),
        (128, 56),
        (128, 56, 2),
        (256, 28),
        (256, 28, 2),
        (512, 14),
        (512, 14, 2),
    ]
    return [
        Conv(batch, channels, channels, 3, image, *stride, groups=channels)
        for channels, image, *stride in shapes
    ]


def dots() -> list[Dot]:
    """Classifiers, square products, and those of LSTM cells and of transformers."""
    classifiers = {  # batch, features, classes or features of the next layer
        "ResNet-50": [(32, 2048, 1000)],
        "GoogLeNet": [(32, 1024, 1000)],
        "VGG-16": [(64, 25088, 4096), (64, 4096, 4096), (64, 4096, 1000)],
        "AlexNet": [(64, 9216, 4096)],  # the others are VGG-16's
    }
    return [
        *(Dot(m=m, k=k, n=n, role=role) for role, layers in classifiers.items() for m, k, n in layers),
        *(Dot(m=size, k=size, n=size) for size in (256, 512, 1024, 2048, 4096)),
        # Input and hidden state side by side, and the four gates.
        *(Dot(m=64, k=2 * size, n=4 * size, role="LSTM") for size in (512, 1024)),
        # Twelve heads of 64 features, eight examples: 197 tokens of a vision transformer, and 512.
        *(Dot(batch=96, m=tokens, k=64, n=tokens, role="scores") for tokens in (197, 512)),
        *(Dot(batch=96, m=tokens, k=tokens, n=64, role="values") for tokens in (197, 512)),
        *(Dot(m=8 * 197, k=k, n=n, role="MLP") for k, n in ((384, 1536), (1536, 384))),
    ]


SUITES = {
    "resnet50": resnet50,
    "vgg16": vgg16,
    "alexnet": alexnet,
    "googlenet": googlenet,
    "dots": dots,
    "depthwise": depthwise,
    "winograd": winograd,
}
"""Functions of a batch size that return convolutions; dots have batch sizes of their own."""

DISTINCT = [suite for suite in SUITES if suite != "winograd"]
"""Those that are not made of others."""


def choose(suites: list[str], only: str, batch: int | None) -> list[tuple[str, object]]:
    """The cases to measure, each with its suite."""
    chosen = []
    for suite in suites:
        with_batch = batch and suite != "dots"
        cases = SUITES[suite](batch) if with_batch else SUITES[suite]()
        chosen += [(suite, case) for case in cases if only in case.name]
    return chosen
