"""The folders of cpp_ops include downwards only."""

import re
from pathlib import Path

CPP_OPS = Path(__file__).parents[2] / "cpp_ops"
BELOW = {
    "runtime": (),
    "isa": (),
    "plan": (),
    "contraction": ("runtime", "isa", "plan"),
    "passes": ("runtime", "isa"),
    "ffi": ("runtime", "isa", "plan", "contraction", "passes"),
    "python": ("runtime", "isa", "plan", "contraction", "passes", "ffi"),
    "preload": (),
    "tests": ("runtime", "isa", "plan", "contraction", "passes"),
}


def test_includes_point_downwards():
    sources = sorted([*CPP_OPS.rglob("*.h"), *CPP_OPS.rglob("*.cc")])
    assert {source.relative_to(CPP_OPS).parts[0] for source in sources} == set(BELOW)
    for source in sources:
        folder = source.relative_to(CPP_OPS).parts[0]
        for included in re.findall(r'#include "(\S+)"', source.read_text()):
            if included.startswith("xla/"):
                assert folder == "ffi", f"{source} knows XLA"
                continue
            assert (CPP_OPS / included).exists(), f"{source}: {included} is not named from cpp_ops"
            assert included.split("/")[0] in (folder, *BELOW[folder]), f"{source} includes {included}"


def test_xla_and_python_have_a_folder_each():
    for source in CPP_OPS.rglob("*.cc"):
        folder, text = source.relative_to(CPP_OPS).parts[0], source.read_text()
        assert ("nanobind" in text) <= (folder == "python"), source
        assert ("<Python.h>" in text) is False, source
