"""Whole training steps: optimizers, donation, shardings, modules in the styles of several libraries,
adversarial losses."""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from forced import FORCED
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transform_helpers import floats, normal, quantized, relative_error

from dfpjax.transform import mixed_precision

X, Y = normal(0, 8, 6), normal(1, 8, 3)


def parameters(seed: int, *sizes: int):
    pairs = itertools.pairwise(sizes)
    return [
        {"kernel": normal(seed + i, n, m) / n**0.5, "bias": jnp.zeros(m)} for i, (n, m) in enumerate(pairs)
    ]


def net(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def squared(apply):
    return lambda params, x, y: ((apply(params, x) - y) ** 2).mean()


def test_optimizer_steps_with_donation_and_shardings():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    everywhere, by_example = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))

    def trained(loss, transform=lambda step: step):
        def step(params, state, x, y):
            value, gradients = jax.value_and_grad(loss)(params, x, y)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, value

        shardings = {
            "in_shardings": (everywhere, everywhere, by_example, by_example),
            "out_shardings": everywhere,
        }
        jitted = jax.jit(transform(step), donate_argnums=(0, 1), **shardings)
        params = jax.device_put(parameters(2, 6, 8, 3), everywhere)
        state = jax.device_put(optimizer.init(params), everywhere)
        for _ in range(3):
            given = params
            params, state, value = jitted(params, state, X, Y)
            assert given[0]["kernel"].is_deleted()
        return params, value

    expected = trained(squared(net))
    mixed = partial(mixed_precision, policy=FORCED)
    for actual in (trained(squared(mixed(net))), trained(squared(net), mixed)):
        assert 0 < relative_error(actual, expected) < 1e-3


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.second(self.dropout(jnp.tanh(self.first(x))))


def test_nnx_steps():
    def trained(transform):
        model = Perceptron(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        def forward(graph, state, x):
            model = nnx.merge(graph, state)
            return model(x), nnx.state(model)

        forward = transform(forward)

        def loss(model, x, y):
            out, state = forward(*nnx.split(model), x)
            nnx.update(model, nnx.state(state, nnx.RngState))  # the dropout's counter
            return ((out - y) ** 2).mean()

        @nnx.jit
        def step(model, optimizer, x, y):
            value, gradients = nnx.value_and_grad(loss)(model, x, y)
            optimizer.update(model, gradients)
            return value

        values = [step(model, optimizer, X, Y) for _ in range(3)]
        return values, nnx.to_pure_dict(nnx.state(model, nnx.Param))

    assert 0 < relative_error(trained(partial(mixed_precision, policy=FORCED)), trained(lambda f: f)) < 1e-3


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel", "bias", "activation"],
    meta_fields=["scale"],
)
@dataclasses.dataclass(frozen=True)
class Linear:
    """A module in Equinox's style: a pytree of arrays, with a function among its leaves."""

    kernel: jax.Array
    bias: jax.Array | None
    activation: Callable
    scale: float

    def __call__(self, x):
        y = self.scale * (x @ self.kernel)
        return self.activation(y if self.bias is None else y + self.bias)


def test_modules_that_are_pytrees():
    kernels = normal(2, 6, 8) / 3, normal(3, 8, 3) / 3
    model = [Linear(kernels[0], jnp.ones(8), jnp.tanh, 0.5), Linear(kernels[1], None, jax.nn.relu, 2.0)]

    def apply(model, x):
        for layer in model:
            x = layer(x)
        return x, model[0].activation

    transformed = mixed_precision(apply, FORCED)
    (actual, function), (expected, _) = transformed(model, X), apply(model, X)
    assert function is jnp.tanh
    assert 0 < relative_error(actual, expected) < 1e-3

    # Like equinox.filter_grad: differentiate by the arrays and close over the other leaves.
    leaves, treedef = jax.tree.flatten(model)
    is_array = [isinstance(leaf, jax.Array) for leaf in leaves]

    def loss(apply):
        def of_arrays(arrays):
            arrays = iter(arrays)
            merged = [next(arrays) if a else leaf for a, leaf in zip(is_array, leaves, strict=True)]
            return (apply(jax.tree.unflatten(treedef, merged), X)[0] ** 2).sum()

        return jax.jit(jax.grad(of_arrays))([leaf for leaf in leaves if isinstance(leaf, jax.Array)])

    assert 0 < relative_error(loss(transformed), loss(apply)) < 2e-3


def adversarial(generate, judge):
    """The losses of generator and discriminator, each as a function of its own network's parameters."""

    def losses(generator, discriminator, noise, real):
        fake = generate(generator, noise)
        fooled = judge(jax.lax.stop_gradient(discriminator), fake)
        judged = judge(discriminator, jax.lax.stop_gradient(fake))
        return (
            jax.nn.softplus(-fooled).mean()
            + (jax.nn.softplus(judged) + jax.nn.softplus(-judge(discriminator, real))).mean()
        )

    return losses


def wasserstein(generate, judge):
    """The critic's loss with a penalty on the norm of its gradient (WGAN-GP)."""

    def loss(generator, critic, noise, real):
        fake = jax.lax.stop_gradient(generate(generator, noise))
        slopes = jax.vmap(jax.grad(lambda x: judge(critic, x).sum()))((real + fake) / 2)
        penalty = ((jnp.sqrt((slopes**2).sum(-1)) - 1) ** 2).mean()
        return (judge(critic, fake) - judge(critic, real)).mean() + 10 * penalty

    return loss


def assert_gradients_agree(loss):
    args = parameters(4, 6, 8, 3), parameters(6, 3, 8, 2), X, Y
    reference = jax.grad(loss(net, net), (0, 1))
    ours = mixed_precision(net, FORCED)
    transformed = jax.grad(loss(ours, ours), (0, 1)), mixed_precision(reference, FORCED)
    for gradient in transformed:
        jaxpr = jax.make_jaxpr(gradient)(*args)
        assert floats(jaxpr) == 0
        # `floats` does not count outer products, which sum nothing.
        assert quantized(jaxpr) >= floats(jax.make_jaxpr(reference)(*args))
    expected, *results = jax.jit(lambda *args: [f(*args) for f in (reference, *transformed)])(*args)
    for actual in results:
        assert 0 < relative_error(actual, expected) < 5e-3


def test_adversarial_losses():
    assert_gradients_agree(adversarial)


@pytest.mark.slow
def test_gradient_penalty():
    assert_gradients_agree(wasserstein)
