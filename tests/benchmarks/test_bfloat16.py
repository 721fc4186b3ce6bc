"""The bfloat16 of JAX that the benchmarks measure: it computes what it should, in bfloat16."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from benchmarks.common.bfloat16 import COMPILER_OPTIONS
from benchmarks.train_step.networks import Network, initial_state
from dfpjax.training.models import CharLSTM, DigitsResNet, DigitsViT

NETWORKS = {
    "resnet": functools.partial(DigitsResNet, classes=10),
    "vit": functools.partial(DigitsViT, classes=10, depth=1),
    "lstm": functools.partial(CharLSTM, characters=11, width=32),
}
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
