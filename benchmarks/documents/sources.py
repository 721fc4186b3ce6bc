"""The records in docs/results, as the rows of the benchmarks that wrote them. Each is read once."""

import functools
import json

from benchmarks import dry_run
from benchmarks.common.environment import ROOT
from benchmarks.fidelity import results as fidelity
from benchmarks.kernels import results as kernels
from benchmarks.open_issues import results as open_issues
from benchmarks.train_step import results as train_step

RESULTS = ROOT / "docs" / "results"


@functools.cache
def record(name: str) -> dict:
    """The whole file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


@functools.cache
def step_rows(mode: str, *files: str) -> dict[str, dict[str, train_step.Row]]:
    """By network and contender, in a mode. Where files share a network, the first one counts."""
    found: dict[str, dict[str, train_step.Row]] = {}
    for file in files:
        rows = [train_step.Row(**row) for row in record(file)["rows"]]
        for (network, how, _, _), contenders in train_step.cases(rows).items():
            if how == mode:
                found.setdefault(network, contenders)
    return found


def training() -> dict[str, dict[str, train_step.Row]]:
    """Training steps of the six networks."""
    return step_rows("train", "train_step", "sequences")


def inference() -> dict[str, dict[str, train_step.Row]]:
    """Forward passes of the six networks."""
    return step_rows("inference", "inference")


def frozen_inference() -> dict[str, dict[str, train_step.Row]]:
    """Forward passes with frozen weights, beside those with float32 ones."""
    return step_rows("inference", "inference_frozen")


@functools.cache
def fidelity_rows() -> list[fidelity.Row]:
    """With exponents of blocks: random tensors, ResNet-50 and the LSTM, then VGG-16 and ViT-S/16."""
    files = ("fidelity_blocks", "fidelity_blocks_batch2")
    return [fidelity.Row(**row) for file in files for row in record(file)["rows"]]


@functools.cache
def kernel_rows(file: str) -> list[kernels.Row]:
    return [kernels.Row(**row) for row in record(file)["rows"]]


@functools.cache
def report_rows() -> list[open_issues.Row]:
    return [open_issues.Row(**row) for row in record("open_issues")["rows"]]


@functools.cache
def dry_run_rows() -> list[dry_run.Row]:
    return [dry_run.Row(**row) for row in record("dry_run")["rows"]]


def machine(name: str) -> str:
    """What a record was measured on, such as `2 cores of an AMD EPYC`."""
    found = record(name)
    machine = found.get("machine") or f"{found['cores']} cores of {found['cpu']}"
    return machine.replace("(R)", "")
