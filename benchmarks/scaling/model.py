"""A model of a data-parallel step: computation, then an exchange of gradients that partly overlaps it.

Collectives go round a ring of the n processes, as gloo's do. An all-reduce takes 2(n − 1) rounds, in each of
which a process sends an n-th of the array. A round costs a latency α, and each byte 1/β (Hockney's α–β
model). An all-to-all and an all-gather together cost as much as one all-reduce.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Network:
    """What connects the processes.

    latency: seconds of a round, α.
    bandwidth: bytes a second that a process sends while it receives as many, β.
    """

    latency: float
    bandwidth: float

    def all_reduce(self, *, processes: int, size: float, collectives: float = 1) -> float:
        """Seconds of all-reduces of `size` bytes together."""
        rounds = 2 * (processes - 1)
        return rounds * (collectives * self.latency + size / processes / self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class Computation:
    """What a process computes in a step: `fixed` seconds, and `per_image` for each of its images."""

    fixed: float
    per_image: float

    def seconds(self, images: float) -> float:
        return self.fixed + self.per_image * images

    def faster(self, factor: float) -> "Computation":
        """The same on a machine with `factor` times the speed."""
        return Computation(fixed=self.fixed / factor, per_image=self.per_image / factor)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """How the processes exchange the gradients of a step.

    size: bytes of the results of all collectives, in each process.
    collectives: how many there are.
    seconds: what a process computes for the exchange: mantissas, and numbers from them.
    overlap: the part of the collectives' time in which the step goes on, from 0 to 1.
    """

    size: float
    collectives: int
    seconds: float = 0.0
    overlap: float = 0.0


def step_seconds(
    computation: Computation, exchange: Exchange, network: Network, *, processes: int, images: float
) -> float:
    """Seconds of a step in which each process has `images` images."""
    computed = computation.seconds(images)
    if processes == 1:
        return computed
    sent = network.all_reduce(processes=processes, size=exchange.size, collectives=exchange.collectives)
    return computed + exchange.seconds + (1 - exchange.overlap) * sent


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """A measured all-reduce: how many processes, of how many bytes, in how many seconds."""

    processes: int
    size: int
    seconds: float


def fit_network(reductions: Sequence[Reduction]) -> Network:
    """The network that explains measured all-reduces with the least squares of relative errors.

    Raises:
        ValueError: if all reductions are of one size.
    """
    if len({reduction.size for reduction in reductions}) < 2:
        raise ValueError("fit_network: reductions must be of two sizes or more, to tell α from β")
    rounds = np.array([2 * (reduction.processes - 1) for reduction in reductions])
    bytes_of_round = np.array([reduction.size / reduction.processes for reduction in reductions])
    seconds = np.array([reduction.seconds for reduction in reductions])
    costs = (rounds * np.stack([np.ones(len(rounds)), bytes_of_round])).T / seconds[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(costs, np.ones(len(costs)), rcond=None)
    if min(latency, per_byte) <= 0:
        raise ValueError(
            "fit_network: the times of reductions do not grow with their sizes; measure again, on a machine"
            " that does nothing else"
        )
    return Network(latency=float(latency), bandwidth=float(1 / per_byte))


def fit_computation(images: Sequence[int], seconds: Sequence[float]) -> Computation:
    """The line through measured steps of one process; through the origin if it would start below it.

    Raises:
        ValueError: if there are fewer than two numbers of images.
    """
    if len(set(images)) < 2:
        raise ValueError("fit_computation: images must be of two numbers or more")
    per_image, fixed = np.polyfit(images, seconds, 1)
    if fixed < 0:
        fixed, per_image = 0.0, np.dot(images, seconds) / np.dot(images, images)
    return Computation(fixed=float(fixed), per_image=float(per_image))


def overlap(*, step: float, computed: float, sent: float) -> float:
    """The part of the collectives' time in which a measured step went on, from 0 to 1."""
    return min(max((computed + sent - step) / sent, 0.0), 1.0)
