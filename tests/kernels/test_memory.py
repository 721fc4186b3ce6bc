"""The launcher sets only the settings that it reports, and the library reports once what is missing."""

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
    """Run Python in an environment whose only allocator settings are those given."""
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


@needs_glibc
def test_one_short_line_says_what_was_done():
    _, message = launch.settings({})
    assert message.startswith("large arrays are ") and "DFPJAX_LAUNCH=off" in message
    assert len(message) < 100 and "\n" not in message
    _, message = launch.settings({"LD_PRELOAD": f"/{'long/' * 50}libjemalloc.so.2"})
    assert message.endswith("libjemalloc.so.2") and len(message) < 100


@pytest.mark.parametrize("what", (["-m", "platform"], ["-c", "import platform; print(platform.platform())"]))
def test_a_module_and_code_are_programs_too(what):
    done = run("-m", "dfpjax.launch", *what)
    assert done.returncode == 0 and "Linux" in done.stdout


def test_a_command_is_found_on_the_path_and_gets_its_arguments(tmp_path):
    write(tmp_path / "some-tool", '#!/bin/sh\necho "$@" "$GLIBC_TUNABLES"; exit 5\n')
    done = run("-m", "dfpjax.launch", "some-tool", "lab", "-m", "x", PATH=f"{tmp_path}:{os.environ['PATH']}")
    tunables = memory.SETTINGS["GLIBC_TUNABLES"] if memory.has_glibc() else ""
    assert (done.stdout, done.returncode) == (f"lab -m x {tunables}\n", 5)


def write(file: Path, text: str) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    """The folder of an interpreter that is not on PATH; the working directory is empty."""
    folder, here = tmp_path / "environment" / "bin", tmp_path / "here"
    folder.mkdir(parents=True)
    here.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(here)
    return folder


def test_a_console_script_beside_the_interpreter_comes_before_one_on_the_path(environment, tmp_path):
    beside = write(environment / "jupyter", f"#!{environment}/python3.11\nimport jupyter\n")
    write(tmp_path / "bin" / "jupyter", "#!/bin/sh\n")
    options = ["-X", "dev"]
    assert launch.command(["jupyter", "lab"], options) == (sys.executable, [*options, beside, "lab"])
    # pip writes such a script if the interpreter's path is too long for the first line.
    long = write(environment / "long", f"#!/bin/sh\n'''exec' {environment}/python \"$0\" \"$@\"\n' '''\n")
    assert launch.command(["long"], []) == (sys.executable, [long])


def test_what_another_interpreter_runs_is_left_to_it(environment, tmp_path):
    other = write(tmp_path / "bin" / "tool", "#!/other/bin/python\n")
    assert launch.command(["tool", "-m"], []) == (other, ["-m"])
    assert launch.command([other], []) == (other, [])
    with pytest.raises(SystemExit, match="cannot have the options -X dev"):
        launch.command(["tool"], ["-X", "dev"])


def test_files_and_folders_with_python_in_them_are_programs(environment):
    for text in ("", "#!/usr/bin/env python3\n"):
        program = write(Path("program").absolute(), text)
        for name in ("program", program):
            assert launch.command([name, "a"], ["-O"]) == (sys.executable, ["-O", name, "a"])
    write(Path("folder/__main__.py"), "")
    assert launch.command(["folder"], []) == (sys.executable, ["folder"])
    assert launch.command(["-"], []) == (sys.executable, ["-"])


def test_what_is_not_there_is_named(environment):
    with pytest.raises(SystemExit, match=r"jupytr is neither a file here nor a command in .* or on PATH"):
        launch.command(["jupytr", "lab"], [])
    with pytest.raises(SystemExit, match=r"there is no file \./train\.py"):
        launch.command(["./train.py"], [])
    Path("script").write_text("#!/bin/sh\n")
    with pytest.raises(SystemExit, match="script is no Python program, and may not be executed"):
        launch.command(["script"], [])


@pytest.mark.parametrize(
    ("before", "options"),
    (
        ("-m dfpjax.launch", []),
        ("-mdfpjax.launch", []),
        ("-X dev -m dfpjax.launch", ["-X", "dev"]),
        ("-X dev -Im dfpjax.launch", ["-X", "dev", "-I"]),
        ("-Wignore -OOmdfpjax.launch", ["-Wignore", "-OO"]),
    ),
)
def test_the_interpreter_s_options_are_told_from_the_program_s(before, options):
    for own in (["jupyter"], ["-m", "dfpjax.launch", "-X", "a"]):
        assert launch.interpreter_options(["python", *before.split(), *own], len(own)) == options


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
        (["-m"], "name a program to run: a module must follow -m"),
        (["-c"], "name a program to run: code must follow -c"),
        (["--"], "name a program to run"),
        (["-x", "p.py"], "no such option: -x; options of Python come before"),
        (["--nope", "p.py"], "no such option: --nope"),
        (["--allocator=big", "p.py"], "--allocator is 'big'; it must be one of tuned, default"),
    ),
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        launch.parse(arguments)


@pytest.mark.slow
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


@pytest.mark.slow
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
