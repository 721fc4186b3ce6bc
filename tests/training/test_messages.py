"""For every faulty command, `train.py` says in one line what is wrong, with the path and what to do."""

import errno
import io
import os
import signal
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from rich.console import Console
from tiny import MODEL

from dfpjax.training import CheckpointError, Report, Result, Stopped, check_config_file, train
from dfpjax.training.program import Program
from dfpjax.training.workdir import writing

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))


@pytest.fixture
def run(monkeypatch, capsys, data_dir):
    """A function that runs `train.py` with arguments in this process and returns exit status and message."""
    from dfpjax.training import command as script  # It defines flags, so it is imported here alone.

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    saved = flagsaver.save_flag_values()

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            script.main(script.parse_flags(sys.argv))
        except SystemExit as end:
            if isinstance(end.code, str):
                return 1, end.code
            return end.code, capsys.readouterr().err.strip()
        return 0, ""

    yield run
    flagsaver.restore_flag_values(saved)
    flags.FLAGS.unparse_flags()


RESULT = Result(
    precision="float32",
    seed=0,
    test_accuracy=0.5,
    test_top5_accuracy=0.5,
    test_loss=1.0,
    images_per_second=1.0,
    seconds=1.0,
)

DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FILE does not exist; give a configuration file such as configs/digits.py"),
        ("def get_config(:\n  pass\n", "FILE, line 1: invalid syntax"),
        ("import no_such_module\n", "FILE, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\n", "FILE defines no function get_config(); see configs/digits.py for one that does"),
        ("def get_config():\n    return 1 / 0\n", "FILE, line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    raise KeyError\n", "FILE, line 2: KeyError"),
        (
            "def get_config():\n    return 3\n",
            "FILE: get_config() returned a value of type int; it must return an ml_collections.ConfigDict",
        ),
        (
            "from configs import default\ndef get_config():\n    c = default.get_config()\n    c.epoch = 3\n",
            'FILE, line 4: AttributeError: Key "epoch" does not exist and cannot be added since the config is'
            " locked",
        ),
        (
            "from configs import default\ndef get_config():\n    default.get_config().epochs = 'x'\n",
            "FILE, line 3: TypeError: ",
        ),
    ],
)
def test_an_unusable_configuration_file_is_named_with_its_line(run, tmp_path, content, message):
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    for arguments in ([f"--config={file}"], ["--config", str(file)]):
        status, said = run(*arguments)
        assert status == 1
        assert said.startswith("train.py: " + message.replace("FILE", str(file)))
        assert "\n" not in said


