"""Measure how training scales on this machine, or write the page that predicts it for many machines.

    python -m benchmarks.scaling measure --out docs/results/scaling
    python -m benchmarks.scaling page --figures docs/results/scaling.json --out docs/scaling.md

`measure` takes about ten minutes on two cores and writes OUT.json. For your own cluster, measure on one of
its machines, and give `page` your network's speeds, latency and sizes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common.environment import CORES, ROOT, cpu_model
from benchmarks.common.records import write_record
from benchmarks.scaling.page import Assumptions, page
from dfpjax import _ranks

PROCESSES = (1, 2, 4)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure", help="time processes on this machine")
    command.set_defaults(run=_measure)
    command.add_argument("--config", default="configs/fake_imagenet.py", help="configuration file")
    command.add_argument("--model", help="another model than the configuration's")
    command.add_argument(
        "--images", default="4,8", help="images of a process; several processes take the last number"
    )
    command.add_argument("--numbers", default="16384,1048576,25557032", help="sizes of exchanged arrays")
    command.add_argument("--repeat", type=int, default=5, help="of which the median counts")
    command.add_argument("--out", type=Path, required=True, help="write OUT.json")
    command = commands.add_parser("page", help="fit the model and write the page")
    command.set_defaults(run=_page)
    command.add_argument("--figures", type=Path, required=True, help="what `measure` wrote")
    command.add_argument("--out", type=Path, required=True, help="the page, Markdown")
    default = Assumptions()
    command.add_argument("--gigabits", type=float, nargs="+", default=default.gigabits)
    command.add_argument("--latency", type=float, default=default.latency, help="of the network, seconds")
    command.add_argument("--efficiency", type=float, default=default.efficiency, help="of its line rate")
    command.add_argument("--machines", type=int, nargs="+", default=default.machines)
    command.add_argument(
        "--speed", type=float, default=default.speed, help="of a machine, × the measured one"
    )
    command.add_argument("--images", type=int, default=default.images, help="of a machine, weak scaling")
    command.add_argument("--batch", type=int, default=default.batch, help="of all machines, strong scaling")
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


def _measure(arguments: argparse.Namespace) -> None:
    record = {"machine": f"{CORES} cores of {cpu_model()}", "date": time.strftime("%Y-%m-%d")}
    record |= {"model": arguments.model or "resnet50", "cores": CORES, "steps": [], "reductions": []}
    for processes in PROCESSES:
        found = _run(processes, arguments)
        record["steps"] += found["steps"]
        record["reductions"] += found["reductions"]
        write_record(arguments.out, record)
        print(f"{processes} processes measured", flush=True)


def _run(processes: int, arguments: argparse.Namespace) -> dict:
    """What the first of so many processes measures. They share the cores in turn, one each.

    One process alone would have the memory's whole bandwidth. So all cores compute then, each for itself.
    """
    cores = sorted(os.sched_getaffinity(0))
    groups = [[cores[rank % len(cores)]] for rank in range(processes)]
    images = arguments.images if processes == 1 else arguments.images.split(",")[-1]
    options = [f"--images={images}", f"--config={arguments.config}", f"--numbers={arguments.numbers}"]
    options.append(f"--repeat={arguments.repeat}")
    if arguments.model:
        options.append(f"--model={arguments.model}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.scaling.worker", *options, f"--out={folder}/found.json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        others = [
            subprocess.Popen(
                ["taskset", "-c", str(core), *command[:-1], f"--out={folder}/{core}.json"], env=environment
            )
            for core in (cores[1:] if processes == 1 else [])
        ]
        status = _ranks.run(command, environment, groups)
        for other in others:
            other.terminate()
            other.wait()
        if status:
            sys.exit(f"benchmarks.scaling: {processes} processes ended with status {status}")
        return json.loads((Path(folder) / "found.json").read_text())


def _page(arguments: argparse.Namespace) -> None:
    names = vars(Assumptions())
    values = {name: value for name, value in vars(arguments).items() if name in names}
    assumptions = Assumptions(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )
    arguments.out.write_text(page(json.loads(arguments.figures.read_text()), assumptions))


if __name__ == "__main__":
    main()
