"""The benchmark of the kernels measures what it claims to measure."""

import math

import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from benchmarks.common import environment, shapes
from benchmarks.common.operations import PASSES, passes
from benchmarks.common.shapes import Conv, Dot
from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import contenders, results
from benchmarks.kernels.contenders import (
    KERNEL,
    ONEDNN,
    ONEDNN_BFLOAT16,
    WINOGRAD,
    XLA,
    XLA_BFLOAT16,
)
from dfpjax.numbers.contraction.algorithm import TILES

CASE = Conv(1, 64, 64, 3, 8)


def row(which: str, name: str = "64→64 k3 8²", suite: str = "winograd", **seconds: float) -> results.Row:
    return results.Row(suite=suite, name=name, which=which, macs=10**9, seconds=seconds, peak=200.0)


def lines(table) -> list[list[str]]:
    return [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)]


def line(table, *words: str) -> list[str]:
    """The cells behind those words, which the line begins with."""
    (found,) = (cells for cells in lines(table) if cells[: len(words)] == list(words))
    return found[len(words) :]


def test_the_suite_of_winograd_has_what_suits_of_two_networks():
    suite = shapes.winograd()
    assert {case.batch for case in suite} == {8, 32} and len(suite) == 12
    assert all(case.kernel == 3 and case.stride == 1 for case in suite)
    assert {case.batch for case in shapes.winograd(2)} == {2}
    whole = [*shapes.resnet50(), *shapes.vgg16()]
    rest = [case for case in whole if case not in suite]
    assert {case.name for case in rest if case.kernel == 3} == {
        "128→128 k3 s2 56²", "256→256 k3 s2 28²", "512→512 k3 s2 14²", "3→64 k3 224²",
    }  # fmt: skip
    assert "winograd" not in shapes.DISTINCT


def test_every_algorithm_computes_every_pass():
    for _, contraction in passes(CASE):
        ours = contenders.ours(*contraction, TILES)
        direct, *others = (np.asarray(ours[name]()) for name in (KERNEL, *WINOGRAD.values()))
        errors = [oracle.relative_error(other, direct) for other in others]
        assert 0 < errors[0] < errors[1] < 2e-3


def test_only_what_suits_winograd_is_measured_by_it():
    how = {"budget": 0.003, "rounds": 1}
    for case in (CASE, Conv(1, 32, 64, 3, 8), Dot(m=5, k=40, n=9)):
        rows = kernels.peer_rows("suite", case, None, **how)
        assert [row.which for row in rows] == list(PASSES)
        for found in rows:
            assert set(found.seconds).issuperset(WINOGRAD.values()) == (case is CASE)


class FakeTorch:
    def seconds(self, case, **how):
        return {which: {ONEDNN: 1e-9, ONEDNN_BFLOAT16: 2e-9} for which in PASSES}


@pytest.mark.parametrize("xla", [True, False])
def test_both_precisions_of_onednn_are_recorded(xla):
    how = {"xla": xla, "budget": 0.003, "rounds": 1}
    for found in kernels.peer_rows("suite", Dot(m=5, k=40, n=9), FakeTorch(), **how):
        assert (found.seconds[ONEDNN], found.seconds[ONEDNN_BFLOAT16]) == (1e-9, 2e-9)
        assert (XLA in found.seconds) == xla


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512_bf16"}], ids=["avx2", "avx512_bf16"])
@pytest.mark.parametrize("case", [CASE, Dot(m=5, k=40, n=9)], ids=["convolution", "dot"])
def test_bfloat16_of_xla_is_measured_where_the_cpu_multiplies_it(case, flags, monkeypatch):
    monkeypatch.setattr(contenders, "cpu_flags", lambda: flags)
    precisions = [XLA, XLA_BFLOAT16] if "avx512_bf16" in flags else [XLA]
    for passes_of in contenders.xla(case).values():
        assert list(passes_of) == precisions
        exact, *others = (run() for run in passes_of.values())
        for other in others:
            assert other.dtype == jnp.bfloat16
            assert 1e-4 < oracle.relative_error(np.asarray(other, np.float32), np.asarray(exact)) < 1e-2


def test_the_table_of_algorithms_compares_each_with_peak_and_peers():
    two, four = WINOGRAD.values()
    peers = {ONEDNN: 0.02, ONEDNN_BFLOAT16: 0.01, XLA_BFLOAT16: 0.005}
    rows = [
        row("fprop", **{KERNEL: 0.01, two: 0.008, four: 0.005}, **peers),
        row("fprop", "128→128 k3 8²", **{KERNEL: 0.01, two: 0.008, four: 0.00125}, **peers),
        row("fprop", "3→64 k3 8²", **{KERNEL: 1.0}, **peers),
        row("wgrad", **{KERNEL: 0.01, two: 0.01, four: 0.02}),
    ]
    table, mean = results.algorithms(rows), "winograd: geometric mean"
    assert {cells[0] for cells in lines(table)} == {"64→64 k3 8²", "128→128 k3 8²", mean}
    assert line(table, "64→64 k3 8²", "fprop", "winograd4") == ["200", "1.00", "2.00", "4.00", "2.00", "1.00"]
    assert line(table, "64→64 k3 8²", "wgrad", "winograd4") == ["50", "0.25", "0.50", "", "", ""]
    assert line(table, mean, "fprop", "direct") == ["100", "0.50", "1.00", "2.00", "1.00", "0.50"]
    assert line(table, mean, "fprop", "winograd4") == ["400", "2.00", "4.00", "8.00", "4.00", "2.00"]


def test_suites_have_a_mean_together():
    names = dict.fromkeys(WINOGRAD.values(), 0.01)
    rows = [
        row(which, suite=suite, **names, **{KERNEL: seconds})
        for suite, seconds in (("resnet50", 0.04), ("vgg16", 0.01))
        for which in PASSES
    ]
    for which in PASSES:
        together = line(results.algorithms(rows), "all: geometric mean", which, "winograd4")
        assert together[:3] == ["100", "0.50", "2.00"]


def test_a_share_of_the_peak_is_that_of_the_definition():
    (two, four) = WINOGRAD.values()
    found = row("fprop", **{KERNEL: 0.01, four: 0.0025})
    assert found.share() == pytest.approx(0.5) and found.share(four) == pytest.approx(2.0)
    assert math.isnan(found.share(two))


def test_flags_of_the_cpu(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: A CPU\nflags\t\t: avx2 avx512_bf16\n\nflags\t\t: avx2\n")
    monkeypatch.setattr(environment, "Path", lambda _: info)
    assert environment.cpu_flags() == {"avx2", "avx512_bf16"}
    assert environment.cpu_model() == "A CPU"
    info.write_text("")
    assert environment.cpu_flags() == set() and environment.cpu_model() == "unknown CPU"
