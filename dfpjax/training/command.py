"""The program that trains a model in float32 or in DFP16: `train.py` in a checkout, `dfpjax-train` elsewhere.

Its flags are absl's. They belong to the process, so it is imported by programs alone.
"""

import dataclasses
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import tensorflow_datasets as tfds
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

import dfpjax
from dfpjax.launch import place
from dfpjax.training import (
    CheckpointError,
    DatasetError,
    LostProcess,
    MeshError,
    PatternError,
    ProcessError,
    Report,
    Stopped,
    StopSignals,
    TrainConfig,
    check_config_file,
    evaluate,
    processes,
    train,
)
from dfpjax.training.config_file import shipped_file, shipped_names
from dfpjax.training.processes import program_name
from dfpjax.training.workdir import checkpoint_directory, writing

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"Configuration file, or one of {', '.join(shipped_names())}; --config.FIELD=VALUE changes a field.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory for checkpoints, weights, metrics and the result; a run in it can be resumed.",
)
_EVAL_ONLY = flags.DEFINE_bool(
    "eval_only",
    False,
    "Tests the newest checkpoint of each seed in --workdir, or --checkpoint, without training.",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "For --eval_only: WORKDIR/weights/seed_N, WORKDIR/checkpoints/seed_N (the newest) or a step in it.",
)
_INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Weights to start from: those of another run, a directory as for --checkpoint; or a .safetensors file"
    " with the weights of torchvision's or timm's ResNet or ViT.",
)
_COORDINATOR_FOUND, _PROCESSES_FOUND, _PROCESS_ID_FOUND = place() or (None, None, None)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    _COORDINATOR_FOUND is not None,
    "Trains with several processes, each of which gets the same command. JAX finds them in SLURM, MPI and"
    " Kubernetes, or by the next three flags. `python -m dfpjax.launch --processes=N` sets all four.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", _COORDINATOR_FOUND, "HOST:PORT, where process 0 listens for the others."
)
_PROCESSES = flags.DEFINE_integer("processes", _PROCESSES_FOUND, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", _PROCESS_ID_FOUND, "Number of this process, from 0.")
_START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout", 120, "Seconds within which all processes must have started.", lower_bound=1
)
_PROFILE = flags.DEFINE_bool(
    "profile", False, "Records a few steps with JAX's profiler into WORKDIR/profile."
)


def refuse(message: str) -> NoReturn:
    """Ends the program with a message."""
    sys.exit(f"{program_name()}: {message}")


def config_files(arguments: Sequence[str]) -> list[str]:
    """The values of `--config`."""
    following = [*arguments[1:], None][: len(arguments)]
    return [
        file
        for argument, after in zip(arguments, following, strict=True)
        if (match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL))
        and (file := after if match[1] is None else match[1]) is not None
    ]


def with_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with the files of configurations that `--config` names, such as `digits`."""
    found = list(arguments)
    for i, argument in enumerate(found[1:], start=1):
        name = re.fullmatch(r"(--?config=)?(\w+)", argument)
        if name is None or not (name[1] or re.fullmatch(r"--?config", found[i - 1])):
            continue
        if not Path(name[2]).exists() and (file := shipped_file(name[2])) is not None:
            found[i] = f"{name[1] or ''}{file}"
    return found


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, after checks whose messages `ml_collections` lacks: of the fields, and of the file."""
    argv = with_files(argv)
    fields = [match[1] for argument in argv[1:] if (match := re.match(r"--?config\.(\w+)", argument))]
    try:
        TrainConfig.check_fields(fields)
        for file in config_files(argv[1:]):
            check_config_file(file)
    except ValueError as error:
        refuse(str(error))
    return app.parse_flags_with_usage(argv)


def check_flags() -> None:
    """Ends the program where flags are empty or do not go together."""
    for flag in (_WORKDIR, _CHECKPOINT, _INIT_FROM):
        if flag.value == "":
            refuse(f"--{flag.name} is empty; give a path, or leave it out")
    addresses = [flag for flag in (_COORDINATOR, _PROCESSES, _PROCESS_ID) if flag.value is not None]
    if addresses and not _DISTRIBUTED.value:
        refuse(f"--{addresses[0].name} is for --distributed")
    if _PROCESSES.value is not None and not 0 <= (_PROCESS_ID.value or 0) < _PROCESSES.value:
        refuse(
            f"--process_id is {_PROCESS_ID.value} and --processes is {_PROCESSES.value};"
            " processes are numbered from 0"
        )
    if _EVAL_ONLY.value and not (_WORKDIR.value or _CHECKPOINT.value):
        refuse("--eval_only needs --workdir=DIR of a run, or --checkpoint=PATH")
    if _CHECKPOINT.value and not _EVAL_ONLY.value:
        refuse("--checkpoint is for --eval_only; to train from it, say --init_from=PATH")
    if _EVAL_ONLY.value and (_INIT_FROM.value or _PROFILE.value):
        refuse("--eval_only trains nothing; leave out --init_from and --profile")
    if _PROFILE.value and not _WORKDIR.value:
        refuse("--profile needs --workdir=DIR, where it writes the profile")


