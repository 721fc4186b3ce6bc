"""The command `dfpjax-train`."""

import sys

from dfpjax.launch import relaunch

_EXTRA = ("absl", "flax", "grain", "ml_collections", "optax", "orbax", "rich", "tensorflow_datasets")


def main() -> None:
    """Trains a model; `--help` lists the flags."""
    relaunch()  # before the imports, which take longer
    try:
        from dfpjax.training.command import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.exit(f'dfpjax-train: {error}; install what training needs: pip install "dfpjax[train]"')
    run()
