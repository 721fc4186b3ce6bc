"""Which instruction set path runs, and how one is chosen."""

import os
import subprocess
import sys

import pytest

import dfpjax

USE = """
import jax.numpy as jnp, dfpjax
from dfpjax.operations import dot_general
out = dot_general(jnp.ones((5, 300)), jnp.ones((300, 7)), dimension_numbers=(((1,), (0,)), ((), ())))
assert (out == 300).all()
print(dfpjax.runtime_info().isa)
"""


def run(isa):
    environment = {**os.environ, "DFPJAX_ISA": isa}
    return subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True)


def test_portable_runs_everywhere():
    assert dfpjax.runtime_info().usable[-1] == "portable"


@pytest.mark.parametrize("isa", dfpjax.runtime_info().usable)
def test_the_environment_chooses(isa):
    done = run(isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


def test_an_unknown_path_is_an_error_that_names_the_usable_ones():
    done = run("mmx")
    assert done.returncode != 0
    assert "mmx" in done.stderr and "portable" in done.stderr
