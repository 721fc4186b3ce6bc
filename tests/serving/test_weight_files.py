"""Frozen weights in files."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import dfpjax
from dfpjax import serving


def variables():
    random = np.random.default_rng(0)
    shapes = {"matrix": (96, 64), "kernel": (3, 3, 8, 16), "stack": (2, 64, 64), "bias": (64,)}
    return {
        "params": {
            name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()
        }
    }


def frozen():
    x = jnp.ones((2, 64))

    def apply(v, x):
        p = v["params"]
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, p["stack"])
        image = jnp.ones((1, 4, 4, 8))
        numbers = ("NHWC", "HWIO", "NHWC")
        maps = jax.lax.conv_general_dilated(image, p["kernel"], (1, 1), "SAME", dimension_numbers=numbers)
        return x @ p["matrix"].T, maps, p["bias"]

    return dfpjax.freeze(variables(), fun=apply, args=(x,))


def assert_same_values(actual, expected):
    for a, b in zip(
        jax.tree.leaves(dfpjax.thaw(actual)), jax.tree.leaves(dfpjax.thaw(expected)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_plain_arrays_and_back():
    tree = frozen()
    assert (
        sum(isinstance(x, dfpjax.FrozenArray) for x in jax.tree.leaves(tree, is_leaf=serving.is_frozen)) == 3
    )
    stored = serving.to_arrays(tree)
    assert stored["params"]["matrix"]["mantissa"].dtype == np.int16
    assert_same_values(serving.from_arrays(stored), tree)


def test_orbax(tmp_path):
    tree = frozen()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "weights", serving.to_arrays(tree))
    restored = ocp.PyTreeCheckpointHandler().restore(tmp_path / "weights")
    assert_same_values(serving.from_arrays(restored), tree)


@pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="needs safetensors")
def test_safetensors(tmp_path):
    tree = frozen()
    serving.save_safetensors(tmp_path / "weights", tree)
    whole = sum(x.nbytes for x in jax.tree.leaves(variables()))
    assert (tmp_path / "weights").stat().st_size < 0.56 * whole
    assert_same_values(serving.load_safetensors(tmp_path / "weights"), tree)


def test_safetensors_takes_dictionaries_alone(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(TypeError, match="nested dictionaries"):
        serving.save_safetensors(tmp_path / "weights", [jnp.ones(3)])


def test_exponents_that_do_not_fit_are_refused():
    stored = {
        "mantissa": np.ones((4, 64), np.int16),
        "exponent": np.zeros(3, np.int32),
        "blocks": np.array([1, 32]),
    }
    with pytest.raises(ValueError, match="need exponents of shape"):
        serving.from_arrays(stored)
