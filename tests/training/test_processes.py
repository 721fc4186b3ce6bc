"""Runs of several processes, on 127.0.0.1."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from forked import start_script
from tiny import MODEL

from dfpjax._ranks import PLACE
from dfpjax.training.weights import checkpoint_steps

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# Float32, so that what one process computes and what several do differ by rounding alone.
SMALL = (
    f"--config.model={MODEL}",
    "--config.precision=float32",
    "--config.train_split=train[:128]",
    "--config.test_split=test[:50]",
    "--config.batch_size=32",
    "--config.epochs=2",
    "--config.checkpoint_every=2",
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(processes: int, outputs: Path, *arguments: str, of_each=lambda process: ()) -> list:
    """Start the processes of a run. `of_each` gives arguments that differ."""
    port = free_port()
    started = []
    for process in range(processes):
        folder = outputs / str(process)
        folder.mkdir(parents=True)
        addresses = (f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process_id={process}")
        own = (*arguments, "--distributed", *addresses, *of_each(process))
        started.append(start_script(*own, outputs=folder))
    return started


def ends(started: list, outputs: Path, timeout: float = 400) -> list[tuple[int, str]]:
    """The exit status and the errors of each process, which must end within so many seconds."""
    deadline = time.monotonic() + timeout
    for process in started:
        process.join(timeout=max(0, deadline - time.monotonic()))
    statuses = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert None not in statuses, "still running"
    return [
        (status, (outputs / str(process) / "stderr").read_text()) for process, status in enumerate(statuses)
    ]


def run(processes: int, outputs: Path, *arguments: str, of_each=lambda process: ()) -> list[tuple[int, str]]:
    return ends(start(processes, outputs, *arguments, of_each=of_each), outputs)


def losses(workdir: Path) -> np.ndarray:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([[line["epoch"], line["train_loss"], line["test_loss"]] for line in lines])


def in_slurm(process: int, job: int) -> dict[str, str]:
    """What srun sets, as far as JAX reads it."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
    }


def in_open_mpi(process: int, job: int) -> dict[str, str]:
    return {
        "OMPI_MCA_orte_hnp_uri": f"{job * 65536}.0;tcp://127.0.0.1:{job}",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(process),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
    }


def launched(process: int, job: int) -> dict[str, str]:
    return dict(zip(PLACE, (f"127.0.0.1:{job}", "2", str(process)), strict=True))


@pytest.fixture(scope="module")
def small(data_dir):
    return (*SMALL, f"--config.data_dir={data_dir}")


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory) -> np.ndarray:
    """The losses of one process."""
    workdir = tmp_path_factory.mktemp("alone")
    process = start_script(*small, f"--workdir={workdir}", outputs=workdir)
    process.join(timeout=400)
    assert process.exitcode == 0, (workdir / "stderr").read_text()
    return losses(workdir)


def test_an_interrupted_run_of_two_processes_loses_nothing(small, alone, tmp_path):
    """The second process is killed; the first ends and says why; the same command goes on; another one, in
    another number of processes, finds nothing left to do."""
    workdir = tmp_path / "workdir"
    arguments = (*small, f"--workdir={workdir}")
    started = start(2, tmp_path / "first", *arguments)
    while not (checkpoint_steps(workdir / "checkpoints" / "seed_0")):
        assert started[0].is_alive(), (tmp_path / "first" / "0" / "stderr").read_text()
        time.sleep(0.01)
    os.kill(started[1].pid, signal.SIGKILL)
    (status, errors), (killed, _) = ends(started, tmp_path / "first", timeout=60)
    assert killed == -signal.SIGKILL and status == 1
    assert "train.py: another process of this run has ended, or cannot be reached any more;" in errors
    assert "; the same command goes on from the last checkpoint" in errors
    assert "Traceback" not in errors

    assert [status for status, _ in run(2, tmp_path / "second", *arguments)] == [0, 0]
    printed = (tmp_path / "second" / "0" / "stdout").read_text()
    assert "seed 0 goes on after step " in printed
    assert "epoch" not in (tmp_path / "second" / "1" / "stdout").read_text()
    np.testing.assert_allclose(losses(workdir), alone, rtol=1e-4)

    process = start_script(*arguments, outputs=tmp_path)
    process.join(timeout=400)
    assert process.exitcode == 0
    assert "seed 0 has been trained: nothing to do" in (tmp_path / "stdout").read_text()


def test_where_the_first_process_is_killed_the_others_end(small, tmp_path):
    workdir = tmp_path / "workdir"
    started = start(2, tmp_path, *small, f"--workdir={workdir}")
    while not checkpoint_steps(workdir / "checkpoints" / "seed_0"):
        assert started[0].is_alive(), (tmp_path / "0" / "stderr").read_text()
        time.sleep(0.01)
    os.kill(started[0].pid, signal.SIGKILL)
    _, (status, errors) = ends(started, tmp_path, timeout=60)
    # Whichever is first: this program, or JAX's runtime, which ends a process without its coordinator.
    assert status in (1, -signal.SIGABRT)
    assert "another process of this run has ended" in errors or "another task died" in errors


