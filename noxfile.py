"""The tests against both ends of the JAX releases that pyproject.toml allows, and the linters.

nox                             # all of it, with the Python that runs nox
nox -s newest -P 3.12           # with another one: JAX 0.11 and later need Python 3.12
nox -s lowest -- tests/numbers  # arguments for pytest in place of `-n auto`
"""

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "lowest", "newest"]


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests with the oldest JAX that is allowed, and what pip finds to go with it."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    (jax,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "jax")
    (version,) = (bound.version for bound in jax.specifier if bound.operator == ">=")
    run_tests(session, f"jax=={version}")


@nox.session
def newest(session: nox.Session) -> None:
    """The tests with the newest JAX that is allowed and that this Python can install."""
    run_tests(session)


def run_tests(session: nox.Session, *constraints: str) -> None:
    session.install(".[test]", *constraints)
    session.run("python", "-m", "pip", "list")
    session.run("pytest", *(session.posargs or ["-n", "auto"]))


@nox.session
def lint(session: nox.Session) -> None:
    """The linters, for Python and C++."""
    session.install("ruff", "clang-format")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = session.run("git", "ls-files", "cpp_ops/*.cc", "cpp_ops/*.h", external=True, silent=True)
    session.run("clang-format", "--dry-run", "--Werror", *sources.split())
