"""Which instruction set path runs, and how to choose one."""

import os
import subprocess
import sys

import pytest
from tiers import in_tiers

import dfpjax

USE = """
import jax.numpy as jnp, dfpjax
from dfpjax.operations import dot_general
out = dot_general(jnp.ones((5, 300)), jnp.ones((300, 7)), dimension_numbers=(((1,), (0,)), ((), ())))
assert (out == 300).all()
info = dfpjax.runtime_info()
print(info.isa, info.reason, sep=": ")
"""


def run(isa):
    environment = {**os.environ, "DFPJAX_ISA": isa}
    return subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True)


def test_every_path_is_usable_or_says_why_not():
    info = dfpjax.runtime_info()
    assert info.usable[-1] == "portable"
    names = {*info.usable, *dict(info.unusable)}
    assert names == {"avx512vnni", "avx512bw", "avxvnni", "avx2", "portable"}
    for name, why in info.unusable:
        assert why.startswith(("this CPU has no AVX", "this build is for another"))
        assert f"not usable: {name} ({why})" in str(info)
    assert str(info).startswith(f"{info.isa}: {info.reason}\n")


def test_the_best_path_is_the_default():
    done = run("")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{dfpjax.runtime_info().usable[0]}: the best path that this CPU can run"


@pytest.mark.parametrize(
    "isa",
    [in_tiers(isa, quick=isa == "portable") for isa in dfpjax.runtime_info().usable],
)
def test_the_environment_chooses(isa):
    done = run(isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{isa}: DFPJAX_ISA asks for it"


@pytest.mark.parametrize(("isa", "why"), dfpjax.runtime_info().unusable)
def test_a_path_that_cannot_run_is_an_error_that_says_why(isa, why):
    done = run(isa)
    assert done.returncode != 0
    assert f"DFPJAX_ISA: ISA path '{isa}' cannot run: {why}" in done.stderr


def test_an_unknown_path_is_an_error_that_names_the_usable_ones():
    done = run("mmx")
    assert done.returncode != 0
    assert "mmx" in done.stderr and "portable" in done.stderr
