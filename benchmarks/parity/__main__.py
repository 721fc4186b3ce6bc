"""Train the same networks in float32, DFP16 and bfloat16, and test whether DFP16 is worse.

    python -m benchmarks.parity --out docs/results/parity

Every network is trained with the same seeds and the same recipe in float32 and in DFP16 with rounding to
nearest: small forms of ResNet, VGG, GoogLeNet and AlexNet and a vision transformer on scikit-learn's digits,
an LSTM on the help texts that come with Python, and a GAN on the digits. --every-precision adds DFP16 with
stochastic rounding, and bfloat16. DFP16 is forced on every operation, however small. There are 15 seeds, and
10 more of a network for which 15 do not decide whether DFP16 is worse. Prints Markdown tables; --out writes
OUT.json, after every run, and the training curves, OUT.png. What OUT.json has already is not run again, so an
interrupted benchmark goes on where it was. Takes more than an hour on two cores; --only, --seeds and --quick
make it less, and --show shows what is there.

--validate trains the candidates for recipes instead, in float32, and shows the results on the validation
split.
"""

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES
from benchmarks.parity import recipes, results, validation
from benchmarks.parity.recipes import NAMES
from benchmarks.parity.record import Record
from benchmarks.parity.tasks import PRECISIONS, Run
from benchmarks.parity.workers import Job, run_all

SEEDS, MORE_SEEDS = list(range(15)), list(range(15, 25))
"""Of every network, and of one for which the first do not decide."""

DECIDING, OTHERS = PRECISIONS[:2], PRECISIONS[2:]
"""The first two decide how many seeds there are."""


def jobs(names: Iterable[str], precisions: tuple[str, ...], seeds: list[int], *, quick: bool) -> list[Job]:
    """The trainings of these networks, network by network."""
    return [
        Job(
            name=name,
            network=name,
            recipe=recipes.recipe(name, quick=quick),
            precision=precision,
            seeds=seeds,
            test=True,
        )
        for name in names
        for precision in precisions
    ]


def undecided(names: Iterable[str], runs: list[Run]) -> list[str]:
    """The networks whose first seeds, all run, do not tell whether DFP16, rounded to nearest, is worse."""
    of_first = [run for run in runs if run.seed in SEEDS]
    found = []
    for name in names:
        task = recipes.task(name, recipes.recipe(name))
        test = results.paired_test(of_first, task, "dfp16_forced", next(iter(task.measures)))
        if test and len(test.differences) == len(SEEDS) and test.verdict == "undecided":
            found.append(name)
    return found


def measure(arguments: argparse.Namespace) -> None:
    """Trains what is missing."""
    names, record = arguments.only, arguments.record
    for name in names:
        if name not in record.shares:
            record.shares[name] = recipes.task(name, recipes.recipe(name)).share("dfp16_forced")
    record.write()

    def train(precisions: tuple[str, ...]) -> None:
        more = [] if arguments.seeds or arguments.quick else undecided(names, record.runs)
        every = [
            *jobs(names, precisions, arguments.seeds or SEEDS, quick=arguments.quick),
            *jobs(more, precisions, MORE_SEEDS, quick=arguments.quick),
        ]
        run_all(record.missing(every), arguments.processes, record.add)

    train(DECIDING)
    train(DECIDING)  # those that the first seeds did not decide
    if arguments.every_precision:
        for precision in OTHERS:
            train((precision,))


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


def _processes(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError("give the number of processes, 1 or more")
    return int(text)


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names, default=NAMES, help=f"of {','.join(NAMES)} (default: all)")
    parser.add_argument("--seeds", type=_seeds, help="such as 0,1 (default: 0 to 14, or to 24 if undecided)")
    parser.add_argument(
        "--processes", type=_processes, default=CORES, help="trainings at a time (default: one for each core)"
    )
    parser.add_argument(
        "--every-precision",
        action="store_true",
        help="train with stochastic rounding and in bfloat16, too: about twice as long",
    )
    parser.add_argument("--quick", action="store_true", help="next to no training: does it work?")
    parser.add_argument("--validate", action="store_true", help="try recipes on the validation split")
    parser.add_argument("--show", action="store_true", help="train nothing: show what OUT.json has")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.png; with --validate OUT.json alone")
    arguments = parser.parse_args(argv)
    if arguments.show and not arguments.out:
        parser.error("--show needs --out, the results to show")
    prepare_output(parser, arguments.out, draws=None if arguments.validate else "curves")
    path = arguments.out and arguments.out.with_name(f"{arguments.out.name}.json")
    arguments.tasks = [recipes.task(name, recipes.recipe(name, quick=arguments.quick)) for name in NAMES]
    try:
        arguments.record = (
            validation.record_of(path)
            if arguments.validate
            else Record(path, {task.name: task.recipe for task in arguments.tasks})
        )
    except ValueError as error:
        parser.error(f"--out: {error}")
    return arguments


def main(argv=None) -> list[Run]:
    arguments = parse(argv)
    start = time.perf_counter()
    if not arguments.show:
        if arguments.validate:
            validation.validate(arguments.only, arguments.record, arguments.processes)
        else:
            measure(arguments)
    runs, shares = arguments.record.runs, arguments.record.shares
    tasks = [task for task in arguments.tasks if task.name in arguments.only]
    if arguments.validate:
        report = validation.table(runs, arguments.only)
    else:
        report = results.report(runs, shares, tasks)
    print(f"\n{report}")
    if not arguments.show:
        print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes")
    if arguments.out and not arguments.validate:
        results.figure(runs, tasks, arguments.out.with_name(f"{arguments.out.name}.png"))
    return runs


if __name__ == "__main__":
    main()
