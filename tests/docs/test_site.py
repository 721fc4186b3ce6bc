"""The documentation site builds without a warning, and README's links lead somewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dfpjax

ROOT = Path(__file__).parents[2]


def test_the_site_builds(tmp_path):
    mkdocs = shutil.which("mkdocs", path=str(Path(sys.executable).parent)) or shutil.which("mkdocs")
    if mkdocs is None:
        pytest.skip('mkdocs is not installed: pip install "dfpjax[docs]"')
    command = [mkdocs, "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    for page in (
        "index.html",
        "tutorial/index.html",
        "results/speed/index.html",
        "reference/transform/index.html",
    ):
        assert (tmp_path / "site" / page).is_file()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_repository_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert missing == []


def test_the_changelog_has_this_version():
    assert f"## {dfpjax.__version__}" in (ROOT / "CHANGELOG.md").read_text()
