"""The comparison of allocators: its figures match the steps, and its settings reach the processes."""

from pathlib import Path

import pytest

from benchmarks import allocators
from benchmarks.train_step.contenders import CONTENDERS, Worker
from dfpjax.kernels import memory


def step(seconds: float, faults: int = 0, huge: int = 0) -> dict[str, float]:
    return {"seconds": seconds, "minor_faults": faults, "thp_fault_alloc": huge}


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize(
    ("faults", "huge", "taken"),
    [(0, 0, 0), (10, 0, 40960), (10, 10, 10 * 2**21), (12, 10, 10 * 2**21 + 8192), (3, 10, 10 * 2**21)],
)
def test_memory_taken_counts_huge_pages_once(faults, huge, taken):
    assert allocators.taken(step(1.0, faults, huge)) == taken


def test_row_tells_slow_steps_from_usual_ones():
    usual = [step(1.0 + 0.01 * i, faults=250_000) for i in range(19)]
    slow = step(2.0, faults=500_000)
    name, median, of_twenty, slowest, count, peak, in_usual, in_slow = cells(
        allocators.row("some", [*usual, slow], 3_140_000_000)
    )
    assert (name, slowest, count, peak) == ("some", "2.000", "1 of 20", "3.1")
    assert (median, of_twenty) == ("1.095", "1.180")
    assert (in_usual, in_slow) == ("1.02", "2.05")


def test_row_without_slow_steps_leaves_their_memory_open():
    row = allocators.row("some", [step(1.0), step(1.1)], 10**9)
    assert cells(row)[4:] == ["0 of 2", "1.0", "0.00", ""]
    assert row.count("|") == allocators.HEADER.splitlines()[0].count("|")


def test_settings_are_the_launchers_and_those_that_the_system_has(monkeypatch, capsys):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so" if name[0] == "j" else None)
    found = allocators.settings()
    assert found["launcher"] == memory.SETTINGS and found["default"] == {}
    assert found["jemalloc"]["LD_PRELOAD"] == "libjemalloc.so"
    assert "mimalloc" not in found and "mimalloc is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["--only", "default,tcmalloc"], "--only has tcmalloc; it must be of default, launcher, huge pages"),
    ],
)
def test_wrong_arguments_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        allocators.parse(argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", allocators.SETTINGS)
def test_every_setting_can_be_chosen(name):
    assert list(allocators.parse(["--only", f"{name},default"]).settings) == list(
        dict.fromkeys([name, "default"])
    )


@pytest.mark.slow
def test_setting_reaches_the_process():
    """A worker has the variables of its own setting and of no other."""
    setting = allocators.SETTINGS["glibc keeps"]
    worker = Worker(
        CONTENDERS["jax-dfp16"], {"network": "lstm", "batch": 2, "mode": "inference"},
        allocator=setting, torch_python="no-python",
    )  # fmt: skip
    try:
        environment = Path(f"/proc/{worker._process.pid}/environ").read_text()
    finally:
        worker.close()
    # glibc splits the variable's value into its parts in place.
    assert all(part in environment for part in setting["GLIBC_TUNABLES"].split(":"))
    assert "LD_PRELOAD" not in environment
