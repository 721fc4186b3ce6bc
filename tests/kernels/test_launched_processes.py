"""`python -m dfpjax.launch --processes=N`: pinned processes, their places, signals and statuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfpjax import _ranks, launch

ROOT = Path(__file__).parents[2]
CORES = sorted(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")

PROGRAM = """
import json, os, sys
from dfpjax.launch import place
found = [place(), sorted(os.sched_getaffinity(0)), sys.argv[1:], os.environ.get("DFPJAX_LAUNCH")]
os.write(1, (json.dumps(found) + "\\n").encode())  # at once, as another process writes too
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dfpjax.launch", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=60)


@needs_two
def test_each_process_has_cores_and_a_place_of_its_own():
    done = run("--allocator=default", "--processes=2", "-c", PROGRAM, "a", "--b")
    assert done.returncode == 0, done.stderr
    places = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda place: place[0][2])
    assert [place[0][1:] for place in places] == [[2, 0], [2, 1]]
    assert len({place[0][0] for place in places}) == 1 and places[0][0][0].startswith("127.0.0.1:")
    assert sorted(places[0][1] + places[1][1]) == CORES
    assert all(place[2:] == [["a", "--b"], "off"] for place in places)
    assert "; 2 processes on cores " in done.stderr


@needs_two
def test_the_first_failure_is_the_status_and_ends_the_others(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(_ranks, "GRACE", 1)
    program = "import os, sys, time; sys.exit(7) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(60)"
    began = time.monotonic()
    assert _ranks.run([sys.executable, "-c", program], os.environ, _ranks.core_groups(2)) == 7
    assert time.monotonic() - began < 30
    errors = capfd.readouterr().err
    assert "dfpjax.launch: process 1 ended with status 7; the others have 1 s to end" in errors
    assert "killing what has not ended: 1 of 2 processes" in errors


@needs_two
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_each_process_once(number):
    program = """
import os, signal, sys, time
def stop(number, frame):
    os.write(1, b"stopped\\n")
    time.sleep(0.3)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGTERM, stop)
os.write(1, b"ready\\n")
for _ in range(600):  # One long sleep would delay the handler of a signal that arrives just before it.
    time.sleep(0.1)
"""
    process = subprocess.Popen(
        command("--processes", "2", "-c", program), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert output == "stopped\n" * 2
    assert process.returncode == 128 + number


def test_groups_keep_sockets_and_hardware_threads_together(monkeypatch):
    """Two sockets of two cores with two hardware threads each, numbered as Linux does."""
    places = {core: (core % 4 // 2, core % 2, core) for core in range(8)}
    monkeypatch.setattr(_ranks.os, "sched_getaffinity", lambda process: set(places))
    monkeypatch.setattr(_ranks, "_place_of_core", places.get)
    assert _ranks.core_groups(2) == [[0, 4, 1, 5], [2, 6, 3, 7]]
    assert _ranks.core_groups(4) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert sorted(map(len, _ranks.core_groups(3))) == [2, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=x", "p.py"], "--processes is 'x'; it must be a number of at least 1"),
        (["--processes", "0", "p.py"], "--processes is '0'; it must be a number of at least 1"),
        (["--processes=2"], "name a program to run"),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        launch.parse(arguments)


def test_too_many_processes_are_refused():
    done = run("--processes=9999", "-c", "")
    assert done.returncode == 1
    assert f"dfpjax.launch: --processes is 9999; it must be at most {len(CORES)}, the cores" in done.stderr
