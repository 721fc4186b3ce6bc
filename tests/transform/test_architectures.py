"""Recurrent nets, attention and deep stacks of Flax: values and gradients against float32."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from forced import FORCED
from transform_helpers import floats, normal, quantized, relative_error, variables_of

from dfpjax.transform import mixed_precision

SEQUENCES = normal(0, 2, 5, 4)  # batch, time, features


class Layer(nn.Module):
    """A small transformer layer."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.MultiHeadDotProductAttention(num_heads=2)(
            nn.LayerNorm()(x), mask=nn.make_causal_mask(x[..., 0])
        )
        x = x + y
        return x + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x)))), None


class Stack(nn.Module):
    """Layers whose parameters are stacked in one array; the backward pass recomputes each layer."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        return layers()(x, None)[0]


class Bidirectional(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Bidirectional(nn.RNN(nn.GRUCell(3)), nn.RNN(nn.SimpleCell(3)))(x)


class Separable(nn.Module):
    """Grouped, dilated and transposed convolutions."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3,), feature_group_count=4)(x)
        x = nn.Conv(4, (2,), kernel_dilation=2)(jnp.tanh(x))
        return nn.ConvTranspose(3, (3,), strides=(2,))(x)


@pytest.mark.parametrize(
    "model",
    [
        nn.RNN(nn.SimpleCell(6)),
        pytest.param(nn.RNN(nn.LSTMCell(6)), marks=pytest.mark.slow),
        pytest.param(nn.RNN(nn.OptimizedLSTMCell(6), reverse=True, keep_order=True), marks=pytest.mark.slow),
        pytest.param(Bidirectional(), marks=pytest.mark.slow),
        pytest.param(nn.RNN(nn.ConvLSTMCell(2, (2,))), marks=pytest.mark.slow),
        nn.MultiHeadDotProductAttention(num_heads=2),
        pytest.param(Stack(), marks=pytest.mark.slow),
        Separable(),
    ],
    ids=["simple", "lstm", "lstm_reversed", "gru", "conv_lstm", "attention", "transformer", "separable"],
)
def test_values_and_gradients(model):
    x = normal(1, 2, 3, 4, 2) if isinstance(getattr(model, "cell", None), nn.ConvLSTMCell) else SEQUENCES
    variables = variables_of(model, x)

    def loss(apply):
        return lambda variables, x: (apply(variables, x) ** 2).sum()

    reference = jax.value_and_grad(loss(model.apply), (0, 1))
    count = floats(jax.make_jaxpr(reference)(variables, x))
    transformed = (
        jax.value_and_grad(loss(mixed_precision(model.apply, FORCED)), (0, 1)),
        mixed_precision(reference, FORCED),
    )
    for step in transformed:
        jaxpr = jax.make_jaxpr(step)(variables, x)
        assert (floats(jaxpr), quantized(jaxpr)) == (0, count)
    # One program, in which XLA shares what is equal.
    steps = jax.jit(lambda *args: [step(*args) for step in (reference, *transformed)])
    expected, *results = steps(variables, x)
    for actual in results:
        assert 0 < relative_error(actual[0], expected[0]) < 1e-3
        assert 0 < relative_error(actual[1], expected[1]) < 3e-3
