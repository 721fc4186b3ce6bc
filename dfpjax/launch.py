"""Run a program with the memory settings that make large steps fastest.

    python -m dfpjax.launch PROGRAM.py ARGUMENT …
    python -m dfpjax.launch -m MODULE ARGUMENT …
    python -m dfpjax.launch -c CODE ARGUMENT …
    python -m dfpjax.launch jupyter lab          (any command in the interpreter's folder or on PATH)
    python -m dfpjax.launch --processes=2 train.py …

`dfpjax.kernels.memory` explains the settings, and why they must be made before a process starts. The program
replaces this process, so it receives the signals and gives the exit code. One line on standard error reports
the settings. The launcher keeps settings that the environment already has. With `--allocator=default`, or the
environment variable `DFPJAX_LAUNCH=off`, it changes none.

With `--processes=N` the launcher starts the program N times, as the processes of one distributed run on this
machine. Each is pinned to a group of cores of its own, for example one process per socket, and has as many
threads. `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` in the environment are for
`jax.distributed.initialize`; `train.py` reads them. The launcher passes SIGINT and SIGTERM on, and ends with
the status of the first process that failed.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from dfpjax._ranks import PLACE, core_groups, run
from dfpjax.kernels.memory import SETTINGS, SWITCH, chosen_already, has_glibc, has_huge_pages, is_off

ALLOCATORS = ("tuned", "default")
USAGE = (
    f"usage: python -m dfpjax.launch [--allocator={{{','.join(ALLOCATORS)}}}] [--processes=N] "
    "(PROGRAM.py | -m MODULE | -c CODE | COMMAND) …"
)
_LEFT_ALONE = "the memory allocator is left alone"
_LONGEST = 40  # characters of a value in a message


def settings(environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The variables to add to an environment, and the message that reports them.

    Raises:
        TypeError: if the environment is not a mapping.
    """
    if not isinstance(environment, Mapping):
        raise TypeError(f"settings: environment must be a mapping such as os.environ, got {environment!r}")
    if is_off(environment):
        return {}, f"{SWITCH}=off: {_LEFT_ALONE}"
    if names := chosen_already(environment):
        kept = (f"{name}={_shortened(environment[name])}" for name in names)
        return {}, f"kept as they are: {', '.join(kept)}"
    if not has_glibc():
        return {}, f"not on glibc: {_LEFT_ALONE}"
    kept = "kept for the next step, in huge pages" if "LD_PRELOAD" in SETTINGS else "in huge pages"
    missing = "" if has_huge_pages() else " (this machine has switched them off)"
    return dict(SETTINGS), f"large arrays are {kept}{missing}; {SWITCH}=off prevents it"


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST else f"…{value[1 - _LONGEST :]}"


def relaunch() -> None:
    """Restart this program with the settings, or return if there is nothing to set.

    Call it on the first line of a program's main part.
    """
    added, message = settings(os.environ)
    if added:
        _become(sys.executable, sys.orig_argv[1:], {**os.environ, **added}, message)


def place() -> tuple[str, int, int] | None:
    """Address of the first process, number of processes and number of this one, for
    `jax.distributed.initialize`; None in a process that was not started with `--processes`."""
    address, processes, process = (os.environ.get(name) for name in PLACE)
    if address is None or processes is None or process is None:
        return None
    return address, int(processes), int(process)


def main() -> None:
    allocator, processes, program = parse(sys.argv[1:])
    file, arguments = command(program, interpreter_options(sys.orig_argv, len(sys.argv) - 1))
    if allocator == "default":
        # A program that calls `relaunch` itself must know of it.
        environment, message = {**os.environ, SWITCH: "off"}, _LEFT_ALONE
    else:
        added, message = settings(os.environ)
        environment = {**os.environ, **added}
    if processes is None:
        _become(file, arguments, environment, message)
    try:
        groups = core_groups(processes)
    except ValueError as error:
        _refuse(str(error))
    _report(f"{message}; {processes} processes on cores {', '.join(map(_ranges, groups))}")
    sys.exit(run([file, *arguments], environment, groups))


