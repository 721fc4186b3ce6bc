"""Which rows of a batch a process reads."""

import dataclasses
from typing import Self

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a batch, in ascending order."""

    batch_size: int
    # int64[N].
    indices: np.ndarray

    @classmethod
    def all(cls, batch_size: int) -> Self:
        """The whole batch."""
        return cls(batch_size=batch_size, indices=np.arange(batch_size))

    @classmethod
    def share(cls, batch_size: int, *, parts: int, devices: int, own: range) -> Self:
        """The rows of some devices, if each of the equal parts of a batch is split over all devices.

        Arguments:

        - `own`: the numbers of the devices.
        """
        indices = np.arange(batch_size).reshape(parts, devices, -1)[:, own.start : own.stop]
        return cls(batch_size=batch_size, indices=indices.reshape(-1))
