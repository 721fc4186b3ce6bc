"""XLA runs independent operations concurrently on the thread pool that they use: none may block another."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from dfpjax.operations import conv_general_dilated

conv = lambda x, w: conv_general_dilated(x, w, window_strides=(1, 1), padding=((1, 1), (1, 1)),
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))
rng = np.random.default_rng(0)
x = jnp.asarray(rng.standard_normal((4, 12, 12, 32)), jnp.float32)
w = jnp.asarray(rng.standard_normal((24, 3, 3, 32, 32)), jnp.float32)

@jax.jit
def independent(x, w):
    loss = lambda x, w: sum(jnp.sum(jnp.sin(conv(x, w[i]))) for i in range(len(w)))
    return jax.grad(loss, (0, 1))(x, w)

expected = None
for _ in range(20):
    out = [np.asarray(g).tobytes() for g in independent(x, w)]
    expected = expected or out
    assert out == expected
print(__import__("zlib").crc32(b"".join(expected)))
"""


def run(threads: int) -> str:
    cores = sorted(os.sched_getaffinity(0))[:threads]
    program = f"import os; os.sched_setaffinity(0, {cores})\n" + PROGRAM
    quickly = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling takes most of the time
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=quickly
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_many_independent_operations_in_one_program_on_one_two_and_four_threads():
    results = [run(threads) for threads in (1, 2, 4) if threads <= len(os.sched_getaffinity(0))]
    assert len(set(results)) == 1
