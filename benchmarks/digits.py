"""Train the digits network in float32 and in DFP16 and compare the results.

    python -m benchmarks.digits --seeds 0,1,2
    python -m benchmarks.digits --seeds 0,1,2,3,4 --devices 2

Runs train.py with configs/digits.py once for each precision, every seed in turn, and prints a Markdown
table of the test accuracies, and the differences of each seed's results, with the standard error of their
mean. With `--devices` it compares gradients that devices of one process exchange in float32 and in DFP16
instead; both compute in DFP16.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common.environment import ROOT

PRECISIONS = {"float32": ["--config.precision=float32"], "dfp16": ["--config.precision=dfp16"]}
GRADIENTS = {
    dtype: ["--config.precision=dfp16", f"--config.gradient_dtype={dtype}"] for dtype in ("float32", "dfp16")
}


def train(settings: list[str], seeds: str, devices: int) -> list[dict]:
    """The metrics of every seed's last epoch."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    with tempfile.TemporaryDirectory() as workdir:
        settings = [*settings, f"--config.seed={seeds},", f"--workdir={workdir}", f"--config.mesh={devices},"]
        command = [sys.executable, "train.py", "--config=configs/digits.py", *settings]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    last = {}
    for metrics in map(json.loads, lines):
        last[metrics["seed"]] = metrics
    return list(last.values())


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--devices", type=int, default=1, help="of which several exchange gradients")
    arguments = parser.parse_args(argv)
    title, runs = ("precision", PRECISIONS) if arguments.devices == 1 else ("gradients", GRADIENTS)
    results = {name: train(settings, arguments.seeds, arguments.devices) for name, settings in runs.items()}
    seeds = [metrics["seed"] for metrics in results["float32"]]
    print(f"| {title} |", " | ".join(f"seed {seed}" for seed in seeds), "| mean | test loss | images/s |")
    print("| --- |", " | ".join("---:" for _ in seeds), "| ---: | ---: | ---: |")
    for name, rows in results.items():
        accuracies = [row["test_accuracy"] for row in rows]
        loss = statistics.mean(row["test_loss"] for row in rows)
        speed = statistics.median(row["images_per_second"] for row in rows)
        mean = statistics.mean(accuracies)
        cells = [*(f"{a:.2%}" for a in accuracies), f"{mean:.2%}", f"{loss:.4f}", f"{speed:.0f}"]
        print(f"| {name} |", " | ".join(cells), "|")
    print("\ndfp16 − float32, mean over the seeds ± its standard error:")
    print(f"accuracy {difference(results, 'test_accuracy', 100)} points,", end=" ")
    print(f"test loss {difference(results, 'test_loss', 1)}")


def difference(results: dict[str, list[dict]], metric: str, scale: float) -> str:
    """The mean of the seeds' differences, and its standard error where there are several seeds."""
    pairs = zip(results["dfp16"], results["float32"], strict=True)
    differences = [scale * (mine[metric] - theirs[metric]) for mine, theirs in pairs]
    mean = f"{statistics.mean(differences):+.4f}"
    if len(differences) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(differences) / math.sqrt(len(differences)):.4f}"


if __name__ == "__main__":
    main()
