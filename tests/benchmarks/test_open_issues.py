"""The benchmark of open reports runs its programs, and compares the right ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax
from benchmarks.open_issues import __main__ as open_issues
from benchmarks.open_issues import results
from benchmarks.open_issues.programs import PROGRAMS

HOW = {"small": True, "rounds": 2, "budget": 10}


def names() -> list[str]:
    return [program.name for program in PROGRAMS]


@pytest.mark.parametrize("program", PROGRAMS, ids=names())
def test_every_program_gives_the_same_in_dfp16(program):
    operands = program.operands(small=True)
    forced = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
    report = dfpjax.explain(program.function, *operands, policy=forced)
    assert report.coverage == 1
    expected = jax.tree.leaves(jax.jit(program.function)(*operands))
    found = jax.tree.leaves(jax.jit(dfpjax.mixed_precision(program.function, policy=forced))(*operands))
    for ours, theirs in zip(found, expected, strict=True):
        assert open_issues.norm(ours - theirs) < 2e-3 * open_issues.norm(theirs)


def test_large_programs_are_those_of_small_ones():
    for program in PROGRAMS:
        large, small = (
            jax.eval_shape(program.function, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
            for shapes in (program.shapes, program.small)
        )
        assert jax.tree.map(jnp.ndim, large) == jax.tree.map(jnp.ndim, small)


def test_a_run_measures_and_prints(capsys, tmp_path):
    program = "depthwise_convolution"
    options = ["--quick", "--rounds", "2", "--program", program, "--allocator", "default"]
    (row,) = open_issues.main([*options, "--out", str(tmp_path / "found")])
    assert {results.JAX, results.OURS} <= row.seconds.keys()
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in row.seconds.values())
    assert "| depthwise convolution | jax#23713 |" in capsys.readouterr().out
    assert (tmp_path / "found.json").exists()


class FakeTorch:
    """PyTorch whose results have these norms."""

    def __init__(self, *norms: float):
        self._norms = norms

    def prepare(self, program, operands):
        return self._norms

    def seconds(self):
        return 0.5


def test_other_results_of_pytorch_are_an_error():
    (program,) = (program for program in PROGRAMS if program.name == "transposed_1d_convolution")
    right = float(np.linalg.norm(program.function(*program.operands(small=True))))
    row = open_issues.measure(program, FakeTorch(right), **HOW)
    assert row.seconds[results.TORCH] == [0.5, 0.5]
    with pytest.raises(RuntimeError, match="transposed_1d_convolution: PyTorch's results are not JAX's"):
        open_issues.measure(program, FakeTorch(1.01 * right), **HOW)


def test_the_table_compares_medians():
    seconds = {results.JAX: [9.0, 0.3, 0.2], results.OURS: [0.1, 0.1, 5.0], results.TORCH: [0.02, 0.02, 0.02]}
    row = results.Row(program="a_program", report="jax#1", seconds=seconds, error=1e-4, coverage=0.5)
    line = results.table([row]).splitlines()[-1]
    assert line == "| a program | jax#1 | 300 | 100 | 20 | 3 | 0.2 | 50% | 1.0e-04 |"
