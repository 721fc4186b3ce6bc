"""Processes that train for `benchmarks.parity`, each with one thread, several at a time.

The networks are too small to share a step among threads: two trainings side by side take less time than one
after the other. All seeds of a network in a precision are one process's, and share its compiled step.
"""

import argparse
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import tensorflow_datasets as tfds

from benchmarks.parity import recipes
from benchmarks.parity.tasks import Recipe, Run

# How many threads XLA's client has, and whether Eigen uses them.
_ONE_THREAD = {"NPROC": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Runs of a network by a recipe in a precision."""

    name: str
    """What the runs are recorded as."""

    network: str
    recipe: Recipe
    precision: str
    seeds: list[int]
    test: bool
    """Whether the runs are measured on the test split at their end."""


def run_all(jobs: list[Job], processes: int, record: Callable[[Run], None]) -> None:
    """Does the jobs in their order, and hands over each run as soon as it is over, one at a time.

    Raises:
        RuntimeError: if a process fails. Others go on until their job is over.
    """
    lock = threading.Lock()

    def work(job: Job) -> None:
        command = [sys.executable, "-m", "benchmarks.parity.workers", json.dumps(dataclasses.asdict(job))]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | _ONE_THREAD
        ) as process:
            for line in process.stdout:
                with lock:
                    record(Run(**json.loads(line)))
        if process.returncode != 0:
            raise RuntimeError(f"training {job.network} in {job.precision} failed with {process.returncode}")

    with ThreadPoolExecutor(processes) as pool:
        for done in [pool.submit(work, job) for job in jobs]:
            done.result()


def main() -> None:
    """One job, whose runs are written to the standard output, each on a line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("job", type=json.loads, help="the fields of `Job`, as JSON")
    fields = parser.parse_args().job
    job = Job(**fields | {"recipe": Recipe(**fields["recipe"])})
    logging.getLogger("absl").setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    for run in recipes.task(job.network, job.recipe).train(job.precision, job.seeds, test=job.test):
        print(json.dumps(dataclasses.asdict(run) | {"task": job.name}), flush=True)


if __name__ == "__main__":
    main()
