"""Train the digits network in float32 and in DFP16 and compare the results.

    python -m benchmarks.digits --seeds 0,1,2

Runs train.py with configs/digits.py once for each precision, every seed in turn, and prints a Markdown
table of the test accuracies and the largest difference of their means.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common.environment import ROOT

PRECISIONS = ("float32", "dfp16")


def train(precision: str, seeds: str) -> list[dict]:
    """The metrics of every seed's last epoch."""
    with tempfile.TemporaryDirectory() as workdir:
        settings = [f"--config.precision={precision}", f"--config.seed={seeds},", f"--workdir={workdir}"]
        subprocess.run(
            [sys.executable, "train.py", "--config=configs/digits.py", *settings], cwd=ROOT, check=True
        )
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
    arguments = parser.parse_args(argv)
    results = {precision: train(precision, arguments.seeds) for precision in PRECISIONS}
    seeds = [metrics["seed"] for metrics in results["float32"]]
    print("| precision |", " | ".join(f"seed {seed}" for seed in seeds), "| mean | test loss | images/s |")
    print("| --- |", " | ".join("---:" for _ in seeds), "| ---: | ---: | ---: |")
    means = {}
    for precision, rows in results.items():
        accuracies = [row["test_accuracy"] for row in rows]
        means[precision] = statistics.mean(accuracies)
        loss = statistics.mean(row["test_loss"] for row in rows)
        speed = statistics.median(row["images_per_second"] for row in rows)
        cells = [*(f"{a:.2%}" for a in accuracies), f"{means[precision]:.2%}", f"{loss:.4f}", f"{speed:.0f}"]
        print(f"| {precision} |", " | ".join(cells), "|")
    print(f"\ndifference of the means: {100 * abs(means['float32'] - means['dfp16']):.2f} points")


if __name__ == "__main__":
    main()
