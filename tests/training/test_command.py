"""The program's command line: names of configurations that come with the package, and its own name."""

import subprocess
import sys
from pathlib import Path

import pytest

from dfpjax.training import processes
from dfpjax.training.command import with_files
from dfpjax.training.config_file import shipped_file, shipped_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [["--config=digits"], ["--config", "digits"], ["-config=digits"]])
def test_a_name_stands_for_its_file(arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    *_, last = with_files(["dfpjax-train", *arguments])
    file = Path(last.removeprefix("--config=").removeprefix("-config="))
    assert file.name == "digits.py" and (file.parent / "default.py").is_file()
    assert str(file.parents[1]) in sys.path  # `from configs import default`


@pytest.mark.parametrize("arguments", [["--config=configs/digits.py"], ["--workdir", "digits"], ["--config"]])
def test_other_arguments_stay(arguments):
    assert with_files(["train.py", *arguments]) == ["train.py", *arguments]


def test_a_file_of_that_name_comes_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").touch()
    assert with_files(["train.py", "--config=digits"]) == ["train.py", "--config=digits"]


def test_all_configurations_are_known():
    assert set(shipped_names()) == {file.stem for file in (ROOT / "configs").glob("*.py")}
    assert shipped_file("no_such") is None


def test_messages_name_the_program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/bin/dfpjax-train"])
    assert processes.program_name() == "dfpjax-train"


def test_without_the_extra_the_command_says_what_to_install():
    program = """
import sys
sys.modules["absl"] = None
from dfpjax.commands.train import main
main()
"""
    environment = {"DFPJAX_LAUNCH": "off", "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("dfpjax-train: ") and 'pip install "dfpjax[train]"' in done.stderr
