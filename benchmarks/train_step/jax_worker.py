"""JAX's side of `benchmarks.train_step`: a process that takes steps of one network in one precision."""

import contextlib
import math

import jax

import dfpjax
from benchmarks.common.bfloat16 import COMPILER_OPTIONS
from benchmarks.train_step import breakdown, roofline
from benchmarks.train_step.networks import (
    NETWORKS,
    infer,
    initial_state,
    random_batch,
    with_frozen_weights,
)
from benchmarks.train_step.service import serve
from dfpjax.training.state import train_step


def prepare(wanted: dict):
    """Compile the step of `wanted["network"]` for `service.serve`."""
    network = NETWORKS[wanted["network"]]
    inputs, labels = random_batch(network, wanted["batch"])
    state = initial_state(network, wanted["precision"], inputs)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    inputs, labels = jax.device_put((inputs, labels))
    if wanted["frozen"]:
        state = with_frozen_weights(network, state, wanted["precision"], inputs)

    if wanted["mode"] == "train":
        lowered = train_step.lower(state, inputs, labels, label_smoothing=0.0)
    else:
        lowered = infer.lower(state, inputs)
    compiled = lowered.compile(COMPILER_OPTIONS if wanted["precision"] == "bfloat16" else None)

    def train():
        nonlocal state
        state, metrics = compiled(state, inputs, labels)
        loss = float(metrics["loss"])  # waits; the rest of the step may still be running
        jax.block_until_ready(state)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")

    def inference():
        jax.block_until_ready(compiled(state, inputs))

    step = train if wanted["mode"] == "train" else inference
    facts = {"version": jax.__version__, "isa": dfpjax.runtime_info().isa, "parameters": parameters}
    measurements = {
        "macs": lambda: macs(network, wanted["mode"], state, inputs, labels),
        "breakdown": lambda: {**breakdown.measure(compiled, step), **roofline.measure()},
    }
    return facts, step, measurements


def macs(network, mode: str, state, inputs, labels) -> dict:
    """Multiply-accumulates of a step, and how many of them the default policy brings to DFP16."""
    plain = state.replace(apply_fn=network.model().apply)
    if mode == "train":
        report = dfpjax.explain(lambda *batch: train_step(*batch, label_smoothing=0.0), plain, inputs, labels)
    else:
        report = dfpjax.explain(infer, plain, inputs)
    return {"macs": sum(op.macs for op in report.ops), "coverage": report.coverage}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(prepare)
