"""The runs of `benchmarks.parity` so far, in a file, so that an interrupted benchmark can go on."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import jax
import jaxlib

from benchmarks.common.environment import CORES, cpu_model
from benchmarks.parity.tasks import Run, Share
from benchmarks.parity.workers import Job
from dfpjax import runtime_info


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

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """What of these jobs has not been run."""
        done = {(run.task, run.precision, run.seed) for run in self.runs}
        left = (
            dataclasses.replace(
                job, seeds=[seed for seed in job.seeds if (job.name, job.precision, seed) not in done]
            )
            for job in jobs
        )
        return [job for job in left if job.seeds]

    def add(self, run: Run) -> None:
        """A run is over."""
        self.runs.append(run)
        ends = run.test or {name: curve[-1] for name, curve in run.curves.items() if curve}
        values = ", ".join(f"{name} {value:.4f}" for name, value in ends.items())
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
