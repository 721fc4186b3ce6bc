"""Prints what a network keeps between its forward and its backward pass, in float32 and in DFP16.

python examples/residuals.py [linen|nnx]

In DFP16 the operands of convolutions and dot products are kept as int16 mantissas (`dfp16[...]`), with an
int32 exponent for each block, in place of float32 arrays. Everything else is kept as without dfpjax: here a
mask for each `relu` (`bool[...]`) and the output, which the loss squares (`f32[64,512]`). The float32
arrays from `broadcast_in_dim` are the zeros that a `relu` passes back where its input was negative. JAX
lists them in both cases; XLA treats them as a constant, and no memory holds them.

Nothing is computed, only traced.
"""

import sys

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax.ad_checkpoint import print_saved_residuals

import dfpjax

IMAGES = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(64, (3, 3))(x))
        x = linen.relu(linen.Conv(64, (3, 3))(x))
        return linen.Dense(512)(x.mean(axis=(1, 2)))


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(3, 64, (3, 3), rngs=rngs)
        self.second = nnx.Conv(64, 64, (3, 3), rngs=rngs)
        self.last = nnx.Linear(64, 512, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.last(x.mean(axis=(1, 2)))


def linen_network():
    """A function of (parameters, images), and the parameters' types."""
    return Linen().apply, jax.eval_shape(Linen().init, jax.random.key(0), IMAGES)


def nnx_network():
    graph, state = nnx.split(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))))
    return lambda state, images: nnx.merge(graph, state)(images), state


def loss(apply):
    return lambda params, images: (apply(params, images) ** 2).sum()


def main():
    apply, params = nnx_network() if "nnx" in sys.argv[1:] else linen_network()
    # The last layer is too small for the cost rule, which `force` overrides.
    policy = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
    print("Kept in float32:")
    print_saved_residuals(loss(apply), params, IMAGES)
    print("\nKept in DFP16:")
    print_saved_residuals(loss(dfpjax.mixed_precision(apply, policy)), params, IMAGES)


if __name__ == "__main__":
    main()
