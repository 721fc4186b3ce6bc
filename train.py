"""Trains a model in float32 or in DFP16.

For example `python train.py --config configs/digits.py --config.precision=float32 --config.seed=0,1,2`.
With `--workdir=DIR` the same command resumes a run that was stopped or killed.
"""

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dfpjax.launch import relaunch

if __name__ == "__main__":
    relaunch()  # before the imports, which take longer

import tensorflow_datasets as tfds
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from dfpjax.training import (
    CheckpointError,
    DatasetError,
    Report,
    Stopped,
    StopSignals,
    TrainConfig,
    check_config_file,
    evaluate,
    train,
)
from dfpjax.training.workdir import checkpoint_directory

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file; --config.FIELD=VALUE changes a field."
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
    "init_from", None, "Weights of another run to start from; a directory as for --checkpoint."
)
_PROFILE = flags.DEFINE_bool(
    "profile", False, "Records a few steps with JAX's profiler into WORKDIR/profile."
)


def config_files(arguments: Sequence[str]) -> list[str]:
    """The values of `--config`."""
    following = [*arguments[1:], None][: len(arguments)]
    return [
        file
        for argument, after in zip(arguments, following, strict=True)
        if (match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL))
        and (file := after if match[1] is None else match[1]) is not None
    ]


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, after checks whose messages `ml_collections` lacks: of the fields, and of the file."""
    fields = [match[1] for argument in argv[1:] if (match := re.match(r"--?config\.(\w+)", argument))]
    try:
        TrainConfig.check_fields(fields)
        for file in config_files(argv[1:]):
            check_config_file(file)
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    return app.parse_flags_with_usage(argv)


def check_flags() -> None:
    """Ends the program where flags are empty or do not go together."""
    for flag in (_WORKDIR, _CHECKPOINT, _INIT_FROM):
        if flag.value == "":
            sys.exit(f"train.py: --{flag.name} is empty; give a path, or leave it out")
    if _EVAL_ONLY.value and not (_WORKDIR.value or _CHECKPOINT.value):
        sys.exit("train.py: --eval_only needs --workdir=DIR of a run, or --checkpoint=PATH")
    if _CHECKPOINT.value and not _EVAL_ONLY.value:
        sys.exit("train.py: --checkpoint is for --eval_only; to train from it, say --init_from=PATH")
    if _EVAL_ONLY.value and (_INIT_FROM.value or _PROFILE.value):
        sys.exit("train.py: --eval_only trains nothing; leave out --init_from and --profile")
    if _PROFILE.value and not _WORKDIR.value:
        sys.exit("train.py: --profile needs --workdir=DIR, where it writes the profile")


def run_evaluation(config: TrainConfig) -> None:
    """`--eval_only`."""
    if _CHECKPOINT.value:
        paths = [Path(_CHECKPOINT.value)]
    else:
        workdir = Path(_WORKDIR.value)
        if not workdir.is_dir():
            reason = "is not a directory" if workdir.exists() else "does not exist"
            sys.exit(f"train.py: --workdir={workdir} {reason}; --eval_only needs that of a run")
        paths = [checkpoint_directory(workdir, seed) for seed in config.seed]
    with Report(Console()) as report:
        evaluate(config, report, *paths)


def run_training(config: TrainConfig) -> None:
    """Trains until it is done or told to stop."""
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else None
    with StopSignals() as signals:
        try:
            with Report(Console(), workdir) as report:
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
            elif workdir:
                outcome = "saved: the same command goes on from there"
            else:
                outcome = "not saved, for want of --workdir"
            print(f"train.py: stopped by {signals.received.name} {stopped}, {outcome}", file=sys.stderr)
            sys.exit(128 + signals.received)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        config = TrainConfig.from_dict(_CONFIG.value)
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    check_flags()
    logging.set_verbosity(logging.WARNING)
    tfds.disable_progress_bar()
    try:
        (run_evaluation if _EVAL_ONLY.value else run_training)(config)
    except (CheckpointError, DatasetError, FloatingPointError) as error:
        sys.exit(f"train.py: {error}")
    except OSError as error:
        sys.exit(f"train.py: {error.filename}: {error.strerror}" if error.filename else f"train.py: {error}")
    except KeyboardInterrupt:
        print("train.py: stopped at once by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
