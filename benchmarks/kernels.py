"""Time the INT16 kernels against XLA's and oneDNN's float32 ones, and against the machine's peak.

    python -m benchmarks.kernels --suite resnet50 --out results/kernels

For each shape and each of fprop, dgrad and wgrad: the DFP16 kernel alone (packing and certification
included), the same with the quantization of both operands, XLA in float32, and PyTorch (oneDNN) in float32
where an interpreter that has it is found: this one, or the one named by --torch-python. Prints a table; --out
writes JSON and a bar chart beside it. All contenders have the same allocator settings (--allocator).
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import shapes
from benchmarks.environment import use_allocator
from benchmarks.timing import best_seconds
from dfpjax import _native
from dfpjax.numbers import Quantizer
from dfpjax.numbers.quantize import quantize_array
from dfpjax.operations import conv_general_dilated, dot_general
from dfpjax.operations.primitives import contract_p

PASSES = ("fprop", "dgrad", "wgrad")
KERNEL, QUANTIZED, XLA, ONEDNN = "dfp16 kernel", "dfp16 + quantize", "XLA f32", "oneDNN f32"


@dataclass(frozen=True)
class Row:
    """One shape and pass: MACs, seconds per call of each contender, and the peak in GMAC/s."""

    suite: str
    name: str
    which: str
    macs: int
    seconds: dict[str, float]
    peak: float
    """The peak, measured in turn with the contenders: the machine's speed drifts."""

    def rate(self, contender: str) -> float:
        """GMAC/s, or NaN where the contender is missing."""
        return self.macs / self.seconds[contender] / 1e9 if contender in self.seconds else math.nan


def operations(case):
    """Our operation and JAX's, as functions of (lhs, rhs)."""
    if isinstance(case, shapes.Conv):
        parameters = {
            "window_strides": (case.stride,) * 2,
            "padding": ((case.padding,) * 2,) * 2,
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
            "feature_group_count": case.groups,
        }
        functions = conv_general_dilated, jax.lax.conv_general_dilated
    else:
        axis = len(case.lhs) - 1
        batch = tuple(range(axis - 1))
        parameters = {"dimension_numbers": (((axis,), (axis - 1,)), (batch, batch))}
        functions = dot_general, jax.lax.dot_general
    return [functools.partial(f, **parameters) for f in functions]


def contractions(operation, lhs, rhs):
    """Shapes and contraction of each pass, as the library's own differentiation produces them."""
    found = {}
    for which, argument in (("dgrad", 0), ("wgrad", 1)):
        gradient = jax.grad(lambda x, w: jnp.sum(operation(x, w) ** 2), argument)
        for equation in jax.make_jaxpr(gradient)(lhs, rhs).eqns:
            shapes_of = [v.aval.shape for v in equation.invars if v.aval.dtype != jnp.int32]
            if equation.primitive.name == "dfp_contract":
                found["fprop"] = (*shapes_of, equation.params)
            elif equation.primitive.name == "dfp_contract_linear":
                found[which] = (*shapes_of, equation.params)
    return found