def test_a_configuration_file_takes_a_text_after_a_colon(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config(epochs):\n    return {'epochs': int(epochs)}\n")
    check_config_file(f"{file}:3")
    with pytest.raises(ValueError, match=r"mine.py, line 2: ValueError: invalid literal"):
        check_config_file(f"{file}:many")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs"], "train.py: configs is a directory; give a configuration file such as"),
        (["--config="], "train.py: the path of the configuration file is empty; give a file such as"),
        ([DIGITS, "--workdir=FILE"], "train.py: cannot write FILE: it is not a directory; give --workdir a"),
        ([DIGITS, "--workdir=FILE/new"], "train.py: cannot write FILE/new: Not a directory; give --workdir"),
        ([DIGITS, "--workdir=/proc/new"], "train.py: cannot write /proc/new: "),
        ([DIGITS, "--workdir="], "train.py: --workdir is empty; give a path, or leave it out"),
        ([DIGITS, "--init_from="], "train.py: --init_from is empty; give a path, or leave it out"),
        ([DIGITS, "--eval_only", "--workdir=FILE.no"], "train.py: --workdir=FILE.no does not exist; --eval"),
        ([DIGITS, "--eval_only", "--workdir=FILE"], "train.py: --workdir=FILE is not a directory; --eval"),
        (
            [DIGITS, "--eval_only", "--workdir=/proc"],
            "/proc/checkpoints/seed_0 does not exist; give WO",
        ),
        ([DIGITS, "--eval_only", "--checkpoint=FILE.no"], "train.py: FILE.no does not exist; give WORKDIR/w"),
        ([DIGITS, "--eval_only", "--checkpoint=FILE"], "train.py: FILE holds no weights; give WORKDIR/w"),
        ([DIGITS, "--init_from=FILE.no"], "train.py: FILE.no does not exist; give WORKDIR/weights/seed_N"),
        (
            [DIGITS, "--config.data_dir=FILE"],
            "train.py: cannot write the digits into FILE: FILE/downloads: Not a directory; set data_dir to",
        ),
        ([DIGITS, "--config.dataset=tfds:../x"], "train.py: '../x' is not a name that tensorflow-datasets"),
        ([DIGITS, "--config.train_split=train[:0]"], "train.py: the split 'train[:0]' has no images"),
        ([DIGITS, "--config.test_split=test[:0]"], "train.py: the split 'test[:0]' has no images"),
        ([DIGITS, "--config.train_split=train[:"], "train.py: Error parsing split 'train[:'."),
        (
            ["--config=configs/fake_imagenet.py", "--config.test_split=train[:0]"],
            "train.py: the split 'train[:0]' has no images",
        ),
        ([DIGITS, "--coordinator=a:1"], "train.py: --coordinator is for --distributed"),
        (
            [DIGITS, "--distributed", "--coordinator=a:1", "--processes=2", "--process_id=2"],
            "train.py: --process_id is 2 and --processes is 2; processes are numbered from 0",
        ),
        ([DIGITS, "--config.mesh=99"], "train.py: mesh is (99,); it must be at most ("),
        (
            [DIGITS, "--config.gradient_dtype=int8"],
            "gradient_dtype is 'int8'; it must be one of float32, dfp16",
        ),
        ([DIGITS, "--config.learning_rate=inf"], "learning_rate is inf; it must be above 0 and finite"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, tmp_path, arguments, message):
    file = tmp_path / "file"
    file.touch()
    status, said = run(*(argument.replace("FILE", str(file)) for argument in arguments))
    assert status == 1
    assert message.replace("FILE", str(file)) in said
    assert "\n" not in said


def test_a_full_disk_is_an_error_that_says_so(tmp_path):
    with Report(Console(file=io.StringIO()), tmp_path) as report:
        (tmp_path / "result.md").symlink_to("/dev/full")
        with pytest.raises(CheckpointError, match="No space left on device; free some space and"):
            report.finish([RESULT])
    with pytest.raises(CheckpointError, match=f"cannot write {tmp_path}: No space left"), writing(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_second_ctrl_c_ends_in_one_line(run, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dfpjax.training.command.train", interrupted)
    assert run(DIGITS) == (130, "train.py: stopped at once by SIGINT")


@pytest.mark.parametrize("step", [0, 3])
def test_what_is_saved_at_ctrl_c_is_said(run, monkeypatch, tmp_path, step):
    def stopped(*arguments, stop, **options):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        raise Stopped(seed=5, step=step)

    monkeypatch.setattr("dfpjax.training.command.train", stopped)
    status, said = run(DIGITS, f"--workdir={tmp_path}")
    assert status == 130
    outcome = {
        0: "before the first step of seed 5, of which nothing was trained: the same command starts it anew",
        3: "after step 3 of seed 5, saved: the same command goes on from there",
    }
    assert said.splitlines()[-1] == f"train.py: stopped by SIGINT {outcome[step]}"


def test_a_run_stopped_while_it_compiles_starts_over(make_config, monkeypatch, tmp_path):
    """A run first checks whether to stop right after the compilation."""
    monkeypatch.setattr(Program, "compile", lambda self: 0.0)
    for changes in ({}, {}, {"batch_size": 16}):
        console = Console(file=io.StringIO(), width=120)
        with (
            pytest.raises(Stopped, match="before the first step of seed 0") as stopped,
            Report(console, tmp_path) as report,
        ):
            train(make_config(model=MODEL, **changes), report, stop=lambda: True)
        assert stopped.value.step == 0
        assert not list(tmp_path.glob("checkpoints/seed_0/*"))
        assert not list(tmp_path.glob("metrics.jsonl"))
        assert "goes on" not in console.file.getvalue()
