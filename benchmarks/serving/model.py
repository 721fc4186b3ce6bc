"""A decoder-only transformer with a cache of keys and values, in plain JAX: GPT-2's layers, random
weights."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The extents of a decoder."""

    layers: int
    heads: int
    width: int
    vocabulary: int = 50257
    positions: int = 1024


SHAPES = {
    "tiny": Shape(layers=2, heads=4, width=128, vocabulary=1000, positions=128),
    "gpt2": Shape(layers=12, heads=12, width=768),
    "1b": Shape(layers=24, heads=16, width=1792),
}


def init(shape: Shape, key: jax.Array) -> dict:
    """Random parameters in float32. The table of tokens also gives the logits."""
    width, layers = shape.width, shape.layers

    def normal(key, *extents):
        return 0.02 * jax.random.normal(key, extents, jnp.float32)

    keys = iter(jax.random.split(key, 4 * layers + 2))
    block = {
        "attention": {"norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}},
        "mlp": {"norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}},
    }
    blocks = []
    for _ in range(layers):
        own = jax.tree.map(lambda x: x, block)
        own["attention"]["qkv"] = normal(next(keys), width, 3 * width)
        own["attention"]["out"] = normal(next(keys), width, width)
        own["mlp"]["up"] = normal(next(keys), width, 4 * width)
        own["mlp"]["down"] = normal(next(keys), 4 * width, width)
        blocks.append(own)
    return {
        "tokens": normal(next(keys), shape.vocabulary, width),
        "positions": normal(next(keys), shape.positions, width),
        "blocks": blocks,
        "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
    }


def empty_cache(shape: Shape, batch: int, length: int) -> list[dict]:
    """Keys and values of no token."""
    extents = (batch, length, shape.heads, shape.width // shape.heads)
    return [{"k": jnp.zeros(extents), "v": jnp.zeros(extents)} for _ in range(shape.layers)]


def forward(shape: Shape, params: dict, cache: list[dict], tokens: jax.Array, at: jax.Array):
    """The logits of tokens, int32[batch, count], at positions from `at` on, and the cache with them."""
    count, length = tokens.shape[1], cache[0]["k"].shape[1]
    x = params["tokens"][tokens] + lax.dynamic_slice_in_dim(params["positions"], at, count)
    seen = jnp.arange(length)[None, :] <= at + jnp.arange(count)[:, None]
    new = []
    for own, kept in zip(params["blocks"], cache, strict=True):
        qkv = _norm(x, own["attention"]["norm"]) @ own["attention"]["qkv"]
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * shape.heads, -1), 3, axis=2)
        k = lax.dynamic_update_slice_in_dim(kept["k"], k, at, axis=1)
        v = lax.dynamic_update_slice_in_dim(kept["v"], v, at, axis=1)
        new.append({"k": k, "v": v})
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + mixed @ own["attention"]["out"]
        hidden = jax.nn.gelu(_norm(x, own["mlp"]["norm"]) @ own["mlp"]["up"])
        x = x + hidden @ own["mlp"]["down"]
    return _norm(x, params["norm"]) @ params["tokens"].T, new


def generate(step, params: dict, cache: list[dict], token: jax.Array, at: int, count: int):
    """Greedy tokens, int32[count, batch], after one at position `at`; `step` is `forward` of a shape."""

    def one(state, _):
        cache, token, at = state
        logits, cache = step(params, cache, token[:, None], at)
        token = jnp.argmax(logits[:, -1], -1).astype(jnp.int32)
        return (cache, token, at + 1), token

    _, tokens = lax.scan(one, (cache, token, jnp.int32(at)), None, length=count)
    return tokens


def _norm(x, own):
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, -1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * own["scale"] + own["bias"]
