"""Training in a separate process, which a signal may end at a given point."""

import io
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from forked import CONTEXT
from rich.console import Console

from dfpjax.training import Report, Stopped, StopSignals, TrainConfig, train


class KillingReport(Report):
    """Sends its own process a signal after a given training step, or once a checkpoint is being written."""

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
    """Train until the process gets this signal, after `step` of its steps or while it writes a checkpoint.

    Returns the exit code, as in `multiprocessing.Process`, and the run's message if it stopped.
    """
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run, args=(config, workdir, number, step, while_writing, sender))
    process.start()
    process.join(timeout=400)
    assert process.exitcode is not None, "still running"
    return process.exitcode, receiver.recv() if receiver.poll() else None
