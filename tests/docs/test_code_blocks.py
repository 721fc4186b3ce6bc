"""Every block of code in README.md, CONTRIBUTING.md and docs runs, or says why it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import Block, blocks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = ("text", "")  # what programs print, and formulas


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shells() -> list:
    return [
        pytest.param(block, id=f"{name(page)}:{block.line}")
        for page in PAGES
        for block in blocks(page)
        if block.language == "sh"
    ]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=name
)
def test_python_blocks_run_one_after_the_other(page, tmp_path):
    lines: list[str] = []
    for block in blocks(page):
        if block.language != "python":
            continue
        if block.reason is not None:
            print(f"{name(page)}:{block.line} does not run: {block.reason}")
            continue
        lines += [""] * (block.line - 1 - len(lines))  # so that an error has the page's line number
        lines += block.code.splitlines()
    program = tmp_path / page.with_suffix(".py").name
    program.write_text("\n".join(lines) + "\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DFPJAX_LAUNCH": "off"}
    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{done.stderr}\n(line numbers are those of {name(page)})"


@pytest.mark.parametrize("block", shells())
def test_shell_blocks_run(block: Block, tmp_path):
    if block.reason is not None:
        pytest.skip(block.reason)
    wrapper = tmp_path / "dfpjax"  # in a checkout that is not installed there is no console script
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m dfpjax "$@"\n')
    wrapper.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DFPJAX_LAUNCH": "off", "PATH": path}
    command = ["bash", "-euo", "pipefail", "-c", block.code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_of_a_known_language(page):
    assert {block.language for block in blocks(page)} <= {"python", "sh", *TEXT}


def test_the_readme_is_a_front_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "<!-- command: train -->\n```sh" in text and "<!-- command: test -->\n```sh" in text
