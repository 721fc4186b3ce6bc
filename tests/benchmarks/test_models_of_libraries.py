"""The benchmark of other libraries' models compares DFP16 with float32, and rounded arguments with both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.frameworks.__main__ import main, rounded
from benchmarks.frameworks.results import Row, table, tree_error


def test_a_recurrent_network_is_nearer_to_float32_than_rounded_arguments_are():
    (row,) = main(["--model", "Flax nnx, LSTM"])
    assert 0 < row.output < row.rounded_output / 5 and 0 < row.gradient < row.rounded_gradient / 5


def test_rounded_arguments_have_gradients_of_their_own():
    x = jnp.float32(1 + 2**-10)
    value, gradient = jax.value_and_grad(rounded(lambda x, n: x * x * n))(x, 3)
    assert (value, gradient) == (3, 6)  # 1 is the nearest number in bfloat16


def test_the_error_is_that_of_all_numbers_together():
    found, expected = (
        {"a": np.array([3.0, 0]), "b": np.array([4.0])},
        {"a": np.zeros(2), "b": np.array([8.0])},
    )
    assert tree_error(found, expected) == pytest.approx(5 / 8)


def test_the_table_leaves_out_what_was_not_measured():
    errors = {"output": 1e-4, "gradient": 2e-3, "rounded_output": 3e-3, "rounded_gradient": 0.04}
    lines = table([Row(model="m", **errors), Row(model="n", **errors, peer=5e-6)]).splitlines()
    assert lines[-2:] == [
        "| m | 1.0e-04 | 2.0e-03 | 3.0e-03 | 4.0e-02 |  |",
        "| n | 1.0e-04 | 2.0e-03 | 3.0e-03 | 4.0e-02 | 5.0e-06 |",
    ]
