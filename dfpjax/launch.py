"""Run a Python program with the memory settings that large steps are fastest with.

    python -m dfpjax.launch PROGRAM.py ARGUMENT …
    python -m dfpjax.launch -m MODULE ARGUMENT …

See `dfpjax.kernels.memory` for what they are, and why they have to be made before a process starts. The
program takes this one's place: signals and the exit code are its own. One line on the standard error says
what was set. Settings that the environment has already are kept; `--allocator=default`, or the environment
variable `DFPJAX_LAUNCH=off`, changes nothing.
"""

import os
import sys
from collections.abc import Mapping

from dfpjax.kernels.memory import SETTINGS, SWITCH, chosen_already, has_glibc, has_huge_pages, is_off

ALLOCATORS = ("tuned", "default")
USAGE = f"usage: python -m dfpjax.launch [--allocator={{{','.join(ALLOCATORS)}}}] (PROGRAM.py | -m MODULE) …"


def settings(environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The variables to add to an environment, and what to tell of them."""
    if is_off(environment):
        return {}, f"{SWITCH}=off: the memory allocator is left alone"
    if names := chosen_already(environment):
        return {}, f"kept as they are: {', '.join(f'{name}={environment[name]}' for name in names)}"
    if not has_glibc():
        return {}, "not on glibc: the memory allocator is left alone"
    text = " ".join(f"{name}={value}" for name, value in SETTINGS.items())
    how = "kept between steps, in huge pages" if "LD_PRELOAD" in SETTINGS else "in huge pages"
    off = "" if has_huge_pages() else " (but this machine has transparent huge pages switched off)"
    return dict(SETTINGS), f"large arrays are {how}{off}: {text}; {SWITCH}=off for none of this"


def relaunch() -> None:
    """Start this program again with the settings; return if there is nothing to set.

    For the first line of a program's main part.
    """
    added, message = settings(os.environ)
    if added:
        _become(sys.orig_argv[1:], {**os.environ, **added}, message)


def main() -> None:
    allocator, program = parse(sys.argv[1:])
    if allocator == "default":
        # A program that calls `relaunch` itself must know of it.
        environment, message = {**os.environ, SWITCH: "off"}, "the memory allocator is left alone"
    else:
        added, message = settings(os.environ)
        environment = {**os.environ, **added}
    # Options of the interpreter, such as `-X dev`, come before this module's name.
    options = sys.orig_argv[1 : -len(sys.argv[1:])]
    while options and options.pop() not in ("-m", "-mdfpjax.launch"):
        pass
    _become([*options, *program], environment, message)


def parse(arguments: list[str]) -> tuple[str, list[str]]:
    """The allocator's name, and the program with its own arguments.

    Ends the process with a message if they make no sense.
    """
    allocator, program = ALLOCATORS[0], list(arguments)
    while program and program[0].startswith("--"):
        option, _, value = program.pop(0).partition("=")
        if option == "--help":
            print(f"{USAGE}\n\n{__doc__}")
            sys.exit(0)
        if option != "--allocator":
            sys.exit(f"dfpjax.launch: no such option: {option}\n{USAGE}")
        allocator = value or (program.pop(0) if program else "")
        if allocator not in ALLOCATORS:
            sys.exit(
                f"dfpjax.launch: --allocator is {allocator!r}; it must be one of {', '.join(ALLOCATORS)}"
            )
    if not program or (program[0].startswith("-") and program[0] != "-m") or program == ["-m"]:
        sys.exit(f"dfpjax.launch: name a program to run\n{USAGE}")
    return allocator, program


def _become(arguments: list[str], environment: Mapping[str, str], message: str) -> None:
    print(f"dfpjax.launch: {message}", file=sys.stderr, flush=True)
    os.execve(sys.executable, [sys.executable, *arguments], environment)


if __name__ == "__main__":
    main()
