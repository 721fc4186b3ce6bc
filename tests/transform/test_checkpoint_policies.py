"""Policies for jax.checkpoint around a transformed function."""

import jax
import jax.numpy as jnp
import pytest
from forced import FORCED
from jax import lax
from transform_helpers import normal, primitives, relative_error

from dfpjax import checkpoint_policies
from dfpjax.transform import mixed_precision

W = normal(0, 6, 6) / 2
X = normal(1, 4, 6)


def net(w, x):
    return jnp.sin(jnp.tanh(x @ w) @ w).sum()


def gradient(policy, fun=net):
    return jax.grad(jax.checkpoint(mixed_precision(fun, FORCED), policy=policy))


def contractions(policy, fun=net, args=(W, X)) -> int:
    return primitives(jax.make_jaxpr(gradient(policy, fun))(*args))["dfp_contract"]


def test_products_are_saved():
    assert contractions(checkpoint_policies.nothing_saveable) == 4
    assert contractions(checkpoint_policies.dots_saveable) == 2
    assert contractions(checkpoint_policies.checkpoint_dots_with_no_batch_dims) == 2
    assert contractions(jax.checkpoint_policies.dots_saveable) == 4  # does not know dfpjax's primitives


def test_batch_dimensions_are_told_apart():
    def batched(w, x):
        return jnp.sin(jnp.einsum("bij,bjk->bik", x, w)).sum()

    args = jnp.stack([W, W]), jnp.stack([X, X])
    assert contractions(checkpoint_policies.dots_saveable, batched, args) == 1
    assert contractions(checkpoint_policies.dots_with_no_batch_dims_saveable, batched, args) == 2


def test_convolutions_are_saved():
    def convolution(w, x):
        return jnp.sin(lax.conv(x, w, (1, 1), "SAME")).sum()

    args = normal(0, 4, 2, 3, 3), normal(1, 1, 2, 5, 5)
    assert contractions(checkpoint_policies.dots_saveable, convolution, args) == 1
    assert contractions(checkpoint_policies.dots_with_no_batch_dims_saveable, convolution, args) == 2


def test_quantized_operands_are_saved():
    saved = jax.make_jaxpr(gradient(checkpoint_policies.quantized_saveable))(W, X)
    (remat,) = (eqn for eqn in saved.eqns if eqn.primitive.name == "remat2")
    assert "dfp16" in {str(v.aval.dtype) for v in remat.invars}
    assert primitives(remat.params["jaxpr"])["dfp_quantize"] == 0


@pytest.mark.parametrize(
    "policy",
    [
        checkpoint_policies.dots_saveable,
        checkpoint_policies.quantized_saveable,
        checkpoint_policies.everything_saveable,
        checkpoint_policies.save_from_both_policies(
            checkpoint_policies.dots_saveable, checkpoint_policies.quantized_saveable
        ),
    ],
)
def test_gradients_do_not_depend_on_the_policy(policy):
    expected = jax.grad(mixed_precision(net, FORCED))(W, X)
    assert relative_error(jax.jit(gradient(policy))(W, X), expected) < 1e-5
    assert relative_error(expected, jax.grad(net)(W, X)) < 2e-3


def test_policies_are_values():
    adapt = checkpoint_policies.adapt
    assert adapt(jax.checkpoint_policies.dots_saveable) == checkpoint_policies.dots_saveable
    assert hash(adapt(jax.checkpoint_policies.dots_saveable)) == hash(checkpoint_policies.dots_saveable)


def test_every_policy_of_jax_has_a_counterpart():
    names = {name for name in vars(jax.checkpoint_policies) if name[0].islower()}  # no classes of policies
    assert names <= set(vars(checkpoint_policies))
