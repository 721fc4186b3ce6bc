"""Processes that start quickly: they are forked from one that has imported all that they need."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from types import MappingProxyType

from tiny import MODEL  # noqa: F401  registers the model's name

ROOT = Path(__file__).parents[2]

CONTEXT = multiprocessing.get_context("forkserver")
# The fork server imports these once. It finds installed modules alone: in older Pythons its path is not the
# test's. Each forked process still compiles for itself.
CONTEXT.set_forkserver_preload(
    ["absl.app", "dfpjax.training", "ml_collections.config_flags", "tensorflow_datasets"]
)


def start_script(
    *arguments: str, outputs: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> multiprocessing.Process:
    """Run `python train.py` with these arguments, without the launcher, in a separate process.

    Arguments:
        outputs: a directory for the files `stdout` and `stderr`.
        environment: further variables.
    """
    process = CONTEXT.Process(target=_run_script, args=(arguments, outputs, dict(environment)))
    process.start()
    return process


def run_script(*arguments: str, outputs: Path) -> CompletedProcess:
    """Like `start_script`, but wait for the process to end."""
    process = start_script(*arguments, outputs=outputs)
    process.join(timeout=400)
    assert process.exitcode is not None, "still running"
    printed = ((outputs / name).read_text() for name in ("stdout", "stderr"))
    return CompletedProcess(arguments, process.exitcode, *printed)


def _run_script(arguments: tuple[str, ...], outputs: Path, environment: dict[str, str]) -> None:
    for descriptor, name in enumerate(("stdout", "stderr"), start=1):
        os.dup2(os.open(outputs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.update(environment)
    os.environ["DFPJAX_LAUNCH"] = "off"  # the launcher would restart the program
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # as Python does for a script
    sys.argv = ["train.py", "--config", "configs/digits.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")
