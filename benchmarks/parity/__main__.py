"""Train the same networks in float32, DFP16 and bfloat16, and test whether DFP16 is worse.

    python -m benchmarks.parity --out docs/results/parity

Every network is trained with the same seeds and the same recipe in float32, in DFP16 with rounding to
nearest and with stochastic rounding, and in bfloat16: small forms of ResNet, VGG, GoogLeNet and AlexNet and
a vision transformer on scikit-learn's digits, an LSTM on the help texts that come with Python, and a GAN on
the digits. DFP16 is forced on every operation, however small. Prints Markdown tables; --out writes OUT.json,
after every run, and the training curves, OUT.png. What OUT.json has already is not run again, so an
interrupted benchmark goes on where it was. Takes some 45 minutes on four cores; --only, --seeds and --quick
make it less, and --show shows what is there.
"""

import argparse
import dataclasses
import json
import logging
import time
from pathlib import Path

import jax
import jaxlib
import tensorflow_datasets as tfds

from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, cpu_model
from benchmarks.parity import results
from benchmarks.parity.gan import gan_task
from benchmarks.parity.tasks import PRECISIONS, Run, Share, Task, classifiers
from benchmarks.parity.text import text_task
from dfpjax import runtime_info

NAMES = ("resnet", "vgg", "googlenet", "alexnet", "vit", "lstm", "gan")


def tasks(*, quick: bool) -> list[Task]:
    """All of them, in the order of `NAMES`."""
    return [*classifiers(quick=quick), text_task(quick=quick), gan_task(quick=quick)]


class Record:
    """All runs so far, kept in a file if there is one.

    Raises:
        ValueError: if the file holds runs of other recipes.
    """

    def __init__(self, path: Path | None, recipes: dict[str, str]):
        self.runs: list[Run] = []
        self.shares: dict[str, Share] = {}
        self._path = path
        self._recipes = recipes
        if path is None or not path.exists():
            return
        content = json.loads(path.read_text())
        if other := [name for name, recipe in content["recipes"].items() if recipe != recipes.get(name)]:
            raise ValueError(
                f"{path} has runs of other recipes for {', '.join(other)}; give another --out or delete it"
            )
        self.runs = [Run(**run) for run in content["runs"]]
        self.shares = {name: Share(**share) for name, share in content["shares"].items()}

    def missing(self, task: Task, precision: str, seeds: list[int]) -> list[int]:
        """Those of the seeds without a run."""
        done = {run.seed for run in self.runs if (run.task, run.precision) == (task.name, precision)}
        return [seed for seed in seeds if seed not in done]

    def add(self, run: Run) -> None:
        """A run is over."""
        self.runs.append(run)
        values = ", ".join(f"{name} {curve[-1]:.4f}" for name, curve in run.curves.items() if curve)
        state = " (diverged)" if run.diverged else ""
        print(f"{run.task} {run.precision} seed {run.seed}{state}: {values}, {run.seconds:.0f} s", flush=True)
        self.write()

    def write(self) -> None:
        """The file is complete at any time: an interruption leaves the one before."""
        if self._path is None:
            return
        content = {
            "cpu": cpu_model(),
            "cores": CORES,
            "isa": runtime_info().isa,
            "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
            "recipes": {name: self._recipes[name] for name in dict.fromkeys(run.task for run in self.runs)},
            "shares": {name: dataclasses.asdict(share) for name, share in self.shares.items()},
            "runs": [dataclasses.asdict(run) for run in self.runs],
        }
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        beside.replace(self._path)


def measure(task: Task, seeds: list[int], record: Record) -> None:
    """The runs of a task that are missing, and its share of DFP16."""
    if task.name not in record.shares:
        record.shares[task.name] = task.share("dfp16_forced")
        record.write()
    for precision in PRECISIONS:
        if missing := record.missing(task, precision, seeds):
            task.train(precision, missing, record.add)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"no network {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return names


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0:
        raise argparse.ArgumentTypeError("give seeds as numbers from 0 up, such as 0,1,2")
    return seeds


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names, default=NAMES, help=f"of {','.join(NAMES)} (default: all)")
    parser.add_argument("--seeds", type=_seeds, help="such as 0,1 (default: 5 of resnet, 3 of the others)")
    parser.add_argument("--quick", action="store_true", help="next to no training: does it work?")
    parser.add_argument("--show", action="store_true", help="train nothing: show what OUT.json has")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.png")
    arguments = parser.parse_args(argv)
    if arguments.show and not arguments.out:
        parser.error("--show needs --out, the results to show")
    prepare_output(parser, arguments.out, draws="curves")
    arguments.tasks = [task for task in tasks(quick=arguments.quick) if task.name in arguments.only]
    path = arguments.out and arguments.out.with_name(f"{arguments.out.name}.json")
    recipes = {task.name: task.recipe for task in tasks(quick=arguments.quick)}
    try:
        arguments.record = Record(path, recipes)
    except ValueError as error:
        parser.error(f"--out: {error}")
    return arguments


def main(argv=None) -> list[Run]:
    arguments = parse(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    start = time.perf_counter()
    for task in () if arguments.show else arguments.tasks:
        measure(task, arguments.seeds or list(range(task.seeds)), arguments.record)
    runs, shares = arguments.record.runs, arguments.record.shares
    print(f"\n{results.report(runs, shares, arguments.tasks)}")
    if not arguments.show:
        print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes")
    if arguments.out:
        results.figure(runs, arguments.tasks, arguments.out.with_name(f"{arguments.out.name}.png"))
    return runs


if __name__ == "__main__":
    main()
