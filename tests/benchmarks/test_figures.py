"""The figures are legible: nothing crosses a frame, text has a page's size, each colour has one meaning."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest

from benchmarks import dry_run
from benchmarks.common import figures
from benchmarks.fidelity import results as fidelity
from benchmarks.fidelity.precisions import PRECISIONS
from benchmarks.kernels import contenders
from benchmarks.kernels import results as kernels
from benchmarks.parity import results as parity
from benchmarks.parity.tasks import Run, Task
from benchmarks.train_step import contenders as steps
from benchmarks.train_step import results as train_step

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex  # noqa: E402


def step_figure(path, networks=("resnet50", "googlenet", "vgg16", "vit", "lstm")):
    row = train_step.Row(
        network="", mode="train", batch=32, takes="images", allocator="tuned", contender="", seconds=[1.0],
        peak_bytes=1, start_peak_bytes=1, parameters=1, macs=1,
    )  # fmt: skip
    rows = [
        dataclasses.replace(row, network=network, contender=name, seconds=[1 / (i + 1)])
        for network in networks
        for i, name in enumerate(steps.CONTENDERS[key].name for key in steps.USUAL)
    ]
    return train_step.chart(rows, path, "4 cores of a CPU with a name of some length")


def kernel_figure(path):
    rows = [
        kernels.Row(
            suite="resnet50", name=f"{64 * i}→2048 k1 s2 14²", which=which, macs=10**9, peak=463.0,
            seconds={name: 0.005 for name in kernels.CONTENDERS},
        )
        for i in range(6)
        for which in ("fprop", "dgrad", "wgrad")
    ]  # fmt: skip
    return kernels.chart(rows, path, "resnet50, avx512vnni on 4 cores of a CPU with a name of some length")


def fidelity_figure(path):
    rng = np.random.default_rng(0)
    rows = [
        fidelity.Row(
            family=f"distribution with parameter {family}", layer="", operation="", which="fprop",
            rms_over_max=tuple(rng.uniform(0.01, 0.3, 2)), lost=(0.0, 0.0),
            errors={p.name: {"relative": rng.uniform(1e-5, 1e-1)} for p in PRECISIONS},
        )
        for family in range(5)
        for _ in range(3)
    ]  # fmt: skip
    return fidelity.chart(rows, path)


def dry_run_figure(path):
    losses = {"float32": [3.0, 2.0], "dfp16": [3.0, 2.01], "float32, one ulp": [3.001, 2.0]}
    row = dry_run.Row(model="", batch=8, learning_rate=0.1, coverage=0.9, losses=losses, seconds={})
    return dry_run.chart([dataclasses.replace(row, model=name) for name in dry_run.RATES], path)


def parity_task(name: str) -> Task:
    measures = {"test accuracy": True}
    return Task(name=name, title=f"network {name}", recipe="", measures=measures, train=None, step=None)


def parity_figure(path):
    runs = [
        Run(
            task=task, precision=precision, seed=seed, seconds=1.0, diverged=seed == 1,
            curves={"train loss": [2.0, 1.0][: 2 - seed], "test accuracy": [0.1, 0.98][: 2 - seed]},
        )
        for task, precision, seed in itertools.product("ab", parity.PRECISIONS, (0, 1))
    ]  # fmt: skip
    return parity.figure(runs, [parity_task(name) for name in "ab"], path)


DRAWN = [step_figure, kernel_figure, fidelity_figure, dry_run_figure, parity_figure]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A function that returns the figure of one of `DRAWN`, and draws it only once."""
    path = tmp_path_factory.mktemp("figures") / "figure.png"

    @functools.cache
    def draw(function):
        figure = function(path)
        assert path.read_bytes().startswith(b"\x89PNG")
        return figure

    return draw


@pytest.mark.parametrize("draw", DRAWN)
def test_everything_is_within_its_frame_at_the_size_of_a_page(draw, drawn):
    figure = drawn(draw)
    assert figure.get_figwidth() * figures.DPI <= 1000
    box = figure.get_tightbbox()  # inches
    assert box.x0 >= -0.01 and box.y0 >= -0.01
    assert box.x1 <= figure.get_figwidth() + 0.01 and box.y1 <= figure.get_figheight() + 0.01
    assert all(text.get_fontsize() >= 8 for text in figure.findobj(matplotlib.text.Text) if text.get_text())
    for axes in figure.axes:
        for label in axes.texts:
            assert all(axes.bbox.contains(*corner) for corner in label.get_window_extent().corners())


def test_titles_side_by_side_do_not_overlap(drawn):
    figure = drawn(step_figure)
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.title.get_text()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def _colours(axes) -> set[str]:
    faces = [colour for scatter in axes.collections for colour in scatter.get_facecolors()]
    return {to_hex(colour) for colour in faces if colour[3] == 1} - {to_hex("black")}


def test_colours_of_precisions_are_those_of_no_family(drawn):
    above, below = drawn(fidelity_figure).axes
    assert len(_colours(above)) == len(PRECISIONS)
    assert not _colours(below)


def test_a_precision_has_one_colour_in_all_pictures():
    dfp16 = {
        train_step.COLOURS["JAX dfp16"],
        kernels.COLOURS[contenders.KERNEL],
        fidelity.COLOURS["DFP-16"],
        parity.STYLES["dfp16_forced"][0],
    }
    assert dfp16 == {figures.DFP16}
    assert set(fidelity.COLOURS) == {p.name for p in PRECISIONS}
    assert set(train_step.COLOURS) == {contender.name for contender in steps.CONTENDERS.values()}
    for colours in (train_step.COLOURS, kernels.COLOURS, fidelity.COLOURS):
        assert len({to_hex(colour) for colour in colours.values()}) == len(colours)


def test_no_axis_goes_where_no_value_can_be(drawn):
    for axes in drawn(parity_figure).axes[1::2]:
        assert axes.get_ylim()[1] < 1.001


def test_equal_losses_leave_a_gap(drawn):
    below = drawn(dry_run_figure).axes[len(dry_run.RATES)]
    dfp16, one_ulp = (line.get_ydata() for line in below.lines)
    assert math.isnan(dfp16[0]) and dfp16[1] == pytest.approx(0.005)
    assert math.isnan(one_ulp[1])
