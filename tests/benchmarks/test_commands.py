"""Every benchmark runs under the name that documents give."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
COMMANDS = sorted(
    {
        module
        for document in DOCUMENTS
        for module in re.findall(r"python -m (benchmarks[.\w]*\w)", document.read_text())
    }
)


@pytest.mark.parametrize("module", COMMANDS)
def test_command_exists(module):
    spec = importlib.util.find_spec(module)
    assert spec is not None
    if spec.submodule_search_locations:
        assert importlib.util.find_spec(f"{module}.__main__") is not None


def test_documents_name_commands():
    assert {"benchmarks.kernels", "benchmarks.train_step", "benchmarks.parity"} <= set(COMMANDS)
