"""A profile of a few training steps, for XProf or Perfetto."""

from pathlib import Path
from typing import Self

import jax

# The first steps still fill caches.
_SKIPPED = 3
_STEPS = 5


class Profile:
    """Records steps 4 to 8 of those it is told of; a context manager. Without a directory, none.

    A training that is over before has a shorter profile, or none.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        # Steps that were recorded.
        self.recorded = 0
        self._steps = 0
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def step(self) -> None:
        """A step is over."""
        if self.directory is None:
            return
        self._steps += 1
        self.recorded += self._running
        if self._steps == _SKIPPED:
            jax.profiler.start_trace(str(self.directory), create_perfetto_trace=True)
            self._running = True
        if self.recorded == _STEPS:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
