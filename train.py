"""Trains a model in float32 or in DFP16.

For example `python train.py --config configs/digits.py --config.precision=float32 --config.seed=0,1,2`.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from dfpjax.training import DatasetError, Report, TrainConfig, train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file; --config.FIELD=VALUE changes a field."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for metrics.jsonl and result.md; none are written without."
)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, after a check of the fields: `ml_collections` does not say which ones there are."""
    fields = [match[1] for argument in argv[1:] if (match := re.match(r"--?config\.(\w+)", argument))]
    try:
        TrainConfig.check_fields(fields)
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    return app.parse_flags_with_usage(argv)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        config = TrainConfig.from_dict(_CONFIG.value)
    except ValueError as error:
        sys.exit(f"train.py: {error}")
    logging.set_verbosity(logging.WARNING)
    tfds.disable_progress_bar()
    with Report(Console(), Path(_WORKDIR.value) if _WORKDIR.value else None) as report:
        try:
            train(config, report)
        except DatasetError as error:
            sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
