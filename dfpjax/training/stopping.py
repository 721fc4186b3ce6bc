"""A run that is asked to stop: by a signal, between two steps, with what it has done saved."""

import os
import signal
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The run of a seed was asked to stop, after so many of its steps.

    It has saved its state if it has made a step, and has a working directory.
    """

    def __init__(self, *, seed: int, step: int) -> None:
        self.seed = seed
        self.step = step
        super().__init__(
            f"after step {step} of seed {seed}" if step else f"before the first step of seed {seed}"
        )


class StopSignals:
    """Takes SIGTERM and the first Ctrl-C as a request; a context manager, for the main thread alone.

    A second signal of the same kind has its usual effect, at once.
    """

    def __init__(self) -> None:
        # The first one that came.
        self.received: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether a run should stop."""
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, self._before[number])
        if self.received is None:
            self.received = signal.Signals(number)
            # A handler may interrupt a `print`, which must not be entered twice.
            text = (
                f"\n{self.received.name}: stopping after this step (or once compiled);"
                " once more to stop at once\n"
            )
            os.write(2, text.encode())
