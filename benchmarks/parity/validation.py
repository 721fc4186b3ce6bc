"""Tries recipes for `benchmarks.parity` in float32, and measures them on the validation split alone."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common.markdown import markdown
from benchmarks.parity import recipes
from benchmarks.parity.record import Record
from benchmarks.parity.results import number
from benchmarks.parity.tasks import Run
from benchmarks.parity.workers import Job, run_all

SEEDS = [100]
"""Not one of those that are tested."""


def jobs(networks: Iterable[str]) -> list[Job]:
    """The trainings that try the networks' candidates, each recorded under a name of its own."""
    return [
        Job(
            name=f"{network}: {recipe.rate:g}, {recipe.length}",
            network=network,
            recipe=recipe,
            precision="float32",
            seeds=SEEDS,
            test=False,
        )
        for network in networks
        for recipe in recipes.CANDIDATES[network]
    ]


def record_of(path: Path | None) -> Record:
    """The validation runs in a file."""
    every = jobs(recipes.NAMES)
    return Record(path, {job.name: recipes.task(job.network, job.recipe).recipe for job in every})


def _end(run: Run, measure: str) -> float:
    """On the validation split after the run, NaN for one that diverged."""
    return math.nan if run.diverged else run.curves[measure][-1]


def table(runs: list[Run], networks: Iterable[str]) -> str:
    """What a candidate's runs reach on the validation split at their end, in the mean."""
    rows = []
    for job in jobs(networks):
        task = recipes.task(job.network, job.recipe)
        of_job = [run for run in runs if run.task == job.name]
        if not of_job:
            continue
        means = (
            number(
                statistics.fmean(math.nan if run.diverged else run.curves[name][-1] for run in of_job), name
            )
            for name in task.measures
        )
        chosen = "chosen" if job.recipe == recipes.recipe(job.network) else ""
        rows.append([task.title, task.recipe, ", ".join(task.measures), ", ".join(means), chosen])
    return markdown(["network", "recipe", "measures", "validation", ""], rows, words=3)


def validate(networks: Iterable[str], record: Record, processes: int) -> None:
    """Trains what is missing."""
    run_all(record.missing(jobs(networks)), processes, record.add)
