"""Processes that start in no time: forked from one that has imported what all of them need."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from subprocess import CompletedProcess

import tensorflow_datasets  # noqa: F401
import tiny  # noqa: F401
from absl import app  # noqa: F401
from ml_collections import config_flags  # noqa: F401

import dfpjax.training  # noqa: F401

ROOT = Path(__file__).parents[2]

CONTEXT = multiprocessing.get_context("forkserver")
# The process that forks imports this module; each of the others still compiles for itself.
CONTEXT.set_forkserver_preload(["forked"])


def run_script(*arguments: str, outputs: Path) -> CompletedProcess:
    """What `python train.py` does with these arguments, but for the launcher, in a process of its own.

    Arguments:
        outputs: a directory for what it prints.
    """
    files = [outputs / name for name in ("stdout", "stderr")]
    process = CONTEXT.Process(target=_run_script, args=(arguments, *files))
    process.start()
    process.join(timeout=400)
    assert process.exitcode is not None, "still running"
    return CompletedProcess(arguments, process.exitcode, *(file.read_text() for file in files))


def _run_script(arguments: tuple[str, ...], *files: Path) -> None:
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ["DFPJAX_LAUNCH"] = "off"  # it would start the program afresh
    os.chdir(ROOT)
    sys.argv = ["train.py", "--config", "configs/digits.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")
