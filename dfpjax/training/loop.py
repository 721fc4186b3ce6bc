"""Training: a run for each seed, one after the other."""

from collections.abc import Callable
from pathlib import Path

from . import processes
from .config import TrainConfig
from .data import load_dataset
from .metrics import Result
from .profiling import Profile
from .program import Program
from .report import Report
from .run import Job, Run
from .workdir import claim, has_checkpoints


def train(
    config: TrainConfig,
    report: Report,
    *,
    init_from: Path | None = None,
    profile: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> list[Result]:
    """Trains a model for each seed, telling `report` as it goes, and returns one result for each.

    If the report has a working directory, runs that began there are resumed, with the same result; finished
    runs are not repeated. In a run of several processes, the first one alone has it.

    Arguments:

    - `init_from`: weights to start from instead of random ones, as `load_weights` takes them. A resumed run
      ignores them.
    - `profile`: records a few steps into `profile` in the working directory.
    - `stop`: called between steps; once it returns true, the run is saved and `Stopped` raised.

    **Raises:** `DatasetError` if the dataset is not there, or cannot be used as `config` asks;
    `CheckpointError` if the working directory belongs to another configuration or cannot be written to, or
    the weights do not fit; `MeshError` if the devices cannot share the work; `PatternError` if a
    pattern of `config.trained` matches nothing; `FloatingPointError` if the
    loss of an epoch is not finite; `Stopped`.
    """
    dataset = load_dataset(config)
    program = Program(config, dataset)
    workdir = report.workdir

    def begin() -> None:
        if workdir is not None:
            is_new = not has_checkpoints(workdir)
            claim(workdir, config, train_size=dataset.train_size)
            if is_new:
                report.clear()

    processes.from_first(begin)
    directory = workdir / "profile" if profile and workdir is not None else None
    with Profile(directory, report.line) as recorder:
        job = Job(
            config=config,
            dataset=dataset,
            program=program,
            report=report,
            profile=recorder,
            init_from=init_from,
            stop=stop,
        )
        results = [Run(job, seed).finish() for seed in config.seed]
    processes.wait()
    report.finish(results)
    return results
