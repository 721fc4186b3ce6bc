"""Exported programs with frozen weights."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax

ROOT = Path(__file__).parents[2]


def test_an_exported_program_takes_frozen_weights():
    pytest.importorskip("flatbuffers", reason="serialization needs flatbuffers")
    random = np.random.default_rng(0)
    weights = {
        "kernel": jnp.asarray(random.normal(size=(64, 64)), jnp.float32),
        "conv": jnp.asarray(random.normal(size=(3, 3, 4, 8)), jnp.float32),
    }
    x = jnp.asarray(random.normal(size=(2, 4, 4, 4)), jnp.float32)

    def apply(weights, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, weights["conv"], (1, 1), "SAME", dimension_numbers=numbers)
        return y.reshape(4, 64) @ weights["kernel"]

    transformed = dfpjax.mixed_precision(apply)
    frozen = dfpjax.freeze(weights, fun=apply, args=(x,))
    exported = dfpjax.export(transformed, frozen, jax.ShapeDtypeStruct(x.shape, x.dtype))
    restored = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(restored.call(frozen, x), transformed(frozen, x))


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="export: fun"):
        dfpjax.export(3)


def test_the_example_serves_in_another_process(tmp_path):
    for module in ("flatbuffers", "safetensors"):
        pytest.importorskip(module)

    def run(name):
        command = [sys.executable, str(ROOT / "examples" / name), str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert "bytes" in run("serving_export.py")
    assert "bit for bit: True" in run("serving_call.py")
