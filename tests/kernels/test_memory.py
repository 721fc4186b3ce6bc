"""Scratch memory is reused and bounded."""

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _native, kernels
from dfpjax.numbers.contraction import Contraction
from dfpjax.numbers.plan import make_plan


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_nothing_grows_over_ten_thousand_calls_of_changing_shapes():
    rng = np.random.default_rng(0)
    zero = jnp.zeros((1, 1), jnp.int32)
    calls = []
    for m, k, n in rng.integers(1, 300, (20, 3)).tolist():
        contraction = Contraction(lhs=(0, 1), rhs=(1, 2), out=(0, 2), out_shape=(m, n))
        plan = make_plan(contraction, (m, k), (k, n), (1, 1), (1, 1))
        a, b = (jnp.ones(shape, jnp.int16) for shape in ((m, k), (k, n)))
        a, b = (b, a) if plan.swapped else (a, b)
        compiled = jax.jit(lambda a, b, plan=plan: kernels.contract(plan, a, b, zero, zero))
        calls.append(lambda compiled=compiled, a=a, b=b: compiled(a, b).block_until_ready())

    def run(times):
        for i in range(times):
            calls[i % len(calls)]()
        return _native.scratch_bytes(), resident_bytes()

    scratch_before, resident_before = run(1_000)
    scratch_after, resident_after = run(10_000)
    assert scratch_after <= 2 * max(scratch_before, 1 << 20)
    assert resident_after - resident_before < 16 << 20
    _native.release_scratch()
    assert _native.scratch_bytes() == 0
    calls[0]()  # works on
