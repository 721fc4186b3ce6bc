"""Checks of command lines that several benchmarks share."""

import importlib.util
from argparse import ArgumentParser
from pathlib import Path


def prepare_output(parser: ArgumentParser, out: Path | None, draws: str | None = None) -> None:
    """Make sure, before anything is measured, that the results can be written.

    Ends the program with a message if the folder cannot be made, or matplotlib is missing.

    Arguments:
        parser: whose option `--out` is.
        out: path of the results without its ending, or None where nothing is written.
        draws: what matplotlib draws of them; None for nothing.
    """
    if out is None:
        return
    if draws and not importlib.util.find_spec("matplotlib"):
        parser.error(f"--out draws its {draws} with matplotlib: pip install '.[bench]'")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        parser.error(f"--out {out}: {out.parent} is not a directory")
