"""Time whole steps of training, or of inference, against JAX's and PyTorch's own.

    python -m benchmarks.train_step --model resnet50 --torch-python …/bin/python --out results/resnet50

Each contender has a process of its own, all with the same allocator settings (--allocator) and all cores,
and they take turns: a few steps each, round after round. PyTorch's are the same networks, with the same
numbers of parameters, channels last; bfloat16 is its autocast. Each is measured eager and compiled; a second
table compares DFP16 with the faster of the two. PyTorch is looked for in this interpreter, or in the one
named by --torch-python, and left out with a message where it is missing. JAX's bfloat16 is at its best with
jaxlib 0.11.1 and later, see `benchmarks.common.bfloat16`. Data is random and lies in memory.

In inference DFP16 is measured twice: with float32 weights, and with weights that `dfpjax.freeze` brought to
DFP16 once.

For DFP16 a few more steps are profiled: a table has the time by class of operation, the bytes that each class
reads and writes, and what the machine would need at best.

Prints Markdown tables; --out writes OUT.json, OUT.md and a chart, OUT.png. Without --model the four networks
of the paper are measured one after the other, without --mode in training alone.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import jaxlib

from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, ROOT, cpu_model
from benchmarks.common.torch_process import has_torch
from benchmarks.train_step import results
from benchmarks.train_step.contenders import (
    ALLOCATORS,
    CONTENDERS,
    USUAL,
    Worker,
    start,
    without_folders,
)
from benchmarks.train_step.networks import MODES, NETWORKS
from benchmarks.train_step.results import Row

OURS = "jax-dfp16"
PAPER = ("resnet50", "vgg16", "alexnet", "googlenet")


def say(text: str) -> None:
    """Print progress at once."""
    print(text, file=sys.stderr, flush=True)


def take_turns(workers: dict[str, Worker], *, rounds: int, burst: int) -> dict[str, dict]:
    """The steps of each worker, and its peak memory."""
    taken = {name: {"steps": [], "peak_bytes": 0} for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            answer = worker.steps(burst)
            taken[name]["steps"] += answer["steps"]
            taken[name]["peak_bytes"] = answer["peak_bytes"]
    return taken


def measure(
    name: str, mode: str, allocator: str, contenders: list[str], arguments: argparse.Namespace
) -> tuple[list[Row], dict]:
    """The rows of one network, mode and allocator, and the versions of the frameworks."""
    network = NETWORKS[name]
    batch = arguments.batch or network.batch
    wanted = {"network": name, "batch": batch, "mode": mode}
    say(f"{name}, {mode}, batch {batch}, allocator {allocator}: preparing {', '.join(contenders)}")
    with start(contenders, wanted, allocator=allocator, torch_python=arguments.torch_python) as workers:
        say(f"measuring {arguments.rounds} times {arguments.burst} steps of each")
        taken = take_turns(workers, rounds=arguments.rounds, burst=arguments.burst)
        breakdown = workers[OURS].ask(do="breakdown") if OURS in workers else None
        say("measured")
        # Multiply-accumulates are the same in every precision.
        macs = next((w.ask(do="macs") for n, w in workers.items() if n.startswith("jax")), None)
        facts = {name: worker.facts for name, worker in workers.items()}
    if breakdown:
        breakdown["macs"] = macs["macs"] * macs["coverage"]
    rows = [
        Row(
            network=name,
            mode=mode,
            batch=batch,
            takes=network.takes,
            allocator=allocator,
            contender=CONTENDERS[contender].name,
            seconds=[step["seconds"] for step in taken[contender]["steps"]],
            peak_bytes=taken[contender]["peak_bytes"],
            start_peak_bytes=facts[contender]["start_peak_bytes"],
            parameters=facts[contender]["parameters"],
            macs=macs["macs"] if macs else 0,
            breakdown=breakdown if contender == OURS else None,
        )
        for contender in contenders
    ]
    return rows, {CONTENDERS[c].framework: facts[c]["version"] for c in contenders}


def show(rows: list[Row]) -> str:
    """Everything in Markdown."""
    breakdowns = [results.breakdown_table(row) for row in rows if row.breakdown]
    return "\n\n".join(filter(None, [results.table(rows), results.comparison(rows), *breakdowns]))


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=NETWORKS, help="may be repeated")
    parser.add_argument("--mode", action="append", choices=MODES, help="may be repeated")
    parser.add_argument("--batch", type=int, help="images or texts of a step (default: the network's)")
    parser.add_argument("--contenders", default=",".join(USUAL), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often the contenders take turns")
    parser.add_argument("--burst", type=int, default=3, help="steps of a turn")
    help_text = "tuned: what dfpjax.launch sets; default: nothing; both: one after the other"
    parser.add_argument("--allocator", choices=(*ALLOCATORS, "both"), default="tuned", help=help_text)
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.png")
    arguments = parser.parse_args(argv)
    for option in ("batch", "rounds", "burst"):
        if (value := getattr(arguments, option)) is not None and value < 1:
            parser.error(f"--{option} is {value}; it must be at least 1")
    arguments.contenders = arguments.contenders.split(",")
    if unknown := [name for name in arguments.contenders if name not in CONTENDERS]:
        parser.error(f"--contenders has {', '.join(unknown)}; it must be of {', '.join(CONTENDERS)}")
    prepare_output(parser, arguments.out, draws="chart")
    return arguments


def main(argv=None) -> list[Row]:
    arguments = parse(argv)
    began = time.perf_counter()
    contenders = arguments.contenders
    if any(name.startswith("torch") for name in contenders) and not has_torch(arguments.torch_python):
        say("PyTorch is left out: none here (name an interpreter that has it: --torch-python)")
        contenders = [name for name in contenders if not name.startswith("torch")]
    allocators = list(ALLOCATORS) if arguments.allocator == "both" else [arguments.allocator]
    rows, versions = [], {"jaxlib": jaxlib.__version__}
    for name in arguments.model or PAPER:
        for mode in arguments.mode or MODES[:1]:
            # Frozen weights cannot be trained.
            able = [c for c in contenders if mode == "inference" or not CONTENDERS[c].frozen]
            for allocator in allocators:
                measured, found = measure(name, mode, allocator, able, arguments)
                rows += measured
                versions |= found
                say(show(measured))
                if arguments.out:  # after each network, so that an interruption loses little
                    write(rows, versions, arguments.out)
    print(f"{show(rows)}\n\n{machine()}; {(time.perf_counter() - began) / 60:.1f} minutes")
    return rows


def machine() -> str:
    return f"{CORES} cores of {cpu_model()}"


def write(rows: list[Row], versions: dict[str, str], out: Path) -> None:
    """All files of the results."""
    record = {
        "machine": machine(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
        "allocators": {name: without_folders(variables) for name, variables in ALLOCATORS.items()},
        "rows": [vars(row) for row in rows],
    }
    out.with_name(f"{out.name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    out.with_name(f"{out.name}.md").write_text(f"{show(rows)}\n\n{machine()}\n")
    results.chart(rows, out.with_name(f"{out.name}.png"), machine())


def commit() -> str | None:
    """The checked-out commit; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
