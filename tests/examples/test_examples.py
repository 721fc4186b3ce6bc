"""Every example runs, at a small size, and does what it says."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {
    "explain_resnet50": None,
    "fused_quantization": None,
    "residuals": None,
    "fine_tune": ["--steps", "3"],
    "nnx_training": ["--steps", "2"],
    "lstm": ["--steps", "2", "--width", "64"],
    "vision_transformer": ["--steps", "2"],
    "gan": ["--steps", "2"],
}
"""Arguments of the functions `main`; None where there are none."""


def main(name: str):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_is_tested():
    files = {file.stem for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}
    # tests/serving runs those that export a program and call it.
    assert files == {*SIZES, "dfp16_weights", "statistics", "serving_export", "serving_call"}


@pytest.mark.parametrize("name", ["explain_resnet50", "residuals"])
def test_what_is_only_traced(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name])
    main(name)()
    assert "dfp16" in capsys.readouterr().out


def test_quantization_is_fused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fused_quantization"])
    main("fused_quantization")()
    assert "passes" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fine_tune", "nnx_training", "lstm", "gan"])
def test_training_gives_finite_numbers(name):
    found = main(name)(SIZES[name])
    assert all(map(math.isfinite, found if isinstance(found, tuple) else [found]))


def test_the_vision_transformers_losses_are_those_of_float32():
    exact, ours = main("vision_transformer")(SIZES["vision_transformer"])
    assert ours == pytest.approx(exact, rel=1e-3)


def test_weights_in_dfp16_are_half_as_large(tmp_path, capsys):
    main("dfp16_weights")(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    sizes = {name: float(text.split()[0]) for name, text in (line.split(": ") for line in lines[:2])}
    assert sizes["dfp16"] < 0.6 * sizes["float32"]
    assert lines[2] == "largest difference of the results: 0.0e+00"


def test_the_notebook_runs(tmp_path):
    pytest.importorskip("matplotlib", reason='the notebook draws: pip install "dfpjax[bench]"')
    cells = json.loads((EXAMPLES / "statistics.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "STEPS = 100" in code
    assert not any(cell.get("outputs") for cell in cells), "the notebook is kept without outputs"
    program = tmp_path / "notebook.py"
    program.write_text(code.replace("STEPS = 100", "STEPS = 11"))
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
