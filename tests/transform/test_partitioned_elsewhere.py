"""Programs that were exported, or are found in JAX's persistent compilation cache, are partitioned in another
process, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jax_releases
SCRIPT = Path(__file__).with_name("partitioned.py")


def run(*arguments, **environment):
    """What the script prints in a process of its own."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    # Programs that compile quickly are to be kept, too.
    environment = {"DFPJAX_LAUNCH": "off", "JAX_ENABLE_COMPILATION_CACHE": "false", **environment}
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_another_process(tmp_path):
    pytest.importorskip("flatbuffers", reason='needs dfpjax[export]: pip install ".[export]"')
    cache = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    here = run("jit", **cache)
    assert here[0].endswith("gathers 0") and not here[0].startswith("native 0")
    kept = sorted(path.name for path in (tmp_path / "cache").glob("*-cache"))
    assert kept and run("jit", **cache) == here
    assert sorted(path.name for path in (tmp_path / "cache").glob("*-cache")) == kept

    exported = tmp_path / "exported"
    run("write", exported)
    assert run("read", exported) == here
