"""Trains a model in float32 or in DFP16.

For example `python train.py --config configs/digits.py --config.precision=float32 --config.seed=0,1,2`.
With `--workdir=DIR` a run that was stopped or killed goes on when the same command is given again.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from dfpjax.launch import relaunch
from dfpjax.training import (
    CheckpointError,
    DatasetError,
    Report,
    Stopped,
    StopSignals,
    TrainConfig,
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
    "Directory for checkpoints, weights, metrics and the result, from which a run goes on; none without.",
)
_EVAL_ONLY = flags.DEFINE_bool(
    "eval_only",
    False,
    "Tests the newest checkpoint of each seed in --workdir, or --checkpoint; trains nothing.",
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


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, after a check of the fields: `ml_collections` does not say which ones there are."""
    fields = [match[1] for argument in argv[1:] if (match := re.match(r"--?config\.(\w+)", argument))]
    try:
        TrainConfig.check_fields(fields)
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    return app.parse_flags_with_usage(argv)


def check_flags() -> None:
    """Ends the program where flags do not go together."""
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
        paths = [checkpoint_directory(Path(_WORKDIR.value), seed) for seed in config.seed]
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
            saved = (
                "saved: the same command goes on from there"
                if workdir
                else "not saved, for want of --workdir"
            )
            print(f"train.py: stopped by {signals.received.name} {stopped}, {saved}", file=sys.stderr)
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


if __name__ == "__main__":
    relaunch()
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
