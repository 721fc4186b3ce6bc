"""The sweep of shapes that calibrates the cost rule."""

from benchmarks.common.shapes import Conv, Dot


def dots() -> list[Dot]:
    """Square products, skinny ones, an LSTM's gates, and attention."""
    sizes = (64, 512, 4096)
    return [
        *(Dot(m=size, k=size, n=size) for size in (8, 16, 32, 48, 64, 96, 128, 192, 256, 512, 1024)),
        *(Dot(m=m, k=k, n=n) for m in (1, 2, 4, 8, 16, 32, 64) for k in sizes for n in sizes),
        *(Dot(m=m, k=2 * hidden, n=4 * hidden) for m in (16, 64) for hidden in (128, 512)),
        *(Dot(batch=heads, m=m, k=64, n=m) for heads in (1, 12, 96) for m in (16, 64, 197)),
        *(Dot(batch=heads, m=m, k=m, n=64) for heads in (12, 96) for m in (16, 64, 197)),
        *(Dot(batch=96, m=1, k=k, n=n) for k, n in ((64, 256), (256, 64))),  # decoding: one query
    ]


def convolutions() -> list[Conv]:
    """Of a few pixels up to a few hundred MMAC: 3×3, 1×1, depthwise and grouped, and first layers."""
    return [
        *(Conv(1, c, c, 3, image) for c in (1, 2, 4, 8, 16, 32, 64) for image in (4, 8, 16)),
        *(Conv(1, c, c, 1, image) for c in (4, 16, 64, 256) for image in (4, 14)),
        *(Conv(batch, c, c, 3, image) for batch in (8, 64) for c, image in ((32, 8), (64, 4), (128, 2))),
        *(Conv(64, c, 2 * c, kernel, image, 2) for kernel in (1, 3) for c, image in ((32, 8), (64, 4))),
        *(Conv(batch, c, c, 3, 14, groups=c) for batch in (1, 16) for c in (4, 32, 256)),
        *(Conv(batch, c, c, 3, 28, groups=c) for batch in (1, 16) for c in (16, 64)),
        *(Conv(16, 64, 64, kernel, 14, groups=groups) for kernel in (1, 3) for groups in (2, 8)),
        *(Conv(1, c, c, 3, 14, groups=32) for c in (64, 128, 256)),
        *(Conv(16, 1, 16, 3, image) for image in (8, 28)),
        *(Conv(batch, 3, 32, 3, 32) for batch in (1, 16)),
        Conv(1, 3, 64, 7, 112, 2),
        *(Conv(8, c, c, kernel, image) for kernel in (1, 3) for c, image in ((64, 28), (256, 14))),
    ]


def takes_images(case) -> bool:
    """Whether it is a first layer, whose input needs no gradient."""
    return isinstance(case, Conv) and case.channels in (1, 3)


def kind(case) -> str:
    """The cost rule's name for a kind of operation, each of which has its own thresholds."""
    if isinstance(case, Dot):
        return "batched dot product" if case.batch > 1 else "dot product"
    return "grouped convolution" if case.groups > 1 else "convolution"
