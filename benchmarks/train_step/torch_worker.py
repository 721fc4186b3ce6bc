"""PyTorch's side of `benchmarks.train_step`: a process that takes steps of one network in one precision.

PyTorch must not be a dependency of the library, so this file and what it imports need nothing of dfpjax or
JAX, and run under any interpreter that has torch.
"""

import contextlib
import math

import torch
import torch.nn.functional as F

from benchmarks.train_step.service import serve
from benchmarks.train_step.torch_models import MODELS, CharLSTM

# Of each auxiliary head's loss, as in `dfpjax.training.state`.
AUXILIARY_WEIGHT = 0.3


def prepare(wanted: dict):
    """Build `wanted["network"]` for `service.serve`."""
    torch.manual_seed(0)
    torch.set_num_threads(wanted["threads"])
    batch, classes = wanted["batch"], wanted["classes"]
    if wanted["network"] == "lstm":
        model = CharLSTM(wanted["characters"], wanted["width"])
        text = torch.randint(wanted["characters"], (batch, wanted["length"] + 1))
        inputs, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    else:
        model = MODELS[wanted["network"]](classes).to(memory_format=torch.channels_last)
        inputs = torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
        labels = torch.randint(classes, (batch,))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    facts = {"version": torch.__version__, "parameters": sum(parameter.numel() for parameter in trained)}
    run = torch.compile(model) if wanted["compile"] else model
    arithmetic = contextlib.nullcontext
    if wanted["precision"] == "bfloat16":
        arithmetic = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    kernels = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": 1e-4}, {"params": others}], lr=1e-4, momentum=0.9, fused=True
    )

    def train():
        optimizer.zero_grad()
        with arithmetic():
            results = run(inputs)
        logits, *auxiliary = results if isinstance(results, tuple) else (results,)
        loss = cross_entropy(logits, labels)
        for head in auxiliary:
            loss = loss + AUXILIARY_WEIGHT * cross_entropy(head, labels)
        loss.backward()
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")

    def inference():
        with torch.inference_mode(), arithmetic():
            run(inputs)

    model.train(wanted["mode"] == "train")
    return facts, train if wanted["mode"] == "train" else inference, {}


def cross_entropy(logits, labels):
    """The mean over all labels, in float32."""
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(prepare)
