"""Training steps that are sharded in the usual ways: native calls, results, and what devices exchange."""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.shardings.checks import Alone, check, transform
from benchmarks.shardings.programs import PROGRAMS, SHARDINGS

alone = functools.cache(lambda name: Alone(PROGRAMS[name]))
QUICK = [("conv net", "data", 2), ("conv net", "data and model", 4), ("transformer", "fully sharded", 4)]
CASES = [
    pytest.param(name, kind, devices, marks=[] if (name, kind, devices) in QUICK else pytest.mark.slow)
    for name in PROGRAMS
    for kind in SHARDINGS
    for devices in (2, 4)
]


@pytest.mark.parametrize(("name", "kind", "devices"), CASES)
def test_steps(name, kind, devices):
    result = check(alone(name), name, kind, devices)
    assert result.native == result.native_alone
    assert result.error <= 3 * result.rounding
    assert result.passes
    if kind == "data" or (name, kind) == ("transformer", "data and model"):
        # Nothing but exponents, of which there are four bytes for 256 numbers.
        assert {key for key in result.collectives if key[0] != "all-reduce"} <= {("all-gather", "s32")}


@pytest.mark.jax_releases
def test_explicit_axes():
    """On a mesh with explicit axes the same native calls run."""
    result = check(alone("conv net"), "conv net", "data", 2, AxisType.Explicit)
    assert result.passes


@pytest.mark.slow
def test_eight_devices():
    environment = {**os.environ, "DFPJAX_LAUNCH": "off"}
    command = [sys.executable, "-m", "benchmarks.shardings", "--devices", "8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_devices_bits_where_no_sum_is_split():
    """Each device has whole tiles of rows, 192 tokens."""
    params, _, _ = PROGRAMS["transformer"].arguments()
    x = np.random.default_rng(0).standard_normal((4, 192, 256)).astype(np.float32)

    @jax.jit
    @transform
    def apply(params, x):
        return jax.nn.relu(x @ params["up"]) @ params["down"]

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    whole = jax.device_put(params, NamedSharding(mesh, P()))
    split = jax.device_put(x, NamedSharding(mesh, P("data")))
    np.testing.assert_array_equal(apply(whole, split), apply(params, x))
