"""Rules of custom derivatives that contain constants: policies still find their operands' parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import forced
from transform_helpers import equations, normal, quantized

from dfpjax import Rule, mixed_precision

pytestmark = pytest.mark.jax_releases

TABLE = normal(3, 4, 6)
X = normal(0, 4, 6)
PARAMS = {"a": normal(1, 6, 7), "b": normal(2, 7, 5)}


def product(params, x):
    return (x @ params["a"]) @ params["b"]


def by_custom_vjp(params, x):
    fun = jax.custom_vjp(product)
    # Only the rule adds a table before it multiplies by both parameters. The table is an array, and so a
    # constant of the rule.
    fun.defvjp(
        lambda params, x: (product(params, x + TABLE), (params, x)), lambda kept, ct: (kept[0], kept[1])
    )
    return fun(params, x)


def by_custom_jvp(params, x):
    fun = jax.custom_jvp(product)

    @fun.defjvp
    def rule(primals, tangents):
        params, x = primals
        value = product(params, x + TABLE)
        return value, value * jnp.sum(tangents[1])

    return fun(params, x)


@pytest.mark.parametrize("fun", [by_custom_vjp, by_custom_jvp])
@pytest.mark.parametrize(("pattern", "widths"), [("^a$", [7]), ("^b$", [5]), ("^(a|b)$", [7, 5])])
def test_a_parameter_keeps_float32(fun, pattern, widths):
    transformed = mixed_precision(fun, forced(Rule(pattern, None)))
    jaxpr = jax.make_jaxpr(lambda x: jax.vjp(transformed, PARAMS, x)[0])(X)
    kept = [eqn.outvars[0].aval.shape[1] for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"]
    assert kept == widths
    assert quantized(jaxpr) == 2 - len(widths)


@pytest.mark.parametrize("fun", [by_custom_vjp, by_custom_jvp])
def test_values(fun):
    value, _ = jax.vjp(mixed_precision(fun, forced()), PARAMS, X)
    expected = (np.asarray(X, float) + TABLE) @ np.asarray(PARAMS["a"]) @ np.asarray(PARAMS["b"])
    np.testing.assert_allclose(value, expected, atol=1e-2)
    assert jnp.abs(value - expected).max() > 0
