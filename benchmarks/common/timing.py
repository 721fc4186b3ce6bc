"""How the benchmarks measure: contenders in turn, the best call of each."""

import time
from collections.abc import Callable

Contenders = dict[str, Callable[[], object]]
"""Functions by name; each returns when its work is complete."""


def best_seconds(contenders: Contenders, *, budget: float = 0.5, rounds: int = 10):
    """Seconds per call of each contender.

    The machine is shared and its speed drifts, so contenders take turns in every round, and the best call
    of each counts.

    Arguments:
        contenders: name to function.
        budget: seconds to spend on each contender, its warm-up not counted.
        rounds: turns of each contender; two for one whose single call takes the whole budget.
    """
    calls, turns = {}, {}
    for name, run in contenders.items():
        run()
        start = time.perf_counter()
        run()
        once = time.perf_counter() - start
        calls[name] = max(1, round(budget / rounds / max(once, 1e-6)))
        turns[name] = rounds if once < budget else min(rounds, 2)
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(rounds):
        for name, run in contenders.items():
            if turn >= turns[name]:
                continue
            for _ in range(calls[name]):
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
    return best
