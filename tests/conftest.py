import jax
import pytest

# Here, because under xdist the process that prints does not load the conftest of a directory inside.
from conformance.summary import pytest_terminal_summary as pytest_terminal_summary

# Sharded programs deserve more than one device. Before any test module computes something on import.
jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def compiled_quickly():
    """XLA optimizes little, which takes some two thirds of the time.

    For tests of what a program consists of, or of values up to an error. Those of bits, which must be the
    same however XLA fuses and contracts, are compiled as usual.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
