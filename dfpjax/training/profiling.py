"""A profile of a few training steps, for XProf or Perfetto."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import jax

# The first steps warm up the caches.
_SKIPPED = 3
_STEPS = 5


class Profile:
    """Records steps 4 to 8, if there is a directory; a context manager.

    `tell` gets a line of text: how to open the profile, or that training ended before it began.
    """

    def __init__(self, directory: Path | None, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._tell = tell
        self._steps = 0
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running:
            self._stop()
        if self._directory is not None and self._steps <= _SKIPPED:
            self._tell(f"no profile: it begins after {_SKIPPED} steps, and {self._steps} were made")

    def step(self) -> None:
        """A step is over."""
        self._steps += 1
        if self._directory is None:
            return
        if self._steps == _SKIPPED:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True
        elif self._steps == _SKIPPED + _STEPS:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        self._tell(
            f"profile of {self._steps - _SKIPPED} steps in {self._directory}: open it with `pip install xprof"
            f" && xprof --logdir={self._directory}`, or perfetto_trace.json.gz in it at"
            " https://ui.perfetto.dev"
        )
