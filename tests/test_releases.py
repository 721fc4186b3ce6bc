"""The supported releases of JAX, and the faults of releases that are not supported."""

import tomllib
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement

from dfpjax import _releases

pytestmark = pytest.mark.jax_releases

ALLOWED = ["0.10.0", "0.10.1", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1"]


@pytest.mark.parametrize(
    ("jaxlib", "issue"),
    [("0.10.2", "jax#39103"), ("0.11.0", "jax#39257"), ("0.11.0.dev20260701", "jax#39257")],
)
def test_a_faulty_release_is_warned_of(jaxlib, issue):
    with pytest.warns(RuntimeWarning, match=f"jaxlib {jaxlib} .*{issue}.*pip install 'jax>="):
        _releases.check(jaxlib, jaxlib)


def test_the_compiler_is_what_counts():
    with pytest.warns(RuntimeWarning, match="jaxlib 0.11.0 "):
        _releases.check("0.11.1", "0.11.0")


@pytest.mark.parametrize("version", ALLOWED)
def test_of_a_supported_release_nothing_is_said(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _releases.check(version, version)


def test_older_ones_are_refused_and_newer_ones_said_to_be_untested():
    with pytest.raises(ImportError, match=r"JAX 0\.10 or later, found 0\.9\.2: pip install"):
        _releases.check("0.9.2", "0.9.2")
    for version in ("0.13", "1.0.0", "0.13.0.dev1"):
        with pytest.warns(RuntimeWarning, match=rf"not tested with JAX {version}, only .* before 0\.13"):
            _releases.check(version, version)


PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())


def test_pip_keeps_to_the_same_releases():
    assert _releases.SUPPORTED in PYPROJECT["project"]["dependencies"]
    supported = Requirement(_releases.SUPPORTED).specifier
    for release in _releases.FAULTY:
        assert not supported.contains(".".join(map(str, release)))
    assert all(map(supported.contains, ALLOWED))


def test_the_kernels_are_built_with_the_oldest_headers():
    """With a handler built with the headers of JAX 0.12, JAX 0.10 starts no CPU backend, for any program."""
    requirements = [*map(Requirement, PYPROJECT["build-system"]["requires"])]
    for python in ("3.11", "3.12", "3.13", "3.14"):
        (jax,) = (r for r in requirements if r.marker and r.marker.evaluate({"python_version": python}))
        assert {*filter(jax.specifier.contains, ALLOWED)} == {"0.10.0", "0.10.1"}


@pytest.mark.optimized
def test_this_release_reduces_as_the_faulty_one_does_not():
    """jax#39103: the last rows contained results of another part of the array."""
    x = np.zeros((32_769, 3), np.float32)
    x[:, 0] = np.arange(len(x))
    actual = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)
    np.testing.assert_allclose(actual, x[:, 0].astype(float) ** 2, rtol=1e-6)


@pytest.mark.optimized
def test_this_release_reduces_arrays_of_many_axes():
    """jax#40412: this crashed."""
    x, y = np.random.default_rng(0).standard_normal((2, 3, 1, 2, 2, 8, 8, 8), np.float32)
    np.testing.assert_allclose(jax.jit(lambda x, y: jnp.sum(x * y, axis=3))(x, y), (x * y).sum(3), atol=1e-6)
