"""The bfloat16 of JAX that the benchmarks measure: it computes what it should, in bfloat16."""

import functools
import re

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import oracle
import pytest

from benchmarks.common.bfloat16 import COMPILER_OPTIONS
from benchmarks.kernels.contenders import multiplies_bfloat16
from benchmarks.train_step.networks import Network, initial_state
from dfpjax.training.models import CharLSTM, DigitsResNet, DigitsViT

NETWORKS = {
    "resnet": functools.partial(DigitsResNet, classes=10),
    "vit": functools.partial(DigitsViT, classes=10, depth=1),
    "lstm": functools.partial(CharLSTM, characters=11, width=32),
}
JAXLIB = tuple(map(int, jaxlib.__version__.split(".")[:3]))
OPERATION = re.compile(r"stablehlo\.(dot_general|convolution)\b.* : \((.*)\) -> (.*)$", re.MULTILINE)


def batch(name: str):
    random = np.random.default_rng(0)
    if name == "lstm":
        text = random.integers(11, size=(4, 13), dtype=np.int32)
        return text[:, :-1], text[:, 1:]
    return random.standard_normal((8, 8, 8, 1), np.float32), random.integers(10, size=8, dtype=np.int32)


@functools.cache
def lowered(name: str, precision: str):
    """The loss and its gradients, and their arguments."""
    inputs, labels = batch(name)
    state = initial_state(Network(model=NETWORKS[name], batch=len(inputs)), precision, inputs)

    def loss(params, inputs, labels):
        logits, _ = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    arguments = state.params, inputs, labels
    return jax.jit(jax.value_and_grad(loss)).lower(*arguments), arguments


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_and_dot_product_is_bfloat16(name):
    types = [
        f"{operands}, {result}"
        for _, operands, result in OPERATION.findall(lowered(name, "bfloat16")[0].as_text())
    ]
    assert len(types) >= 6  # forward and backward
    assert {dtype for found in types for dtype in re.findall(r"x([a-z]+\d+)>", found)} == {"bf16"}


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradients_are_float32_s_within_the_error_of_bfloat16(name):
    losses, gradients = {}, {}
    for precision, options in (("float32", None), ("bfloat16", COMPILER_OPTIONS)):
        program, arguments = lowered(name, precision)
        losses[precision], found = program.compile(options)(*arguments)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
        gradients[precision] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])
    assert float(losses["bfloat16"]) == pytest.approx(float(losses["float32"]), rel=1e-2)
    assert 1e-3 < oracle.relative_error(gradients["bfloat16"], gradients["float32"]) < 1e-1


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
