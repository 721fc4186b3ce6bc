"""The benchmarks of serving run, and their decoder generates float32's tokens."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

import dfpjax
from benchmarks.serving import __main__ as products
from benchmarks.serving import decoder, model


def test_products(tmp_path):
    arguments = ["--matrix", "64x96", "--rows", "1,2", "--budget", "0.01", "--rounds", "1"]
    rows = products.main([*arguments, "--allocator", "default", "--out", str(tmp_path / "products")])
    assert [row["rows"] for row in rows] == [1, 2]
    assert json.loads((tmp_path / "products.json").read_text())["rows"][0]["bytes"] == rows[0]["bytes"]
    assert "| 64×96 | 2 |" in (tmp_path / "products.md").read_text()


def test_the_decoder_agrees_with_float32(tmp_path):
    arguments = [
        "--model",
        "tiny",
        "--prompt",
        "16",
        "--count",
        "2",
        "--rounds",
        "1",
        "--allocator",
        "default",
    ]
    found = decoder.main([*arguments, "--out", str(tmp_path / "decoder")])
    assert found["frozen"]["prompt_agreement"] == found["frozen"]["generated_agreement"] == 1
    assert found["frozen"]["prompt_decided"] > 8 and found["frozen"]["generated_decided"] > 0
    assert found["frozen"]["bytes"] < found["jax float32"]["bytes"]


def test_the_cache_gives_the_logits_of_the_whole_text():
    shape = model.SHAPES["tiny"]
    params = model.init(shape, jax.random.key(0))
    step = functools.partial(model.forward, shape)
    text = jnp.array([[5, 700, 3, 9]])
    whole, _ = step(params, model.empty_cache(shape, 1, 8), text, jnp.int32(0))
    _, cache = step(params, model.empty_cache(shape, 1, 8), text[:, :3], jnp.int32(0))
    last, _ = step(params, cache, text[:, 3:], jnp.int32(3))
    np.testing.assert_allclose(last[:, 0], whole[:, 3], rtol=1e-4, atol=1e-4)
    args = (model.empty_cache(shape, 1, 8), text, jnp.int32(0))
    frozen = dfpjax.freeze(params, fun=step, args=args)
    assert dfpjax.explain(step, frozen, *args).coverage > 0.9
