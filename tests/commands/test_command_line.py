"""The command `dfpjax`: what it prints, and what it says of wrong arguments."""

import subprocess
import sys

import pytest

import dfpjax
from dfpjax.__main__ import main
from dfpjax.commands import bench

MODEL = """
import jax.numpy as jnp
import dfpjax
policy = dfpjax.Policy(default=None)
def forward(x, w, scale=1): return scale * (x @ w)
def example(): return forward, ({"x": jnp.ones((64, 512))}["x"], jnp.ones((512, 512)))
def nothing(): return 1
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder with a file `model.py`, which is the working directory."""
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)


def test_info_names_versions_path_and_allocator(capsys):
    main(["info"])
    said = capsys.readouterr().out
    for text in (dfpjax.__version__, dfpjax.runtime_info().isa, "threads", "allocator", "make it faster"):
        assert text in said


def test_info_advises_the_launcher_where_the_allocator_is_glibcs(capsys, monkeypatch):
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    main(["info"])
    assert "python -m dfpjax.launch" in capsys.readouterr().out


def test_explain_takes_shapes(model, capsys):
    main(["explain", "model.py:forward", "--shapes", "256x512", "f32[512,512]", "--keyword", "scale=2"])
    said = capsys.readouterr().out
    assert "[256,512] x [512,512]" in said and "1 of 1 operations" in said


def test_explain_takes_a_function_that_gives_an_example_and_a_policy(model, capsys):
    main(["explain", "model.py:example", "--policy", "model.py:policy"])
    assert "0 of 1 operations" in capsys.readouterr().out


def test_explain_of_the_gradient_has_all_passes(model, capsys):
    main(["explain", "model.py:forward", "--shapes", "256x512", "512x512", "--grad"])
    said = capsys.readouterr().out
    assert "is wgrad" in said and "is dgrad" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.py"], "'model.py' must be package.module:function or file.py:function"),
        (["no.py:f"], "no.py:f: there is no file no.py here"),
        (["no_such_module:f"], "no_such_module cannot be imported: ModuleNotFoundError"),
        (["model.py:f"], "model.py:f: model.py has no f"),
        (["model.py:forward"], "takes arguments (forward() missing 2 required"),
        (["model.py:nothing"], "model.py:nothing() must return a function and a tuple of its arguments"),
        (["model.py:forward", "--shapes", "8*8"], "--shapes: '8*8' must be such as 8x128"),
        (["model.py:forward", "--shapes", "q8[8]"], "has the dtype 'q8'"),
        (["model.py:forward", "--shapes", "8x8", "4x4"], "cannot be traced with arguments of shapes (8"),
        (["model.py:forward", "--shapes", "8x8", "--policy", "model.py:forward"], "not a dfpjax.Policy"),
        (["model.py:forward", "--shapes", "8x8", "--keyword", "scale"], "'scale' must be NAME=VALUE"),
    ],
)  # fmt: skip
def test_explain_says_what_is_wrong(model, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(["explain", *arguments])
    assert str(end.value).startswith("dfpjax: ") and message in str(end.value)


def test_bench_prints_a_table(capsys, monkeypatch):
    monkeypatch.setenv("DFPJAX_LAUNCH", "off")
    main(["bench", "--quick", "--seconds", "0.1"])
    said = capsys.readouterr().out
    assert "training step" in said and "too small for a verdict" in said


@pytest.mark.parametrize(
    ("step", "advice"),
    [((1.0, 2.0), "Stay with float32"), ((1.5, 0.5), "Use bfloat16"), ((1.5, 1.2), "Use dfpjax")],
)
def test_the_verdict_follows_from_the_training_step(step, advice):
    assert advice in bench.verdict({"matmul": (2.0, 2.0), "training step": step})


def test_bench_refuses_no_time():
    with pytest.raises(SystemExit, match=r"--seconds is 0\.0; it must be positive"):
        main(["bench", "--seconds", "0"])


def test_python_m_dfpjax_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dfpjax", "--version"], capture_output=True, text=True)
    assert done.stdout == f"dfpjax {dfpjax.__version__}\n"
