"""What computes the bfloat16 of JAX that the benchmarks measure. It depends on the release."""

import re

import jax
import jax.numpy as jnp
import jaxlib
import pytest

from benchmarks.common.bfloat16 import COMPILER_OPTIONS
from benchmarks.kernels.contenders import multiplies_bfloat16

JAXLIB = tuple(map(int, jaxlib.__version__.split(".")[:3]))


@pytest.mark.skipif(JAXLIB < (0, 11, 1), reason="computed in float32 before jaxlib 0.11.1")
@pytest.mark.skipif(not multiplies_bfloat16(), reason="the CPU does not multiply bfloat16")
@pytest.mark.jax_releases
def test_onednn_computes_convolutions_and_weight_gradients_in_bfloat16():
    shapes = (512, 256), (256, 128), (2, 8, 8, 16), (3, 3, 16, 16)
    x, w, images, kernel = (jnp.ones(shape, jnp.bfloat16) for shape in shapes)
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    def loss(w):
        return jnp.sum((x @ w).astype(jnp.float32) ** 2)

    for function, arguments, kind in (
        (convolve, (images, kernel), "convolution"),
        (jax.grad(loss), (w,), "matmul"),
    ):
        compiled = jax.jit(function, compiler_options=COMPILER_OPTIONS).lower(*arguments).compile()
        calls = re.findall(rf".*__onednn\${kind}.*", compiled.as_text())
        assert any("bf16[" in call for call in calls)
