"""The robustness benchmark measures what it claims to measure."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from benchmarks.fidelity.precisions import BFLOAT16, FLOAT32
from benchmarks.robustness import __main__ as robustness
from benchmarks.robustness.depth import exact_gradients, gradients
from benchmarks.robustness.precisions import COMPARED, matmul


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The rows of a quick run, by precision and table, and its JSON file."""
    out = tmp_path_factory.mktemp("robustness") / "results"
    rows = robustness.main(["--quick", f"--out={out}"])
    return rows, json.loads(out.with_name("results.json").read_text())


def test_an_outlying_channel_spoils_what_shares_its_exponent(measured):
    rows = {row.precision: row for row in measured[0]["outlier_channel"]}
    assert list(rows) == [precision.name for precision in COMPARED]
    assert rows["float32"].exact < 1e-3
    assert rows["bfloat16"].alone < 0.005 < 0.1 < rows["bfloat16"].exact
    tensor, blocks = rows["DFP-16"], rows["DFP-16 blocks"]
    assert tensor.alone > 0.05 and tensor.median_channel > 0.05
    assert blocks.alone < tensor.alone / 2 and blocks.median_channel < 0.001
    # The channels beside it.
    assert blocks.worst_channel > 0.05
    assert max(row.outlier_channel for row in rows.values()) < 0.005


def test_padding_spoils_no_token_of_another_block(measured):
    rows = measured[0]["padding_token"]
    assert {row.shape for row in rows} == {(2, 16, 128), (32, 128)}
    for row in rows:
        if row.precision == "DFP-16":
            assert row.median == row.worst == row.zero == 1
        else:
            assert row.median <= row.worst < 0.02
            assert row.zero == 0


def test_nan_reaches_what_depends_on_it(measured):
    rows = measured[0]["nonfinite"]
    assert all(row.own for row in rows)
    counts = {
        (row.precision, row.operand, len(row.shape)): [row.rows[which][0] for which in row.rows]
        for row in rows
    }
    for precision in ("float32", "bfloat16"):
        assert counts[precision, "x", 3] == counts[precision, "x", 2] == [1, 0, 1]
        assert counts[precision, "dy", 3] == counts[precision, "dy", 2] == [0, 1, 128]
    assert counts["DFP-16", "x", 3] == [32, 0, 128] and counts["DFP-16", "dy", 2] == [0, 32, 128]
    for axes in (2, 3):  # a block has one token
        assert counts["DFP-16 blocks", "x", axes] == [1, 0, 32]
        assert counts["DFP-16 blocks", "dy", axes] == [0, 1, 128]


def test_depth_is_measured_for_every_gain(measured):
    rows = measured[0]["depth"]
    errors = {(row.precision, row.gain): row for row in rows}
    for gain in (0.5, 1.0, 1.5, 2.0, 2.5):
        error = [errors[precision.name, gain].error for precision in COMPARED]
        float32, bfloat16, tensor, blocks = error
        assert 0 < float32 < min(tensor, blocks) and max(tensor, blocks) < bfloat16
    assert all(row.error <= row.worst for row in rows)


def test_everything_is_written(measured):
    rows, record = measured
    assert record["outlier_channel"] == [vars(row) for row in rows["outlier_channel"]]
    assert record["depth"] == [vars(row) for row in rows["depth"]]


def test_exact_gradients_are_those_of_selu():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 4, 8))
    weights = rng.standard_normal((3, 8, 8))

    def network(weights):
        return jnp.vdot(dy, functools.reduce(lambda x, w: jax.nn.selu(x @ w), weights, jnp.asarray(x)))

    with jax.enable_x64(True):
        expected = jax.grad(network)(jnp.asarray(weights))
        assert expected.dtype == jnp.float64
    np.testing.assert_allclose(exact_gradients(x, weights, dy), expected, rtol=1e-12)


def test_gradients_come_in_the_kernels_order():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 4, 8)).astype(np.float32)
    weights = rng.standard_normal((3, 8, 8)).astype(np.float32)
    found = gradients(FLOAT32)(x, weights, dy)
    assert oracle.relative_error(found, exact_gradients(x, weights, dy)) < 1e-5


def test_bfloat16_rounds_the_operands_of_every_pass():
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal((8, 8)).astype(np.float32) for _ in range(3))
    y, transpose = jax.vjp(matmul(BFLOAT16, 8, 8, 8), x, w)
    dx, dw = transpose(jnp.asarray(dy))
    x, w, dy = (array.astype(jnp.bfloat16).astype(np.float64) for array in (x, w, dy))
    for found, expected in ((y, x @ w), (dx, dy @ w.T), (dw, x.T @ dy)):
        assert oracle.relative_error(found, expected) < 1e-6
