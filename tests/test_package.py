"""The installed package: import, version, documentation and extras."""

import importlib
import importlib.metadata
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dfpjax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def import_error(checkout: Path) -> str:
    """Python's error output when it imports a checkout without site-packages."""
    command = [sys.executable, "-S", "-c", "import dfpjax"]
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


@pytest.fixture
def checkout(tmp_path) -> Path:
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "dfpjax", root / "dfpjax", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return root


def test_an_unbuilt_checkout_says_how_to_build_it(checkout):
    (checkout / "pyproject.toml").touch()
    message = import_error(checkout)
    assert "ImportError: dfpjax's compiled extension, dfpjax._native, is not built for this Python" in message
    assert f"{sys.executable} -m pip install {checkout}\n" in message and "circular" not in message


def test_a_package_built_for_another_python_says_so(checkout):
    (checkout / "dfpjax" / "_native.cpython-38-x86_64-linux-gnu.so").touch()
    message = import_error(checkout)
    assert "there is _native.cpython-38-x86_64-linux-gnu.so, which another Python loads" in message
    assert f"{sys.executable} -m pip install --force-reinstall dfpjax\n" in message


def test_the_version_has_one_source():
    assert dfpjax.__version__ == importlib.metadata.version("dfpjax")
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["scikit-build"]["metadata"]["version"]["input"] == "dfpjax/__init__.py"


def test_every_module_that_tools_find_imports():
    """Tools that document or inspect packages import all modules in this way, and stop at the first that
    fails."""

    def fail(name: str) -> None:
        pytest.fail(f"{name} does not import")

    names = {module.name for module in pkgutil.walk_packages(dfpjax.__path__, "dfpjax.", onerror=fail)}
    for name in names:
        importlib.import_module(name)
    assert {"dfpjax.launch", "dfpjax.training.loop", "dfpjax._native"} <= names


def test_the_extras_hold_what_their_uses_need():
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["export"] == ["flatbuffers"] and extras["safetensors"] == ["safetensors"]
    assert "dfpjax[docs,export,safetensors,train]" in extras["test"]
    assert {"flax", "optax"} <= set(extras["train"])


def test_the_wheel_has_the_configurations():
    packages = PROJECT["tool"]["scikit-build"]["wheel"]["packages"]
    assert packages == {"dfpjax": "dfpjax", "dfpjax/recipes/configs": "configs"}


def test_the_readme_on_a_package_index_has_no_link_into_the_repository():
    """What the build does with the README, `tool.hatch.metadata.hooks.fancy-pypi-readme`."""
    text = (ROOT / "README.md").read_text()
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links and all(link.startswith("https://") for link in links)
    assert "Tutorial (`docs/tutorial.md`)" in text