def ours(lhs, rhs, params):
    """The kernel alone, and the kernel with quantization of both operands, on normally distributed data."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in (lhs, rhs))
    kernel = jax.jit(lambda *quantized: contract_p.bind(*quantized, **params))
    quantize = functools.partial(quantize_array, quantizer=Quantizer())
    whole = jax.jit(lambda x, y: contract_p.bind(*quantize(x), *quantize(y), **params))
    quantized = (*jax.jit(quantize)(x), *jax.jit(quantize)(y))
    return {
        KERNEL: lambda: kernel(*quantized).block_until_ready(),
        QUANTIZED: lambda: whole(x, y).block_until_ready(),
    }


def xla(operation, case):
    rng = np.random.default_rng(0)
    x, w, dy = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in (case.lhs, case.rhs, case.out))
    functions = {
        "fprop": (jax.jit(operation), x, w),
        "dgrad": (jax.jit(lambda dy, w: jax.linear_transpose(lambda x: operation(x, w), x)(dy)[0]), dy, w),
        "wgrad": (jax.jit(lambda dy, x: jax.linear_transpose(lambda w: operation(x, w), w)(dy)[0]), dy, x),
    }
    return {
        which: lambda f=f, a=a, b=b: f(a, b).block_until_ready() for which, (f, a, b) in functions.items()
    }


class Torch:
    """A PyTorch process that times one case at a time."""

    def __init__(self, python: str):
        worker = Path(__file__).with_name("peer_torch.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([python, str(worker)], **pipes)

    def seconds(self, case, **how) -> dict[str, float]:
        request = {"lhs": case.lhs, "rhs": case.rhs, **how}
        if isinstance(case, shapes.Conv):
            request.update(stride=case.stride, padding=case.padding, groups=case.groups)
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the PyTorch process ended; its message stands above")
        return json.loads(answer)


def find_torch(python: str | None) -> Torch | None:
    python = python or sys.executable
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode:
        return None
    return Torch(python)


def measure(suite: str, cases, torch: Torch | None, *, budget: float, rounds: int, progress) -> list[Row]:
    rows = []
    for case in cases:
        progress(f"{suite}: {case.name}")
        operation, peer = operations(case)
        theirs = xla(peer, case)
        found = contractions(operation, jnp.zeros(case.lhs), jnp.zeros(case.rhs))
        onednn = torch.seconds(case, budget=budget, rounds=rounds, threads=os.cpu_count()) if torch else {}
        for which in PASSES:
            contenders = {**ours(*found[which]), XLA: theirs[which]}
            seconds = best_seconds(contenders, budget=budget, rounds=rounds)
            if which in onednn:
                seconds[ONEDNN] = onednn[which]
            peak = _native.measure_peak(os.cpu_count())["int16_dot"]
            rows.append(Row(suite, case.name, which, case.macs, seconds, peak))
    return rows


def geometric_mean(values) -> float:
    values = [v for v in values if not math.isnan(v)]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def table(rows: list[Row], peak: float) -> Table:
    """Rates in GMAC/s, the kernel's share of the peak, and its speed as a multiple of the peers'."""
    result = Table(title=f"GMAC/s; peak of the int16 dot instruction on all cores: {peak:.0f}")
    columns = ("shape", "pass", KERNEL, "of peak", QUANTIZED, XLA, "× XLA", ONEDNN, "× oneDNN")
    for column in columns:
        result.add_column(column, justify="left" if column in ("shape", "pass") else "right")

    def cells(rates: dict[str, float]) -> list[str]:
        kernel, quantized, xla_rate, onednn = (rates[c] for c in (KERNEL, QUANTIZED, XLA, ONEDNN))
        peer = [f"{onednn:.0f}", f"{kernel / onednn:.2f}"] if not math.isnan(onednn) else ["", ""]
        return [f"{kernel:.0f}", f"{kernel / peak:.2f}", f"{quantized:.0f}", f"{xla_rate:.0f}",
                f"{kernel / xla_rate:.2f}", *peer]  # fmt: skip

    contenders = (KERNEL, QUANTIZED, XLA, ONEDNN)
    for row in rows:
        result.add_row(row.name, row.which, *cells({c: row.rate(c) for c in contenders}))
    for suite in dict.fromkeys(row.suite for row in rows):
        for which in PASSES:
            chosen = [row for row in rows if (row.suite, row.which) == (suite, which)]
            means = {c: geometric_mean(row.rate(c) for row in chosen) for c in contenders}
            result.add_row(f"{suite}: geometric mean", which, *cells(means), style="bold")
    return result


def plot(rows: list[Row], peak: float, path: Path) -> None:
    """Bar chart of every contender's rate against the peak, a panel for each pass."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(f"{row.name}" for row in rows))
    figure, axes = plt.subplots(len(PASSES), 1, figsize=(max(8, 0.5 * len(names)), 10), sharex=True)
    contenders = [c for c in (KERNEL, QUANTIZED, XLA, ONEDNN) if any(c in row.seconds for row in rows)]
    width = 0.8 / len(contenders)
    for axis, which in zip(axes, PASSES, strict=True):
        chosen = [row for row in rows if row.which == which]
        for position, contender in enumerate(contenders):
            offsets = [i + width * position for i in range(len(chosen))]
            axis.bar(offsets, [row.rate(contender) for row in chosen], width, label=contender)
        axis.axhline(peak, color="black", linestyle="--", label="peak (int16 dot)")
        axis.set_ylabel(f"{which}, GMAC/s")
    axes[0].legend(ncols=len(contenders) + 1, fontsize="small")
    axes[-1].set_xticks([i + 0.4 for i in range(len(names))], names, rotation=60, ha="right")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )


def main(argv=None) -> list[Row]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", action="append", choices=[*shapes.SUITES, "dots"], help="may be repeated")
    parser.add_argument("--only", help="only shapes whose name contains this")
    parser.add_argument("--batch", type=int, help="batch size of convolutions (default: the suite's)")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each contender and pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch, for the oneDNN column")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.png")
    help_text = "huge: glibc keeps memory and uses huge pages; default: as the environment says"
    parser.add_argument("--allocator", choices=("huge", "default"), default="huge", help=help_text)
    arguments = parser.parse_args(argv)
    use_allocator(arguments.allocator, "benchmarks.kernels")

    console = Console(width=None if sys.stdout.isatty() else 140)
    threads = os.cpu_count()
    console.print(f"{cpu_model()}, {threads} cores, allocator settings: {arguments.allocator}")
    torch = find_torch(arguments.torch_python)
    if torch is None:
        console.print("oneDNN is left out: no PyTorch here (name an interpreter that has it: --torch-python)")
    rows = []
    for suite in arguments.suite or ["resnet50"]:
        if suite == "dots":
            cases = shapes.dots()
        else:
            cases = shapes.SUITES[suite](**({"batch": arguments.batch} if arguments.batch else {}))
        cases = [case for case in cases if not arguments.only or arguments.only in case.name]
        how = {"budget": arguments.budget, "rounds": arguments.rounds}
        rows += measure(suite, cases, torch, **how, progress=lambda text: console.print(text, style="dim"))
    if not rows:
        parser.error(f"no shape's name contains {arguments.only!r}")
    peak = max(row.peak for row in rows)
    console.print(table(rows, peak))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "cores": threads,
            "cpu": cpu_model(),
            "allocator": arguments.allocator,
            "peak": peak,
            "rows": [vars(row) for row in rows],
        }
        arguments.out.with_suffix(".json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        plot(rows, peak, arguments.out.with_suffix(".png"))
    return rows


if __name__ == "__main__":
    main()
