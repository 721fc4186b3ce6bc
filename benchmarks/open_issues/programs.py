"""The programs of open reports that JAX is slow on CPUs, in JAX.

Each is a function of float32 arrays. `benchmarks.open_issues.torch_worker` has the same ones in PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Shapes = tuple[tuple[int, ...], ...]


def convolution_in_a_loop(x, w):
    # jax#12868, "Convolution is significantly slower inside a loop body (CPU)": channels first, one tap.
    return lax.fori_loop(0, 2, lambda _, x: lax.conv(x, w, (1,), "VALID"), x)


def gradient_through_a_scan(x, w):
    # jax#12868, differentiated, and with the layout and the window of networks.
    def loss(w):
        def step(x, _):
            return jnp.tanh(_same(x, w, ("NHWC", "HWIO", "NHWC"))), None

        return jnp.sum(lax.scan(step, x, length=4)[0] ** 2)

    return jax.grad(loss)(w)


def depthwise_convolution(x, w, bias):
    # jax#23713 (flax#4207), "Depthwise convolution in `flax.nnx.Conv` is significantly slower than PyTorch
    # and TensorFlow".
    return _same(x, w, ("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]) + bias


def gradient_of_depthwise_convolutions(x, w):
    # jax#13800, "Slow conv_general_dilated backward pass for feature_group_count !=1": two layers of its
    # twelve. It was reported of a GPU.
    def loss(w):
        y = x
        for kernel in w:
            y = _same(y, kernel, ("NCW", "IOW", "NCW"), feature_group_count=x.shape[1])
        return jnp.sum(jnp.abs(y))

    return jax.grad(loss)(w)


def gradient_of_transposed_3d_convolution(x, w, bias):
    # jax#31662, "Performance Issue with ConvTranpose3D (32x slower than Torch)": Equinox's layer with
    # stride 2, padding 1 and output padding 1, in float32.
    def loss(w, bias):
        y = lax.conv_general_dilated(x, w, (1, 1, 1), [(1, 2)] * 3, lhs_dilation=(2, 2, 2))
        return jnp.mean(y + bias[:, None, None, None])

    return jax.grad(loss, (0, 1))(w, bias)


def transposed_1d_convolution(x, w):
    # jax#23783, "Slow transpose convolutions (both cpu and cuda backends)": of long windows, four times as
    # long as the stride. The sizes are ours.
    return lax.conv_transpose(x, w, (w.shape[0] // 4,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


def _same(x, w, dimension_numbers, **options):
    strides = (1,) * (x.ndim - 2)
    return lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=dimension_numbers, **options)


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is measured."""

    function: Callable
    report: str
    shapes: Shapes
    """Of its operands."""

    small: Shapes
    """Smaller ones, which show that it works."""

    @property
    def name(self) -> str:
        return self.function.__name__

    def operands(self, *, small: bool) -> list[np.ndarray]:
        """Normally distributed; a kernel's scale keeps the size of what it is applied to."""
        random = np.random.default_rng(0)
        arrays = [random.standard_normal(shape, np.float32) for shape in self._chosen(small)]
        return [arrays[0], *(array * np.float32(array.size**-0.5) for array in arrays[1:])]

    def _chosen(self, small: bool) -> Shapes:
        return self.small if small else self.shapes


PROGRAMS = (
    Program(
        function=convolution_in_a_loop,
        report="jax#12868",
        shapes=((1, 1000, 1024), (1000, 1000, 1)),
        small=((1, 32, 64), (32, 32, 1)),
    ),
    Program(
        function=gradient_through_a_scan,
        report="jax#12868",
        shapes=((8, 28, 28, 64), (3, 3, 64, 64)),
        small=((2, 8, 8, 16), (3, 3, 16, 16)),
    ),
    Program(
        function=depthwise_convolution,
        report="jax#23713",
        shapes=((1, 124, 124, 256), (3, 3, 1, 256), (256,)),
        small=((1, 8, 8, 16), (3, 3, 1, 16), (16,)),
    ),
    Program(
        function=gradient_of_depthwise_convolutions,
        report="jax#13800",
        shapes=((32, 512, 1024), (2, 1, 512, 5)),
        small=((2, 8, 32), (2, 1, 8, 5)),
    ),
    Program(
        function=gradient_of_transposed_3d_convolution,
        report="jax#31662",
        shapes=((1, 64, 64, 64, 32), (1, 64, 3, 3, 3), (1,)),
        small=((1, 4, 4, 6, 8), (1, 4, 3, 3, 3), (1,)),
    ),
    Program(
        function=transposed_1d_convolution,
        report="jax#23783",
        shapes=((1, 128, 512), (512, 512, 1)),
        small=((1, 8, 16), (16, 16, 2)),
    ),
)
