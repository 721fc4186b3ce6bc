"""Training in a process of its own, which a signal may end at a given point."""

import io
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import jax
from flax import linen as nn
from jax.typing import DTypeLike
from rich.console import Console

from dfpjax.training import Report, Stopped, StopSignals, TrainConfig, train
from dfpjax.training.models import MODELS

# Imports once what all of them need; each still compiles for itself.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["killing"])


class Tiny(nn.Module):
    """Compiles in no time, and has all that a state holds and a step depends on: batch norm and dropout."""

    classes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3), strides=2, dtype=self.dtype)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


# In this process and in those that it starts.
MODELS["tiny"] = Tiny


class KillingReport(Report):
    """Sends its own process a signal after a training step, or as soon as a checkpoint is being written."""

    def __init__(self, console: Console, workdir: Path, number: int, step: int, while_writing: bool) -> None:
        super().__init__(console, workdir)
        self._number = number
        self._step = step
        self._while_writing = while_writing
        self._steps_made = 0

    def step(self, *arguments) -> None:
        super().step(*arguments)
        self._steps_made += 1
        due = self._steps_made == self._step
        if self._while_writing:
            due = any((self.workdir / "checkpoints").glob("seed_*/*tmp*"))
        if due:
            os.kill(os.getpid(), self._number)


def _run(
    config: TrainConfig, workdir: Path, number: int, step: int, while_writing: bool, sender: Connection
) -> None:
    console = Console(file=io.StringIO(), width=120)
    with StopSignals() as signals:
        try:
            with KillingReport(console, workdir, number, step, while_writing) as report:
                train(config, report, stop=signals.requested)
        except Stopped as stopped:
            sender.send(str(stopped))
            os._exit(128 + signals.received)


def train_until(
    config: TrainConfig,
    workdir: Path,
    number: signal.Signals,
    *,
    step: int = 0,
    while_writing: bool = False,
) -> tuple[int, str | None]:
    """Trains until this signal comes, after so many steps of the process or while a checkpoint is written.

    Returns the exit code, as `multiprocessing.Process` has it, and where the run says it was stopped.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(config, workdir, number, step, while_writing, sender))
    process.start()
    process.join(timeout=120)
    assert process.exitcode is not None, "still running"
    return process.exitcode, receiver.recv() if receiver.poll() else None
