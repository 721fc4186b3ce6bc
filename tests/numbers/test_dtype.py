import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpjax import dfp16
from dfpjax.numbers.format.dtype import MantissaArray, from_integers, to_integers

pytestmark = pytest.mark.jax_releases


@pytest.fixture
def mantissas():
    return from_integers(jnp.arange(6, dtype=jnp.int16).reshape(2, 3))


def test_is_a_jax_array_of_int16_bits(mantissas):
    assert isinstance(mantissas, jax.Array)
    assert mantissas.dtype == dfp16 and mantissas.shape == (2, 3) and mantissas.nbytes == 12
    assert np.asarray(mantissas).dtype == np.int16
    np.testing.assert_array_equal(mantissas, np.arange(6).reshape(2, 3))
    assert "dtype=dfp16" in repr(mantissas)


def test_tangents_are_float32(mantissas):
    assert jax.typeof(mantissas).to_tangent_aval().dtype == jnp.float32


def test_leaves_and_enters_jit(mantissas):
    out = jax.jit(lambda x: (x, x.T, x[0], jnp.concatenate([x, x])))(mantissas)
    assert [x.shape for x in out] == [(2, 3), (3, 2), (3,), (4, 3)]
    assert all(isinstance(x, MantissaArray) for x in out)
    np.testing.assert_array_equal(out[1], np.arange(6).reshape(2, 3).T)


def test_is_captured_as_a_constant(mantissas):
    out = jax.jit(lambda: to_integers(mantissas) + 1)()
    np.testing.assert_array_equal(out, np.arange(1, 7).reshape(2, 3))


def test_scan_vmap_cond(mantissas):
    _, rows = jax.lax.scan(lambda c, row: (c, row), 0, mantissas)
    np.testing.assert_array_equal(rows, mantissas)
    doubled = jax.vmap(lambda row: 2 * to_integers(row))(mantissas)
    np.testing.assert_array_equal(doubled, 2 * np.arange(6).reshape(2, 3))
    chosen = jax.lax.cond(True, lambda x: x, lambda x: x[::-1], mantissas)
    np.testing.assert_array_equal(chosen, mantissas)


def test_moves_between_devices_and_processes(mantissas):
    assert jax.device_put(mantissas, jax.devices()[0]).dtype == dfp16
    np.testing.assert_array_equal(jax.device_get(mantissas), mantissas)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mantissas)), mantissas)


def test_structural_methods(mantissas):
    assert [row.shape for row in mantissas] == [(3,), (3,)]
    assert mantissas.reshape(3, 2).dtype == mantissas.T.dtype == mantissas.ravel().dtype == dfp16
    assert len(mantissas) == 2
    with pytest.raises(TypeError, match="truth value"):
        bool(mantissas[0, 0])


def test_zeros_and_full():
    np.testing.assert_array_equal(jnp.zeros((2,), dfp16), [0, 0])
    np.testing.assert_array_equal(jnp.full((2,), 3, dfp16), [3, 3])
