"""The fenced blocks of code in a Markdown page."""

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block."""

    language: str
    code: str
    line: int
    """Of the page, of its first line of code."""

    reason: str | None
    """Why it cannot run, from `<!-- not run: REASON -->` or `<!-- command: NAME -->` in the line above."""


def blocks(page: Path) -> list[Block]:
    """All blocks of a page."""
    text = page.read_text()
    return [
        Block(
            language=match["language"],
            code=match["code"],
            line=text.count("\n", 0, match.start("code")) + 1,
            reason=_reason(match["mark"] or ""),
        )
        for match in _FENCE.finditer(text)
    ]


def _reason(mark: str) -> str | None:
    if mark.startswith("not run: "):
        return mark.removeprefix("not run: ")
    return "the gate, .ci/run, runs it in a fresh environment" if mark.startswith("command: ") else None
