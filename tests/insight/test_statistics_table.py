"""The statistics of `with_statistics` print as a table, and are still a dict and a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dfpjax import Policy, with_statistics
from dfpjax.insight import LayerStatistics, OperandStatistics, PerPass, Statistics
from dfpjax.policy import OpConfig


def operand(exponent=-12, **changes) -> OperandStatistics:
    values = {"rms_over_max": 0.25, "sqnr_db": 83.14, "zeros": 0.015, "clamped": 0.0} | changes
    arrays = {name: np.float32(value) for name, value in values.items()}
    return OperandStatistics(exponent=np.int32(exponent), bits=16, **arrays)


SHARES = np.float32([0.0, 0.75, 0.25, 0, 0, 0, 0, 0])
LAYERS = Statistics(
    {
        "Conv_10": LayerStatistics(input=operand(), output_gradient=operand(-20, sqnr_db=np.inf)),
        "Conv_2": LayerStatistics(
            weight=operand(rms_over_max=np.nan),
            error=np.float32(1.5e-4),
            chains=PerPass(fprop=SHARES, wgrad=SHARES[::-1]),
            saturated=PerPass(dgrad=np.int32(3)),
            transformed_sqnr_db=PerPass(
                dgrad={"output_gradient": np.float32(80.25), "weight": np.float32([79, np.inf])}
            ),
        ),
    }
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_statistics_print_as_tables():
    assert str(LAYERS) == repr(LAYERS)
    operands, passes = str(LAYERS).split("\n\n")
    header, _, *rows = map(cells, operands.splitlines())
    assert header == ["layer", "tensor", "bits", "exponent", "rms/max", "SQNR (dB)", "to zero", "clamped"]
    assert rows == [
        ["Conv_2", "weight", "16", "-12", "nan", "83.1", "1.50%", "0.00%"],
        ["Conv_10", "input", "16", "-12", "0.25", "83.1", "1.50%", "0.00%"],
        ["Conv_10", "output gradient", "16", "-20", "0.25", "inf", "1.50%", "0.00%"],
    ]
    header, _, *rows = map(cells, passes.splitlines())
    assert header == [
        "layer", "pass", "error", "SQNR of transformed tensors (dB)", "MACs by length of chain",
        "saturated chains",
    ]  # fmt: skip
    assert rows == [
        ["Conv_2", "fprop", "1.50e-04", "128: 75%, 64: 25%"],
        ["Conv_2", "dgrad", "weight: 79.0 to inf, output gradient: 80.2", "3"],
        ["Conv_2", "wgrad", "8: 25%, 4: 75%"],
    ]


def test_a_layer_prints_as_a_table_without_its_name():
    header, _, row = map(cells, str(LayerStatistics(input=operand())).splitlines())
    assert header[0] == "tensor" and row[:3] == ["input", "16", "-12"]


def test_values_of_several_steps_are_a_range():
    stacked = jax.tree.map(lambda a, b: np.stack([a, b]), operand(-12), operand(-9, sqnr_db=np.nan))
    row = cells(str(LayerStatistics(input=stacked)).splitlines()[2])
    assert row[2:5] == ["-12 to -9", "0.25", "83.1"]


def test_what_is_not_computed_is_shown_as_its_type():
    def traced(x):
        shown.append(str(LayerStatistics(error=x)))
        return x

    shown = []
    jax.eval_shape(traced, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert cells(shown[0].splitlines()[2]) == ["fprop", "float32[3]"]
    abstract = LayerStatistics(error=jax.ShapeDtypeStruct((), jnp.float32))
    assert cells(str(abstract).splitlines()[2]) == ["fprop", "float32[]"]


@pytest.mark.parametrize("layers", [{}, {"a": LayerStatistics()}])
def test_nothing_measured(layers):
    assert str(Statistics(layers)) == "nothing was measured"


def test_statistics_are_a_dict_and_a_pytree():
    assert isinstance(LAYERS, dict) and dict(LAYERS) == LAYERS
    leaves, structure = jax.tree.flatten(LAYERS)
    assert len(leaves) == len(jax.tree.leaves(dict(LAYERS)))
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is Statistics and str(again) == str(LAYERS)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(LAYERS)[0]]
    expected = jax.tree_util.tree_flatten_with_path(dict(LAYERS))[0]
    assert paths == [jax.tree_util.keystr(path) for path, _ in expected]


def test_transformations_give_statistics():
    watched = with_statistics(lambda x, w: x @ w, Policy(default=OpConfig(force=True)))
    x, w = np.ones((4, 8), np.float32), np.ones((8, 2), np.float32)
    _, of_jit = jax.jit(watched)(x, w)
    assert type(of_jit) is Statistics and "input" in str(of_jit)
    _, of_scan = lax.scan(lambda carry, row: (carry, watched(row, w)[1]), 0, np.stack([x, 2 * x]))
    assert type(of_scan) is Statistics and " to " in str(of_scan)
