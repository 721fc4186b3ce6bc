"""The core needs jax and numpy alone."""

import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

PROGRAM = """
import sys

OTHERS = {OTHERS}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OTHERS:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
import jax, jax.numpy as jnp
import dfpjax

def loss(w, x):
    return jnp.sum(jax.nn.relu(x @ w) ** 2)

w, x = jnp.ones((256, 256)), jnp.ones((256, 256))
policy = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
gradient = jax.jit(jax.grad(dfpjax.mixed_precision(loss, policy)))(w, x)
assert jnp.allclose(gradient, jax.grad(loss)(w, x), rtol=1e-3)
assert dfpjax.explain(loss, w, x, policy=policy).coverage == 1
dfpjax.with_statistics(loss, policy)(w, x)
dfpjax.quantize(x)
from dfpjax.__main__ import main
main(["info"])
"""


def test_the_dependencies_are_jax_and_numpy():
    assert [requirement.partition(">")[0] for requirement in PROJECT["dependencies"]] == ["jax", "numpy"]


def test_a_wrapped_function_needs_no_package_of_an_extra():
    others = {
        "PIL", "absl", "array_record", "equinox", "flatbuffers", "flax", "grain", "matplotlib",
        "ml_collections", "optax", "orbax", "rich", "sklearn", "tensorboardX", "tensorflow_datasets",
    }  # fmt: skip
    program = PROGRAM.replace("{OTHERS}", repr(others))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