def parse(arguments: list[str]) -> tuple[str, int | None, list[str]]:
    """The allocator's name, the number of processes or None, and the program with its arguments.

    Ends the process with a message if the arguments are invalid.
    """
    allocator, processes, program = ALLOCATORS[0], None, list(arguments)
    while program and program[0].startswith("--"):
        option, _, value = program.pop(0).partition("=")
        if option == "--":
            break
        if option == "--help":
            variables = "\n".join(f"    {name}={value}" for name, value in SETTINGS.items())
            print(f"{USAGE}\n\n{__doc__}\nThe settings:\n\n{variables}")
            sys.exit(0)
        if option not in ("--allocator", "--processes"):
            _refuse(f"no such option: {option}\n{USAGE}")
        value = value or (program.pop(0) if program else "")
        if option == "--processes":
            if not value.isdecimal() or int(value) < 1:
                _refuse(f"--processes is {value!r}; it must be a number of at least 1")
            processes = int(value)
            continue
        allocator = value
        if allocator not in ALLOCATORS:
            _refuse(f"--allocator is {allocator!r}; it must be one of {', '.join(ALLOCATORS)}")
    if not program:
        _refuse(f"name a program to run\n{USAGE}")
    if program[0] in ("-m", "-c") and len(program) == 1:
        what = {"-m": "a module", "-c": "code"}[program[0]]
        _refuse(f"name a program to run: {what} must follow {program[0]}\n{USAGE}")
    if program[0].startswith("-") and program[0] not in ("-m", "-c", "-"):
        _refuse(f"no such option: {program[0]}; options of Python come before `-m dfpjax.launch`\n{USAGE}")
    return allocator, processes, program


def command(program: list[str], options: list[str]) -> tuple[str, list[str]]:
    """The file to execute for a program, and its arguments.

    Arguments:
        program: the arguments after the launcher's options: a Python file, `-m` and a module, `-c` and code,
            `-` for standard input, or a command's name; then the program's arguments.
        options: options for the Python interpreter.

    Ends the process with a message if there is no such program.
    """
    name, *arguments = program
    if name in ("-m", "-c", "-"):
        return sys.executable, [*options, *program]
    folder = Path(sys.executable).parent
    if Path(name).is_file() or (Path(name) / "__main__.py").is_file():
        file = name
    elif os.sep in name:
        _refuse(f"no such program: there is no file {name}")
    else:
        file = shutil.which(name, path=str(folder)) or shutil.which(name)
        if file is None:
            _refuse(f"no such program: {name} is neither a file here nor a command in {folder} or on PATH")
    if _is_for_python(Path(file), folder):
        return sys.executable, [*options, file, *arguments]
    if not os.access(file, os.X_OK):
        _refuse(f"{file} is no Python program, and may not be executed")
    if options:
        _refuse(f"{file} is not run by {sys.executable}, so it cannot have the options {' '.join(options)}")
    return file, arguments


def _is_for_python(file: Path, folder: Path) -> bool:
    """Whether the Python interpreter in `folder` must run this file, because it is not an executable of
    another kind."""
    if file.is_dir() or file.suffix == ".py":
        return True
    with file.open("rb") as stream:
        # A console script has the interpreter's path in its first line, or in the second if the path is long.
        head = stream.readline(4096) + stream.readline(4096)
    if head.startswith(b"#!"):
        return os.fsencode(folder / "python") in head or b"/env python" in head
    return not head.startswith(b"\x7fELF")


def interpreter_options(command_line: list[str], own: int) -> list[str]:
    """The options of Python, such as `-X dev`, before the launcher's name on a command line.

    Arguments:
        command_line: in the form of `sys.orig_argv`.
        own: number of arguments at its end that belong to the launcher.
    """
    *options, last = command_line[1 : len(command_line) - own]
    if not last.startswith("-") and options:  # the module's name, after its option
        last = options.pop()
    last = last.removesuffix("dfpjax.launch").removesuffix("m")
    return [*options, last] if last.strip("-") else options


def _refuse(message: str) -> NoReturn:
    sys.exit(f"dfpjax.launch: {message}")


def _report(message: str) -> None:
    print(f"dfpjax.launch: {message}", file=sys.stderr, flush=True)


def _ranges(cores: list[int]) -> str:
    """Such as 0-3,8."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in runs)


def _become(file: str, arguments: list[str], environment: Mapping[str, str], message: str) -> NoReturn:
    _report(message)
    os.execve(file, [file, *arguments], environment)


if __name__ == "__main__":
    main()
