"""The figures in README.md and docs are those of docs/results."""

import re
from pathlib import Path

import pytest

from benchmarks.documents.figures import FIGURES
from benchmarks.documents.pages import names, pages, updated
from benchmarks.documents.tables import TABLES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_the_figures_of_the_results(page):
    _, changed = updated(page.read_text())
    assert changed == [], "python -m benchmarks.documents writes the figures of docs/results"


def test_every_figure_is_used():
    used = {name for page in pages() for name in names(page.read_text())}
    assert used == {*FIGURES, *TABLES}


def test_marks_are_complete():
    """A mark without an end, or of another form, would never be replaced."""
    for page in pages():
        text = page.read_text()
        marks = len(re.findall(r"<!--\s*(?:figure|tables)\b", text))
        assert marks == len(names(text)) == len(re.findall(r"<!-- end -->", text)), page


def test_no_line_begins_with_a_figure():
    """Markdown would take it for a block of HTML, and begin a new paragraph."""
    lines = [line for page in pages() for line in page.read_text().splitlines()]
    assert not [line for line in lines if line.startswith("<!-- figure")]


def test_what_stands_between_marks_is_replaced(monkeypatch):
    monkeypatch.setitem(FIGURES, "machine", lambda: "NEW")
    monkeypatch.setitem(TABLES, "kernels", lambda: "| new |")
    text = "on <!-- figure: machine -->old<!-- end -->.\n\n<!-- tables: kernels -->\nold\n<!-- end -->\n"
    new, changed = updated(text)
    assert changed == ["machine", "kernels"]
    assert new == (
        "on <!-- figure: machine -->NEW<!-- end -->.\n\n<!-- tables: kernels -->\n\n| new |\n\n<!-- end -->\n"
    )
    assert updated(new) == (new, [])
