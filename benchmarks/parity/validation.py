"""Tries recipes for `benchmarks.parity` in float32, and measures them on the validation split alone."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.parity import recipes
from benchmarks.parity.record import Record
from benchmarks.parity.results import markdown, number
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


def table(runs: list[Run], networks: Iterable[str]) -> str:
    """Mean of each measure on the validation split at the end of a candidate's runs."""
    rows = []
    for job in jobs(networks):
        task = recipes.task(job.network, job.recipe)
        of_job = [run for run in runs if run.task == job.name]
        for measure in task.measures if of_job else ():
            ends = [math.nan if run.diverged else run.curves[measure][-1] for run in of_job]
            mean, seconds = statistics.fmean(ends), statistics.fmean(run.seconds for run in of_job)
            rows.append([task.title, task.recipe, measure, number(mean, measure), f"{seconds:.0f}"])
    return markdown(["network", "recipe", "measure", "validation", "seconds"], rows, words=3)


def validate(networks: Iterable[str], record: Record, processes: int) -> None:
    """Trains what is missing."""
    run_all(record.missing(jobs(networks)), processes, record.add)