def test_four_processes_reach_the_losses_of_one_and_stop_together(small, alone, tmp_path):
    """Only the last process gets the signal, and all stop after the same step."""
    workdir = tmp_path / "workdir"
    arguments = (*small, f"--workdir={workdir}")
    started = start(4, tmp_path / "first", *arguments)
    while not checkpoint_steps(workdir / "checkpoints" / "seed_0"):
        assert started[0].is_alive(), (tmp_path / "first" / "0" / "stderr").read_text()
        time.sleep(0.01)
    os.kill(started[3].pid, signal.SIGTERM)
    found = ends(started, tmp_path / "first", timeout=120)
    if [status for status, _ in found] != [0] * 4:  # the signal may come after the last step
        assert [status for status, _ in found] == [128 + signal.SIGTERM] * 4
        assert "stopped by a signal to another process after step" in found[0][1]
        assert [status for status, _ in run(4, tmp_path / "second", *arguments)] == [0] * 4
    np.testing.assert_allclose(losses(workdir), alone, rtol=1e-4)


def test_gradients_in_dfp16_train_in_two_processes(small, alone, tmp_path):
    found = run(2, tmp_path, *small, f"--workdir={tmp_path}", "--config.gradient_dtype=dfp16")
    assert [status for status, _ in found] == [0, 0], found
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=0.2)


def test_weights_are_tested_by_two_processes(small, tmp_path):
    process = start_script(*small, f"--workdir={tmp_path}", outputs=tmp_path)
    process.join(timeout=400)
    found = run(2, tmp_path / "outputs", *small, f"--workdir={tmp_path}", "--eval_only")
    assert [status for status, _ in found] == [0, 0], found
    table = (tmp_path / "outputs" / "0" / "stdout").read_text()
    assert f"{losses(tmp_path)[-1, -1]:.4f}" in table


@pytest.mark.parametrize("of_process", [in_slurm, in_open_mpi, launched])
def test_processes_find_each_other(small, alone, tmp_path, of_process):
    started = []
    job = free_port()
    arguments = [*small, f"--workdir={tmp_path}", *(["--distributed"] if of_process is not launched else [])]
    for process in range(2):
        (tmp_path / str(process)).mkdir()
        environment = of_process(process, job)
        started.append(start_script(*arguments, outputs=tmp_path / str(process), environment=environment))
    found = ends(started, tmp_path)
    assert [status for status, _ in found] == [0, 0], found
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-4)


def test_processes_that_differ_say_so_and_end(small, tmp_path):
    found = run(
        2, tmp_path, *small, of_each=lambda process: (f"--config.learning_rate={0.1 * (process + 1)}",)
    )
    for status, errors in found:
        assert status == 1
        assert (
            "train.py: the processes of this run differ: learning_rate is 0.2 in process 1 and 0.1 in process"
            " 0; give all of them the same command, and the same versions\n"
        ) in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--config.mesh": "1"}, "mesh is (1,); it must be () or (2,), all devices, in a run of 2 processes"),
        ({"--config.batch_size": "31"}, "a step takes 31 images"),
        ({"--workdir": "FILE"}, "cannot write FILE: it is not a directory"),
        ({"--init_from": "FILE.no"}, "FILE.no does not exist; give WORKDIR/weights/seed_N"),
    ],
    ids=str,
)
def test_every_process_says_what_is_wrong(small, tmp_path, changes, message):
    file = tmp_path / "file"
    file.touch()
    arguments = [f"{name}={value}".replace("FILE", str(file)) for name, value in changes.items()]
    for status, errors in run(2, tmp_path / "outputs", *small, *arguments):
        assert status == 1
        assert "train.py: " + message.replace("FILE", str(file)) in errors
        assert "Traceback" not in errors


def test_a_missing_coordinator_is_an_error_soon(small, tmp_path):
    own = (*small, "--distributed", f"--coordinator=127.0.0.1:{free_port()}", "--processes=2")
    process = start_script(*own, "--process_id=1", "--start_timeout=5", outputs=tmp_path)
    process.join(timeout=60)
    errors = (tmp_path / "stderr").read_text()
    assert process.exitcode == 1, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("train.py: ")]
    assert "not all processes were there within 5 s" in line and "Traceback" not in errors


def test_unknown_processes_are_an_error_at_once(small, tmp_path):
    process = start_script(*small, "--distributed", outputs=tmp_path)
    process.join(timeout=60)
    assert process.exitcode == 1
    errors = (tmp_path / "stderr").read_text()
    assert "give --coordinator=HOST:PORT --processes=N --process_id=I to each" in errors
    assert "Traceback" not in errors
