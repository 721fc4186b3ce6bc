"""The form of rewritten jaxprs: only the operations change, in whatever construct they are.

Values and derivatives of the same programs are compared in the conformance matrix (`tests/conformance`).
"""

import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from conformance.kinds import DENSE
from conformance.programs import PROGRAMS
from conformance.transformations import Subject
from forced import FORCED
from transform_helpers import floats, normal, primitives, quantized, relative_error

from dfpjax.policy import Policy
from dfpjax.transform import mixed_precision

pytestmark = pytest.mark.jax_releases

W = normal(0, 6, 6) / 2
X = normal(1, 4, 6)


def layer(w, x):
    return jnp.tanh(x @ w)


@pytest.fixture(params=PROGRAMS)
def fun(request):
    return Subject(PROGRAMS[request.param], DENSE).f


def test_twice_is_once(fun):
    once = mixed_precision(fun, FORCED)
    assert text(mixed_precision(once, FORCED)) == text(once)


def test_nothing_to_rewrite_is_identity(fun):
    # Running a jaxpr again changes it by itself. For example, constants of a custom_vjp become closed over.
    again = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(fun)(W, X))
    assert text(mixed_precision(fun, Policy(default=None))) == text(again)


def text(fun) -> str:
    printed = str(jax.make_jaxpr(lambda w, x: jax.tree.leaves(fun(w, x)))(W, X))
    return re.sub(r" at 0x[0-9a-f]+", "", printed)  # JAX 0.10.0 prints some functions with their address


def test_linear_transpose():
    transformed = mixed_precision(lambda x: x @ W, FORCED)
    (actual,) = jax.linear_transpose(transformed, X)(X)
    assert 0 < relative_error(actual, X @ W.T) < 1e-3
    (actual,) = jax.linear_transpose(mixed_precision(lambda w: X @ w, FORCED), W)(X)
    assert 0 < relative_error(actual, X.T @ X) < 1e-3


def test_custom_vmap_rule_is_rewritten():
    @jax.custom_batching.custom_vmap
    def f(w, x):
        return layer(w, x)

    @f.def_vmap
    def _(axis_size, in_batched, w, x):
        return jnp.tanh(x @ w), True

    batched = jax.vmap(mixed_precision(lambda x: f(W, x), FORCED))
    assert floats(jax.make_jaxpr(batched)(X)) == 0
    assert quantized(jax.make_jaxpr(batched)(X)) == 1
    assert relative_error(batched(X), layer(W, X)) < 1e-3


def test_equations_keep_their_parameters():
    f = jax.jit(layer, donate_argnums=1, inline=False, keep_unused=True)
    (eqn,) = jax.make_jaxpr(mixed_precision(f, FORCED))(W, X).eqns
    (original,) = jax.make_jaxpr(f)(W, X).eqns
    for name, value in original.params.items():
        assert name == "jaxpr" or eqn.params[name] == value
    assert quantized(eqn.params["jaxpr"]) == 1


def test_jitted_functions_called_twice_stay_shared():
    block = jax.jit(layer)
    jaxpr = jax.make_jaxpr(mixed_precision(lambda w, x: block(w, block(w, x)), FORCED))(W, X)
    first, second = jaxpr.eqns
    assert first.params["jaxpr"] is second.params["jaxpr"]


def test_rules_traced_anew_give_the_same_jaxprs():
    """Otherwise a gradient without jit would compile the jitted functions in a rule at every step."""

    product = jax.jit(jnp.matmul)

    @jax.custom_vjp
    def f(w, x):
        return product(x, w)

    def bwd(res, ct):
        w, x = res
        return product(x.T, ct), product(ct, w.T)

    f.defvjp(lambda w, x: (f(w, x), (w, x)), bwd)
    mixed = mixed_precision(f, FORCED)

    def jitted():
        eqns = jax.make_jaxpr(jax.grad(lambda w, x: mixed(w, x).sum(), (0, 1)))(W, X).eqns
        return [eqn.params["jaxpr"] for eqn in eqns if eqn.primitive.name == "jit"]

    first, second = jitted(), jitted()
    assert len(first) == 2
    assert all(a is b and quantized(a) == 1 for a, b in zip(first, second, strict=True))


def test_remat_policies_inside_still_find_the_dots():
    def products(policy):
        f = mixed_precision(jax.checkpoint(lambda w, x: jnp.sin(layer(w, x)).sum(), policy=policy), FORCED)
        return primitives(jax.make_jaxpr(jax.grad(f))(W, X))["dfp_contract"]

    policies = jax.checkpoint_policies
    assert products(None) == 2  # and again in the backward pass
    assert products(policies.dots_saveable) == products(policies.dots_with_no_batch_dims_saveable) == 1


def test_opaque_primitives_are_left_alone():
    def callback(w, x):
        shape = jax.ShapeDtypeStruct((4, 6), jnp.float32)
        return jax.pure_callback(lambda w, x: np.asarray(x) @ np.asarray(w), shape, w, x) + x @ w

    jaxpr = jax.make_jaxpr(mixed_precision(callback, FORCED))(W, X)
    assert primitives(jaxpr)["pure_callback"] == 1
    assert quantized(jaxpr) == 1
