"""Tests an installed wheel, in an environment that has nothing else: `python .ci/smoke.py`.

Run it away from the checkout, so that the package is the installed one.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import dfpjax


def command(name: str) -> str:
    """The path of a console script of this environment."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is not installed"
    return found


package = Path(dfpjax.__file__).parent
assert "site-packages" in package.parts, f"this is not the installed package: {package}"
assert (package / "py.typed").exists() and (package / "recipes" / "configs" / "digits.py").exists()
assert importlib.metadata.version("dfpjax") == dfpjax.__version__


def loss(w, x):
    return jnp.sum(jax.nn.relu(x @ w) ** 2)


x = jax.random.normal(jax.random.key(0), (256, 256))
gradient = jax.jit(jax.grad(dfpjax.mixed_precision(loss)))(x, x)
exact = jax.grad(loss)(x, x)
assert jnp.linalg.norm(gradient - exact) < 1e-3 * jnp.linalg.norm(exact)
assert dfpjax.explain(loss, x, x).coverage == 1

info = subprocess.run([command("dfpjax"), "info"], capture_output=True, text=True, check=True).stdout
assert dfpjax.runtime_info().isa in info
train = subprocess.run([command("dfpjax-train"), "--config", "digits"], capture_output=True, text=True)
assert train.returncode == 1 and 'pip install "dfpjax[train]"' in train.stderr, train.stderr

description = importlib.metadata.metadata("dfpjax").json["description"]
relative = re.findall(r"\]\((?!https?:|#)[^)]*\)", description)
assert description.startswith("# dfpjax") and not relative, f"links that lead nowhere: {relative}"
print(f"dfpjax {dfpjax.__version__} works in {sys.prefix}: {dfpjax.runtime_info().isa}")
