"""A native call that fails raises an error that says why; the process does not end."""

import jax
import numpy as np
import pytest

from dfpjax import kernels
from dfpjax.numbers.contraction.loops import Dim
from dfpjax.numbers.contraction.plan import Part, Plan

ROWS, COLUMNS = Dim(32, c=32), Dim(32, c=1)


def plan_of(*, k: Dim, m: Dim = ROWS, n: Dim = COLUMNS, blocks_per_split: int = 1) -> Plan:
    part = Part(
        lanes=False, base_a=0, base_b=0, base_c=0, blocks_per_split=blocks_per_split,
        g=(), m=(m,), n=(n,), k=(k,), bounds=(),
    )  # fmt: skip
    return Plan(swapped=False, out_shape=(32, 32), grids=None, parts=(part,))


def run(plan: Plan):
    one, zero = np.ones(1, np.int16), np.zeros(1, np.int32)
    return np.asarray(kernels.contract(plan, one, one, zero, zero))


def test_too_much_scratch_space():
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"RESOURCE_EXHAUSTED.*MiB of scratch space"):
        run(plan_of(k=Dim(2**40)))
    # The failure does not affect the next call.
    np.testing.assert_array_equal(run(plan_of(k=Dim(300))), np.full((32, 32), 300, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": Dim(32, c=32, b=1)}, "a dimension of M moves B"),
        ({"n": Dim(32, c=1, exponent_a=1)}, "a dimension of N moves A"),
        ({"k": Dim(300, exponent_b=1)}, "a dimension of K moves C or an exponent"),
        ({"k": Dim(2**40), "blocks_per_split": 0}, "blocks_per_split must be positive"),
    ],
)
def test_what_a_plan_must_not_do(change, message):
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"INVALID_ARGUMENT.*{message}"):
        run(plan_of(**{"k": Dim(300), **change}))