def start_processes() -> None:
    """`--distributed`: connects this process with the others."""
    processes.start(
        coordinator=_COORDINATOR.value,
        processes=_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        timeout=_START_TIMEOUT.value,
    )


def settings(config: TrainConfig) -> dict[str, object]:
    """What must be the same in all processes."""
    ours = {flag.name: flag.value for flag in (_WORKDIR, _EVAL_ONLY, _CHECKPOINT, _INIT_FROM)}
    versions = {
        f"the version of {name}": metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")
    }
    own = {"the version of dfpjax": dfpjax.__version__}
    fields = dataclasses.asdict(config)
    del fields["data_dir"], fields["workers"]  # machines may differ in these
    return {**fields, **ours, **versions, **own}


def run_evaluation(config: TrainConfig) -> None:
    """`--eval_only`."""
    if _CHECKPOINT.value:
        paths = [Path(_CHECKPOINT.value)]
    else:
        workdir = Path(_WORKDIR.value)

        def check() -> None:
            if not workdir.is_dir():
                reason = "is not a directory" if workdir.exists() else "does not exist"
                raise CheckpointError(f"--workdir={workdir} {reason}; --eval_only needs that of a run")

        processes.from_first(check)
        paths = [checkpoint_directory(workdir, seed) for seed in config.seed]
    with Report(console()) as report:
        evaluate(config, report, *paths)


def run_training(config: TrainConfig) -> None:
    """Trains until it is done or told to stop."""
    workdir = Path(_WORKDIR.value) if _WORKDIR.value and processes.is_first() else None

    def make_workdir() -> None:
        if workdir is not None:
            with writing(workdir):
                workdir.mkdir(parents=True, exist_ok=True)

    processes.from_first(make_workdir)
    with StopSignals() as signals:
        try:
            with Report(console(), workdir) as report:
                train(
                    config,
                    report,
                    init_from=Path(_INIT_FROM.value) if _INIT_FROM.value else None,
                    profile=_PROFILE.value,
                    stop=signals.requested,
                )
        except Stopped as stopped:
            if stopped.step == 0:
                outcome = "of which nothing was trained: the same command starts it anew"
            elif _WORKDIR.value:
                outcome = "saved: the same command goes on from there"
            else:
                outcome = "not saved, for want of --workdir"
            processes.wait()  # until the first one has saved
            by = signals.received.name if signals.received else "a signal to another process"
            if processes.is_first():
                print(f"{program_name()}: stopped by {by} {stopped}, {outcome}", file=sys.stderr)
            sys.exit(128 + (signals.received or signal.SIGTERM))


def console() -> Console:
    """Where the first process reports; the others are silent."""
    return Console() if processes.is_first() else Console(file=io.StringIO())


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        config = TrainConfig.from_dict(_CONFIG.value)
    except ValueError as error:
        refuse(str(error))
    check_flags()
    logging.set_verbosity(logging.WARNING)
    tfds.disable_progress_bar()
    end = sys.exit
    try:
        if _DISTRIBUTED.value:
            start_processes()
            end = processes.leave
        with processes.losses_explained():
            processes.agree(settings(config))
            (run_evaluation if _EVAL_ONLY.value else run_training)(config)
    except LostProcess as error:
        again = "; the same command goes on from the last checkpoint" if _WORKDIR.value else ""
        end(f"{program_name()}: {error}{again}")
    except (
        CheckpointError,
        DatasetError,
        FloatingPointError,
        MeshError,
        PatternError,
        ProcessError,
    ) as error:
        end(f"{program_name()}: {error}")
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        end(f"{program_name()}: {what}")
    except KeyboardInterrupt:
        print(f"{program_name()}: stopped at once by SIGINT", file=sys.stderr)
        if _DISTRIBUTED.value:
            os._exit(128 + signal.SIGINT)  # JAX would wait for the other processes
        sys.exit(128 + signal.SIGINT)
    except Exception:
        if not _DISTRIBUTED.value:
            raise
        traceback.print_exc()
        end(f"{program_name()}: an unexpected error ends this process, and so the run")


def run() -> None:
    """Runs the program, and ends the process."""
    for flag in flags.FLAGS.flags_by_module_dict()[__name__]:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # for --help
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
