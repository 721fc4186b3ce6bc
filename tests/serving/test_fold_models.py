"""`fold_batch_norm` on models of `dfpjax.training`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from test_fold import FORCED, normal, primitives, randomized

import dfpjax
from dfpjax.training.models import MODELS, DigitsResNet


def test_residual_network_and_frozen_weights():
    model, x = DigitsResNet(classes=10), normal(4, 8, 8, 3)
    variables = randomized(jax.jit(model.init, static_argnames="train")(jax.random.key(0), x, train=False))
    apply = functools.partial(model.apply, train=False)
    found = dfpjax.fold_batch_norm(apply, variables, x, policy=FORCED)
    assert len(found.report.folded) == 9
    assert found.report.kept == (("params/Dense_0/kernel", "no normalization follows"),)
    assert oracle.relative_error(jax.jit(found.fun)(found.variables, x), jax.jit(apply)(variables, x)) < 1e-5
    left = primitives(found.fun, found.variables, x)
    assert not {"sub", "rsqrt", "mul"} & set(left) and left.count("conv_general_dilated") == 9
    frozen = dfpjax.freeze(found.variables, fun=found.fun, args=(x,))
    in_dfp16 = jax.jit(dfpjax.mixed_precision(found.fun, FORCED))
    np.testing.assert_array_equal(in_dfp16(frozen, x), in_dfp16(found.variables, x))
    assert all(op.dtype == "dfp16" for op in dfpjax.explain(found.fun, frozen, x).ops)


@pytest.mark.parametrize("name", ["vgg_digits", "vit_digits"])
def test_networks_without_batch_norm(name):
    model, x = MODELS[name](10), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    variables = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    with pytest.raises(ValueError, match="nothing to fold"):
        dfpjax.fold_batch_norm(functools.partial(model.apply, train=False), variables, x)
