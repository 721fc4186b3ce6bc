import jax

# Here, because under xdist the process that prints does not load the conftest of a directory inside.
from conformance.summary import pytest_terminal_summary as pytest_terminal_summary

# Sharded programs deserve more than one device. Before any test module computes something on import.
jax.config.update("jax_num_cpu_devices", 4)
