"""Networks with weights from PyTorch: its own logits, ours after `from_torch`, and a training step."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.torch_process import TorchProcess
from benchmarks.frameworks.models import Step, Transform, cross_entropy
from benchmarks.frameworks.results import tree_error
from dfpjax.training.models import MODELS
from dfpjax.training.models.from_torch import from_torch

NAMES = {"resnet50": "resnet50", "vit_small_patch16_224": "vit_s16"}
"""timm's name of each network, and ours."""

CLASSES, IMAGES = 1000, 2


def load(python: str) -> dict[str, tuple[Step, float]]:
    """The training step of each network, and how far our float32 logits are from PyTorch's.

    Arguments:
        python: an interpreter that has PyTorch and timm, which give the weights random values.
    """
    from safetensors.numpy import load_file

    torch = TorchProcess(python, "benchmarks.frameworks.torch_models")
    images = np.random.default_rng(0).standard_normal((IMAGES, 224, 224, 3), np.float32)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for theirs, ours in NAMES.items():
            files = {name: str(Path(folder, name)) for name in ("images.npy", "weights", "logits.npy")}
            np.save(files["images.npy"], images)
            torch.ask(
                model=theirs, images=files["images.npy"], weights=files["weights"], logits=files["logits.npy"]
            )
            model = MODELS[ours](classes=CLASSES, dtype=jnp.float32)
            start = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), images, train=False))
            variables = from_torch(load_file(files["weights"]), start)
            logits = jax.jit(lambda v, x, m=model: m.apply(v, x, train=False))(variables, images)
            found[f"timm's {theirs}, by from_torch"] = (
                _step(model, variables, images),
                tree_error(logits, np.load(files["logits.npy"])),
            )
    torch.close()
    return found


def _step(model, variables, images) -> Step:
    """One of fine-tuning: with the running statistics of batch norm."""
    rest = {name: value for name, value in variables.items() if name != "params"}

    def step(transform: Transform):
        apply = transform(model.apply)

        def loss_fn(params):
            logits = apply({"params": params, **rest}, images, train=False)
            return cross_entropy(logits, jnp.arange(IMAGES)), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(variables["params"])
        return logits, gradients

    return step
