"""The pages that have figures, and how these are replaced."""

import re
from pathlib import Path

from benchmarks.common.environment import ROOT
from benchmarks.documents.figures import FIGURES
from benchmarks.documents.tables import TABLES

_MARK = re.compile(r"<!-- (?P<kind>figure|tables): (?P<name>\w+) -->(?P<text>.*?)<!-- end -->", re.DOTALL)


def pages() -> list[Path]:
    """README.md and the pages of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def names(text: str) -> list[str]:
    """The names of the figures and tables that a page asks for."""
    return [match["name"] for match in _MARK.finditer(text)]


def updated(text: str) -> tuple[str, list[str]]:
    """The page with its figures, and the names of those that have changed.

    Raises:
        KeyError: if a name is none of `FIGURES` or `TABLES`.
    """
    changed = []

    def replace(match: re.Match) -> str:
        name = match["name"]
        is_figure = match["kind"] == "figure"
        new = FIGURES[name]() if is_figure else f"\n\n{TABLES[name]().strip()}\n\n"
        if new != match["text"]:
            changed.append(name)
        return f"<!-- {match['kind']}: {name} -->{new}<!-- end -->"

    return _MARK.sub(replace, text), changed
