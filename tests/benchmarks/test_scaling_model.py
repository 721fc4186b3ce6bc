"""The model of `benchmarks.scaling`, and the page it writes."""

import json
from pathlib import Path

import pytest

from benchmarks.scaling.model import (
    Computation,
    Exchange,
    Network,
    Reduction,
    fit_computation,
    fit_network,
    overlap,
    step_seconds,
)
from benchmarks.scaling.page import Assumptions, fitted, page

ROOT = Path(__file__).parents[2]
NETWORK = Network(latency=20e-6, bandwidth=1e9)


def reductions(network=NETWORK):
    return [
        Reduction(processes=processes, size=size, seconds=network.all_reduce(processes=processes, size=size))
        for processes in (2, 4)
        for size in (1000, 10**6, 10**8)
    ]


def test_an_all_reduce_sends_a_part_in_each_round():
    # Four processes: six rounds, each of a quarter of the bytes.
    assert NETWORK.all_reduce(processes=4, size=4e6) == pytest.approx(6 * (20e-6 + 1e-3))
    assert NETWORK.all_reduce(processes=2, size=0, collectives=10) == pytest.approx(2 * 10 * 20e-6)


def test_the_fit_finds_the_network_that_made_the_times():
    found = fit_network(reductions())
    assert found.latency == pytest.approx(NETWORK.latency)
    assert found.bandwidth == pytest.approx(NETWORK.bandwidth)


def test_one_size_does_not_tell_latency_from_bandwidth():
    with pytest.raises(ValueError, match="two sizes or more"):
        fit_network([row for row in reductions() if row.size == 1000])


def test_times_that_fall_with_the_size_are_refused():
    backwards = [Reduction(processes=2, size=size, seconds=1 / size) for size in (10**3, 10**6)]
    with pytest.raises(ValueError, match="measure again"):
        fit_network(backwards)


def test_computation_is_the_line_through_the_steps():
    found = fit_computation([4, 8], [1.5, 2.5])
    assert (found.fixed, found.per_image) == pytest.approx((0.5, 0.25))
    # Noise would put the start below zero.
    found = fit_computation([1, 2], [1.0, 3.0])
    assert (found.fixed, found.per_image) == pytest.approx((0.0, 1.4))
    with pytest.raises(ValueError, match="two numbers or more"):
        fit_computation([4, 4], [1.0, 1.1])


def test_a_step_is_computation_mantissas_and_what_is_waited_for():
    computation = Computation(fixed=0.5, per_image=0.25)
    exchange = Exchange(size=1e6, collectives=3, seconds=0.1, overlap=0.5)
    sent = NETWORK.all_reduce(processes=8, size=1e6, collectives=3)
    seconds = step_seconds(computation, exchange, NETWORK, processes=8, images=2)
    assert seconds == pytest.approx(1.0 + 0.1 + sent / 2)
    assert step_seconds(computation, exchange, NETWORK, processes=1, images=2) == 1.0


@pytest.mark.parametrize(("step", "part"), [(1.0, 1.0), (1.5, 0.75), (3.0, 0.0), (4.0, 0.0), (0.9, 1.0)])
def test_overlap_is_between_none_and_all(step, part):
    assert overlap(step=step, computed=1.0, sent=2.0) == part


def figures():
    computation = Computation(fixed=0.2, per_image=0.1)
    exchanges = {"float32": Exchange(size=4e8, collectives=100), "dfp16": Exchange(size=2e8, collectives=4)}
    steps = [
        {
            "processes": processes,
            "gradients": gradients,
            "images": images,
            "collectives": exchange.collectives,
            "bytes": exchange.size,
            "seconds": step_seconds(computation, exchange, NETWORK, processes=processes, images=images),
        }
        for processes in (1, 2)
        for gradients, exchange in exchanges.items()
        for images in (4, 8)
    ]
    exchanged = [
        {
            "processes": row.processes,
            "gradients": gradients,
            "numbers": row.size // 4,
            "seconds": row.seconds + (1e-9 * row.size if gradients == "dfp16" else 0),
        }
        for row in reductions()
        for gradients in exchanges
    ]
    head = {"machine": "a machine", "date": "a date", "model": "a model", "cores": 2}
    return {**head, "steps": steps, "reductions": exchanged}


def test_the_model_explains_its_own_times():
    model = fitted(figures())
    assert model.computation.per_image == pytest.approx(0.1)
    assert model.loopback.bandwidth == pytest.approx(1e9)
    assert model.exchanges["float32"].overlap == pytest.approx(0)
    # 25 million numbers take 0.1 s more than float32's 0.1 s, of which 0.0504 s send 2 + 1/64 bytes of each.
    # A step's 200 MB are four times as many numbers, nearly.
    assert model.exchanges["dfp16"].seconds == pytest.approx((0.2 - 0.0504) * 4 / (1 + 1 / 128), rel=1e-3)


def test_the_page_predicts_each_number_of_machines():
    text = page(figures(), Assumptions(machines=(8, 16), gigabits=(10,)))
    assert "${" not in text and "of 8 to 16 machines" in text.replace("\n", " ")
    rows = [line for line in text.splitlines() if line.startswith(("| 8 | ", "| 16 | "))]
    assert len(rows) == 4


def test_the_documented_page_is_that_of_the_documented_figures():
    recorded = json.loads((ROOT / "docs" / "results" / "scaling.json").read_text())
    assert (ROOT / "docs" / "scaling.md").read_text() == page(recorded, Assumptions())
