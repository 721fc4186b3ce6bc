"""`History` and the plots."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED
from jax import lax
from transform_helpers import normal

import dfpjax
from dfpjax.insight import explain

pytest.importorskip("matplotlib")


def loss(params, x):
    with jax.named_scope("Conv_10"):
        x = jnp.tanh(x @ params["a"])
    with jax.named_scope("Conv_2"):
        return jnp.sum((x @ params["b"]) ** 2)


PARAMS = {"a": normal(0, 6, 5), "b": np.ones((5, 4), np.float32)}
X = normal(1, 7, 6)


step = jax.jit(dfpjax.with_statistics(jax.value_and_grad(loss), FORCED, shadow=True))


@functools.cache
def statistics_of(scale):
    """The statistics of a training step whose images are scaled by `scale`."""
    return step(PARAMS, np.float32(scale) * np.asarray(X))[1]


@pytest.fixture(scope="module")
def history():
    history = dfpjax.History()
    for number in (0, 10, 20):
        history.add(number, statistics_of(2**number))
    return history


def test_records(history):
    records = history.to_dicts()
    assert len(records) == 3 * 2 * 3
    exponents = [r["exponent"] for r in records if (r["layer"], r["operand"]) == ("Conv_10", "input")]
    assert np.diff(exponents).tolist() == [10, 10]
    for record in records:
        assert {type(value) for value in record.values()} <= {int, str, float, type(None)}
        assert record["bits"] == 16
    assert records[0]["error"] > 0
    json.dumps(records)
    records.clear()
    assert len(history.to_dicts()) == 18


def test_records_without_what_was_not_measured_yet_are_continued(history):
    records = [
        {key: value for key, value in record.items() if "transformed" not in key}
        for record in history.to_dicts()
    ]
    assert records != history.to_dicts()
    continued = dfpjax.History(records)
    continued.add(30, statistics_of(1))
    assert len(continued.to_dicts()) == len(records) + 6 and continued.to_dicts()[:18] == records


def test_what_add_returns_is_what_it_added():
    history = dfpjax.History()
    history.add(1, statistics_of(1))
    assert history.add(2, statistics_of(1)) == [r for r in history.to_dicts() if r["step"] == 2]


def test_the_layers_of_a_scan_have_records_of_their_own():
    def fun(ws, x):
        def body(x, w):
            with jax.named_scope("layer"):
                return x @ w, None

        return lax.scan(body, x, ws)[0]

    ws = np.stack([np.eye(6), 8 * np.eye(6)]).astype(np.float32)
    history = dfpjax.History()
    history.add(0, dfpjax.with_statistics(fun, FORCED)(ws, X)[1])
    exponents = {r["layer"]: r["exponent"] for r in history.to_dicts() if r["operand"] == "weight"}
    assert exponents == {"layer[0]": -14, "layer[1]": -11}


def test_the_plot_of_a_history(history, tmp_path):
    figure = history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == 6
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["Conv_2", "Conv_10"]
    assert lines[0].get_xdata().tolist() == [0, 10, 20]
    assert [r["exponent"] for r in history.to_dicts() if r["layer"] == "Conv_10"][::3] == list(
        lines[1].get_ydata()
    )


def test_what_add_refuses():
    history = dfpjax.History()
    with pytest.raises(TypeError, match="statistics must be the dict that with_statistics gives, got 3"):
        history.add(0, 3)
    with pytest.raises(TypeError, match="return them from the jitted function first"):
        jax.jit(lambda x: history.add(0, dfpjax.with_statistics(loss, FORCED)(PARAMS, x)[1]))(X)
    with pytest.raises(ValueError, match="nothing has been added"):
        history.plot()


def test_the_plot_of_explain(tmp_path):
    report = explain(loss, PARAMS, X, policy=FORCED)
    figure = report.plot(tmp_path / "report.svg")
    assert "<svg" in (tmp_path / "report.svg").read_text()
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [op.macs for op in report.ops]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Conv_10", "Conv_2"]


def test_the_histogram_of_mantissas(tmp_path):
    q = dfpjax.quantize(X, bits=4)
    figure = dfpjax.plot_mantissas(q, tmp_path / "mantissas.png", bits=4)
    assert (tmp_path / "mantissas.png").stat().st_size > 0
    (axes,) = figure.axes
    counts = [int(bar.get_height()) for bar in axes.patches]
    assert counts == [int(np.sum(np.asarray(q.mantissa) == m)) for m in range(-7, 8)]
    with pytest.raises(TypeError, match=r"plot_mantissas: q must be a DFPArray, as dfpjax\.quantize gives"):
        dfpjax.plot_mantissas(X)


def test_matplotlib_is_imported_for_pictures_alone_and_named_where_it_is_missing():
    program = """
import sys
import dfpjax, jax.numpy as jnp
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
try:
    dfpjax.plot_mantissas(dfpjax.quantize(jnp.ones(3)))
except ImportError as error:
    print(error)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "plot_mantissas draws with matplotlib" in finished.stdout
    assert "pip install 'dfpjax[bench]'" in finished.stdout
