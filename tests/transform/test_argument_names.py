"""JAX's messages from inside a transformed function name the user's own arguments."""

import re

import jax
import jax.numpy as jnp
import pytest

import dfpjax


def f(x, params, lambda_=1.0, **more):
    if params["Dense 0"]["kernel"][0] > 0:
        return x
    return more["other"]


PARAMS = {"Dense 0": {"kernel": jnp.ones(2)}, "bias": jnp.ones(2)}


@pytest.mark.parametrize(
    "call",
    [
        lambda: dfpjax.mixed_precision(f)(jnp.ones(2), PARAMS, other=jnp.ones(2)),
        lambda: dfpjax.explain(f, jnp.ones(2), PARAMS, other=jnp.ones(2)),
        lambda: dfpjax.with_statistics(f)(jnp.ones(2), PARAMS, other=jnp.ones(2)),
        lambda: dfpjax.sensitivity(f, jnp.ones(2), PARAMS, other=jnp.ones(2)),
    ],
)
def test_a_decision_on_a_traced_value_names_its_argument(call):
    with pytest.raises(jax.errors.TracerBoolConversionError) as raised:
        call()
    assert re.search(r"depends on the value of the argument Dense_0_kernel\.", str(raised.value))


def test_names_that_are_no_identifiers_or_met_twice():
    @dfpjax.mixed_precision
    def g(a, b, *rest):
        return a if rest[0] else b

    with pytest.raises(jax.errors.TracerBoolConversionError, match="argument args_2"):
        g({"lambda": jnp.ones(1)}, {"lambda": jnp.ones(1), "0": jnp.ones(1)}, jnp.ones(()))
