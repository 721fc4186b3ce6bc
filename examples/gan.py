"""Trains a generative adversarial network on digits in DFP16: python examples/gan.py [--steps N]

Transposed convolutions make images of noise. One step trains both networks, and one wrapped function has
both losses inside.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import dfpjax

BATCH, NOISE = 64, 32


class Generator(nn.Module):
    @nn.compact
    def __call__(self, noise):
        x = nn.relu(nn.Dense(2 * 2 * 64)(noise)).reshape(-1, 2, 2, 64)
        x = nn.relu(nn.ConvTranspose(32, (4, 4), strides=(2, 2))(x))
        return nn.sigmoid(nn.ConvTranspose(1, (4, 4), strides=(2, 2))(x))


class Discriminator(nn.Module):
    @nn.compact
    def __call__(self, images):
        for channels in (32, 64):
            images = nn.leaky_relu(nn.Conv(channels, (4, 4), strides=(2, 2))(images), 0.2)
        return nn.Dense(1)(images.reshape(len(images), -1))[:, 0]


def main(argv=None) -> tuple[float, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args(argv).steps

    images = (load_digits().images / 16)[..., None].astype(np.float32)
    keys = jax.random.split(jax.random.key(0))
    params = {
        "generator": Generator().init(keys[0], jnp.zeros((1, NOISE))),
        "discriminator": Discriminator().init(keys[1], images[:1]),
    }
    optimizer = optax.adam(2e-4, b1=0.5)
    state = optimizer.init(params)
    policy = dfpjax.Policy(default=dfpjax.OpConfig(force=True))

    @dfpjax.mixed_precision(policy=policy)
    def losses(generator, discriminator, real, noise):
        """What the discriminator and the generator minimize."""
        fake = Generator().apply(generator, noise)
        on_real, on_fake = (Discriminator().apply(discriminator, batch) for batch in (real, fake))
        judge = jnp.mean(nn.softplus(-on_real)) + jnp.mean(nn.softplus(on_fake))
        return judge, jnp.mean(nn.softplus(-on_fake))

    @jax.jit
    def step(params, state, real, key):
        noise = jax.random.normal(key, (BATCH, NOISE))

        def judge(discriminator):
            return losses(params["generator"], discriminator, real, noise)[0]

        def maker(generator):
            return losses(generator, params["discriminator"], real, noise)[1]

        loss, slope = jax.value_and_grad(judge)(params["discriminator"])
        made, made_slope = jax.value_and_grad(maker)(params["generator"])
        grads = {"generator": made_slope, "discriminator": slope}
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, (loss, made)

    random, key, found = np.random.default_rng(0), jax.random.key(1), (np.nan, np.nan)
    for number in range(1, steps + 1):
        real = images[random.choice(len(images), BATCH)]
        params, state, found = step(params, state, real, jax.random.fold_in(key, number))
        if number % 100 == 0 or number == steps:
            print(f"step {number}: discriminator {float(found[0]):.3f}, generator {float(found[1]):.3f}")
    return float(found[0]), float(found[1])


if __name__ == "__main__":
    main()
