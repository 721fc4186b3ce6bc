import gc
import os
import tempfile

import jax
import pytest

# Imported here, because under xdist the process that prints does not load the conftest files of subfolders.
from conformance.summary import pytest_terminal_summary as pytest_terminal_summary

# XLA takes far longer to compile the tests' programs than to run them. So it optimizes little, makes one LLVM
# module per program, and uses its older emitters where there is a choice. A test that the bits of a result do
# not depend on XLA's fusion and contraction has the marker `optimized`. The settings are in the environment,
# so that processes started by tests compile in the same way.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")])
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)

# Tests of sharded programs need several devices. Set here, before a test module computes something on import.
jax.config.update("jax_num_cpu_devices", 4)


def pytest_configure(config):
    """A cache of programs with long compile times, for this process, the workers and processes of tests."""
    if not hasattr(config, "workerinput"):
        directory = tempfile.TemporaryDirectory(prefix="dfpjax-compiled-")
        config.add_cleanup(directory.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = directory.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
        jax.config.update("jax_compilation_cache_dir", directory.name)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_collection_finish():
    """The garbage collector skips modules and tests, which stay, and seldom goes through JAX's caches, which
    only grow."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _compiled_as_marked(request):
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
