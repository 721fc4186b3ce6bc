"""The launcher sets what it says and nothing else, and the library says once what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfpjax import launch
from dfpjax.kernels import memory

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys
print(sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), os.environ.get("DFPJAX_LAUNCH"), sys.flags.dev_mode)
sys.exit(7)
"""

needs_glibc = pytest.mark.skipif(not memory.has_glibc(), reason="needs glibc")


@pytest.fixture
def program(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return str(file)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Of Python, in an environment that says nothing of the allocator but what is given."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in memory.chosen_already(os.environ)
    }
    inherited.pop(memory.SWITCH, None)
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True)


@needs_glibc
def test_the_program_gets_the_settings_its_arguments_and_the_interpreter_s_options(program):
    done = run("-X", "dev", "-m", "dfpjax.launch", program, "--allocator=default", "b")
    tunables = memory.SETTINGS["GLIBC_TUNABLES"]
    assert done.stdout.split("\n")[0] == f"['--allocator=default', 'b'] {tunables} None True"
    assert done.returncode == 7
    lines = [line for line in done.stderr.splitlines() if line.startswith("dfpjax.launch: ")]
    assert len(lines) == 1 and tunables in lines[0]


def test_a_module_is_a_program_too():
    done = run("-m", "dfpjax.launch", "-m", "platform")
    assert done.returncode == 0 and "Linux" in done.stdout


@pytest.mark.parametrize("option", (["--allocator=default"], ["--allocator", "default"]))
def test_nothing_is_set_where_that_is_asked_for(program, option):
    assert run("-m", "dfpjax.launch", *option, program).stdout == "[] None off False\n"


def test_nothing_is_set_where_the_environment_says_so(program):
    done = run("-m", "dfpjax.launch", program, DFPJAX_LAUNCH="off")
    assert done.stdout == "[] None off False\n"
    assert "DFPJAX_LAUNCH=off" in done.stderr


def test_settings_of_the_user_s_are_kept(program):
    own = "glibc.malloc.arena_max=2"
    done = run("-m", "dfpjax.launch", program, GLIBC_TUNABLES=own)
    assert done.stdout == f"[] {own} None False\n"
    assert f"kept as they are: GLIBC_TUNABLES={own}" in done.stderr
    assert launch.settings({"LD_PRELOAD": "libjemalloc.so.2"})[0] == {}


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(launch, "has_glibc", lambda: False)
    assert launch.settings({}) == ({}, "not on glibc: the memory allocator is left alone")


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ([], "name a program to run"),
        (["-m"], "name a program to run"),
        (["--nope", "p.py"], "no such option: --nope"),
        (["--allocator=big", "p.py"], "--allocator is 'big'; it must be one of tuned, default"),
    ),
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        launch.parse(arguments)


@needs_glibc
def test_a_program_that_launches_itself_does_so_once(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(f"from dfpjax.launch import relaunch\nrelaunch()\n{PROGRAM}")
    done = run(str(file), "a", PYTHONPATH=str(ROOT))
    assert done.stdout == f"['a'] {memory.SETTINGS['GLIBC_TUNABLES']} None False\n"
    assert done.stderr.count("dfpjax.launch: ") == 1
    assert run(str(file), DFPJAX_LAUNCH="off", PYTHONPATH=str(ROOT)).stderr == ""


LARGE_AND_SMALL = """
import jax, jax.numpy as jnp, dfpjax
def dot(rows):
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, 512), (512, 256))]
    return jax.jit(dfpjax.mixed_precision(jnp.dot)).lower(*operands)
dot(1024), dot(16384), dot(32768)
"""


@needs_glibc
def test_the_library_says_once_what_is_missing(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(LARGE_AND_SMALL)
    done = run(str(file), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("python -m dfpjax.launch PROGRAM") == 1
    for quiet in ({"DFPJAX_LAUNCH": "off"}, memory.SETTINGS):
        assert "dfpjax.launch" not in run(str(file), PYTHONPATH=str(ROOT), **quiet).stderr


def test_small_operands_say_nothing(monkeypatch):
    monkeypatch.setattr(memory, "_hint_once", lambda: pytest.fail("said something"))
    memory.hint(memory.LARGE - 1)
