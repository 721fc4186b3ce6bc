"""The limits of the machine: the peak of its int16 dot product and the bandwidth of its memory."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.common.environment import CORES
from benchmarks.train_step.breakdown import KERNELS
from dfpjax import _native


def measure() -> dict[str, float]:
    """`peak`, in multiply-accumulates per second, and `memory`, in bytes per second, both on all cores."""
    peak = max(_native.measure_peak(CORES)["int16_dot"] for _ in range(5)) * 1e9
    return {"peak": peak, "memory": memory_speed()}


def memory_speed(size: int = 64 << 20, repeats: int = 8) -> float:
    """Bytes read and written per second by a copy on all cores, each of its own `size` bytes."""
    arrays = [(np.ones(size, np.int8), np.zeros(size, np.int8)) for _ in range(CORES)]
    best = float("inf")
    with ThreadPoolExecutor(CORES) as pool:
        for _ in range(repeats):
            began = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), arrays))
            best = min(best, time.perf_counter() - began)
    return 2 * size * CORES / best


def bounds(classes: dict[str, dict], *, macs: float, peak: float, memory: float) -> dict[str, float]:
    """Seconds of each class of `breakdown` at best: kernels at the peak, everything else at memory's speed.

    Arguments:
        classes: each with its `bytes`.
        macs: multiply-accumulates in DFP16.
    """
    return {
        name: macs / peak if name == KERNELS else measured["bytes"] / memory
        for name, measured in classes.items()
    }
