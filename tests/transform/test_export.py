"""Functions with native kernels are exported, serialized and called again, gradients included."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax

FORCED = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
RNG = np.random.default_rng(0)
X, W = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((8, 16), (16, 4)))


def model(x, w):
    return jnp.tanh(dfpjax.mixed_precision(jnp.dot, FORCED)(x, w))


def export(**options):
    return jax.export.export(jax.jit(model), **options)(X, W)


def test_a_round_trip_keeps_every_bit():
    pytest.importorskip("flatbuffers", reason='needs dfpjax[export]: pip install ".[export]"')
    exported = export(disabled_checks=dfpjax.export_checks())
    assert "custom_call @dfpjax_contract_v1" in exported.mlir_module()
    again = jax.export.deserialize(exported.serialize(vjp_order=1))
    results, expected = (
        jax.jit(jax.value_and_grad(lambda x, w, fun=fun: (fun(x, w) ** 2).sum(), (0, 1)))(X, W)
        for fun in (again.call, model)
    )
    for got, wanted in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_jax_refuses_kernels_that_nobody_vouches_for():
    with pytest.raises(ValueError, match="dfpjax_contract_v1"):
        export()
