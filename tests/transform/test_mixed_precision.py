"""Uses of the transformed function, and errors that say what to do."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from forced import FORCED, forced
from jax import lax
from transform_helpers import normal, quantized, relative_error

from dfpjax.policy import Policy, Rule
from dfpjax.transform import mixed_precision

W = normal(0, 6, 6) / 2
X = normal(1, 4, 6)


def layer(w, x):
    return jnp.tanh(x @ w)


def test_decorator():
    @mixed_precision
    def bare(w, x):
        """Doc."""
        return layer(w, x)

    @mixed_precision(policy=Policy(default=None))
    def with_policy(w, x):
        return layer(w, x)

    large = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    assert quantized(jax.make_jaxpr(bare)(large, large)) == 1
    assert quantized(jax.make_jaxpr(with_policy)(large, large)) == 0
    assert (bare.__name__, bare.__doc__) == ("bare", "Doc.")
    assert list(inspect.signature(bare).parameters) == ["w", "x"]


def test_method():
    class Model:
        w = W

        @mixed_precision(policy=FORCED)
        def __call__(self, x):
            return layer(self.w, x)

    assert relative_error(Model()(X), layer(W, X)) < 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixed_precision(3), r"mixed_precision: fun must be callable, got 3"),
        (lambda: mixed_precision(Policy()), r"mixed_precision: the policy goes second"),
        (
            lambda: mixed_precision(layer, "paper"),
            r"mixed_precision: policy must be a dfpjax.Policy, got 'paper'",
        ),
    ],
)
def test_misuse_is_told(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_transformations_compose():
    transformed = mixed_precision(layer, FORCED)
    xs = normal(2, 3, 4, 6)
    assert relative_error(jax.vmap(transformed, (None, 0))(W, xs), layer(W, xs)) < 1e-3
    expected = jax.hessian(lambda w: layer(w, X[:1, :2] @ w[:2]).sum())
    actual = jax.hessian(mixed_precision(lambda w: layer(w, X[:1, :2] @ w[:2]).sum(), FORCED))
    assert relative_error(jax.jit(actual)(W), jax.jit(expected)(W)) < 1e-2
    _, tangent = jax.jvp(transformed, (W, X), (W, X))
    assert relative_error(tangent, jax.jvp(layer, (W, X), (W, X))[1]) < 1e-3
    assert relative_error(jax.linearize(transformed, W, X)[1](W, X), tangent) < 1e-5
    assert jax.eval_shape(transformed, W, X) == jax.eval_shape(layer, W, X)
    scanned = lax.scan(lambda c, _: (transformed(W, c), None), X, length=2)[0]
    assert relative_error(scanned, layer(W, layer(W, X))) < 1e-3
    checkpointed = jax.grad(lambda w: jax.checkpoint(transformed)(w, X).sum())(W)
    assert relative_error(checkpointed, jax.grad(lambda w: layer(w, X).sum())(W)) < 1e-3


@pytest.fixture
def broken_dot(monkeypatch):
    """Replaces an operation by one that refuses its operands."""

    def use(error):
        def refuse(*args, **kwargs):
            raise error

        monkeypatch.setattr("dfpjax.operations.dot_general", refuse)

    return use


def test_errors_name_layer_line_and_remedy(broken_dot):
    broken_dot(ValueError("chain too long"))

    def net(w, x):
        with jax.named_scope("Net"), jax.named_scope("Dense_0"):
            return jax.jit(layer)(w, x)

    with pytest.raises(ValueError) as caught:
        mixed_precision(net, FORCED)(W, X)
    text = str(caught.value)
    assert "dot_general of layer 'Net/Dense_0' at " in text
    assert "test_mixed_precision.py:" in text
    assert "(f32[4,6] x f32[6,6]) cannot be computed in dynamic fixed point " in text
    assert "as the policy's default says: chain too long" in text
    assert "keep it in float32 with the rule dfpjax.Rule('Net/Dense_0', None)" in text
    mixed_precision(net, forced(Rule("Net/Dense_0", None)))(W, X)


def test_errors_of_nameless_layers(broken_dot):
    broken_dot(ZeroDivisionError("oh"))
    with pytest.raises(
        RuntimeError, match=r"dot_general of layer 'w' at .*: oh\nEither mend that .* or keep it"
    ):
        mixed_precision(layer, FORCED)(W, X)
    with pytest.raises(RuntimeError, match=r"give it a name with jax\.named_scope"):
        mixed_precision(lambda x: jnp.sin(x) @ jnp.cos(x.T), FORCED)(X)


def test_the_functions_own_errors_pass():
    def fun(w, x):
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        mixed_precision(fun, FORCED)(W, X)
    with pytest.raises(
        jax.errors.TracerBoolConversionError, match=r"tracing the function <lambda> at .*test_mixed_prec"
    ):
        mixed_precision(lambda x: x if x.sum() > 0 else -x, FORCED)(X)
