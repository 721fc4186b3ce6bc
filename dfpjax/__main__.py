"""The command `dfpjax`, also `python -m dfpjax`."""

import argparse
import sys
from collections.abc import Sequence

import dfpjax
from dfpjax.commands import CommandError, bench, explain, info


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of the commands; wrong arguments end the process with status 2, other errors with 1."""
    parser = argparse.ArgumentParser(
        prog="dfpjax",
        description="Mixed-precision training for JAX on CPUs in 16-bit dynamic fixed point.",
        epilog="`dfpjax-train` trains a model, `python -m dfpjax.launch PROGRAM.py` starts any program with"
        " the memory settings that make large steps fastest.",
    )
    parser.add_argument("--version", action="version", version=f"dfpjax {dfpjax.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (info, explain, bench):
        command.add_to(commands)
    chosen = parser.parse_args(arguments)
    try:
        chosen.run(chosen)
    except CommandError as error:
        sys.exit(f"dfpjax: {error}")


if __name__ == "__main__":
    main()
