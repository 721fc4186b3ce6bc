"""The public API is typed: pyright finds nothing wrong in it, nor in a program that uses it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_pyright_is_content():
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")
    if pyright is None:
        pytest.skip('pyright is not installed: pip install "dfpjax[test]"')
    done = subprocess.run(
        [pyright, "--pythonpath", sys.executable], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout


def test_the_package_is_marked_as_typed():
    assert (ROOT / "dfpjax" / "py.typed").exists()
