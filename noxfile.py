"""Sessions: the tests with the oldest and the newest JAX that pyproject.toml allows, the linters, the site,
and the kernels on aarch64.

nox                             # all sessions
nox -s lowest -- tests/numbers  # pytest arguments that replace `-n auto`
nox -s newest -P 3.12           # with a Python of your choice
nox -s docs                     # the documentation site, in site/
nox -s aarch64                  # needs aarch64-linux-gnu-g++ and qemu-aarch64

JAX 0.11 and later need Python 3.12. So `newest` uses the newest Python that `.ci/newer_python` finds on PATH
or in pyenv, independently of the Python that runs nox. If there is none, it uses the Python that runs nox; on
Python 3.11 this gives JAX 0.10.1, and a warning. `-P PATH` chooses a Python in any place.
"""

import subprocess
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "lowest", "newest"]


def newer_python() -> str | None:
    """The path of a Python that supports the newest JAX, or None if there is none."""
    script = Path(__file__).parent / ".ci" / "newer_python"
    found = subprocess.run([script], text=True, capture_output=True)
    return found.stdout.strip() if found.returncode == 0 else None


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests with the oldest JAX that pyproject.toml allows, and packages that fit it."""
    jax = supported_jax()
    (version,) = (bound.version for bound in jax.specifier if bound.operator == ">=")
    if not jax.specifier.contains(version):
        session.error(f"pyproject.toml leaves out the release that it begins with: {jax}")
    run_tests(session, f"jax=={version}")


@nox.session(python=newer_python())
def newest(session: nox.Session) -> None:
    """The tests with the newest JAX that pyproject.toml allows and the Python supports."""
    if session.python is None and sys.version_info < (3, 12):
        session.warn("no Python newer than 3.11 found, so these are not the tests with the newest JAX")
    run_tests(session, str(supported_jax()))


def supported_jax() -> Requirement:
    project = nox.project.load_toml("pyproject.toml")["project"]
    (jax,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "jax")
    return jax


def run_tests(session: nox.Session, *constraints: str) -> None:
    session.install(".[test]", *constraints)
    session.run("python", "-m", "pip", "list")
    session.run("pytest", *(session.posargs or ["-n", "auto", "-m", ""]))


@nox.session
def lint(session: nox.Session) -> None:
    """The linters for Python and C++, and the types of the public API."""
    session.install(".[train]", "ruff", "clang-format", "pyright[nodejs]")
    session.run("pyright", "--pythonpath", f"{session.bin}/python")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = session.run("git", "ls-files", "cpp_ops/*.cc", "cpp_ops/*.h", external=True, silent=True)
    session.run("clang-format", "--dry-run", "--Werror", *sources.split())


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site; warnings are errors."""
    session.install("mkdocs-material>=9.5", "mkdocstrings[python]>=0.27", "ruff")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session(venv_backend="none")
def aarch64(session: nox.Session) -> None:
    """The kernels' own tests, cross-compiled for aarch64, under qemu-user: `.ci/aarch64`."""
    session.run("bash", ".ci/aarch64", *session.posargs, external=True)
