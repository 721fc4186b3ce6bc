"""Programs under JAX's stricter modes and debugging switches, which the library itself must not trigger."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance.kinds import CONV, DENSE
from conformance.matrix import MIXED
from conformance.programs import PROGRAMS
from conformance.transformations import Subject, arguments, grad
from transform_helpers import relative_error

from dfpjax.transform import mixed_precision

MODES = {
    "strict dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "checks": lambda: jax.enable_checks(True),
    "leaks": jax.checking_leaks,
    "nans": lambda: jax.debug_nans(True),
    "infinities": lambda: jax.debug_infs(True),
    "transfers": lambda: jax.transfer_guard("disallow"),
    "x64": lambda: jax.enable_x64(True),
    "no jit": jax.disable_jit,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("residual_net", CONV),
        ("scan_of_remat", DENSE),
        ("custom_vjp", DENSE),
        ("custom_jvp", CONV),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_gradients(mode, program, kind):
    subject, args = Subject(PROGRAMS[program], kind), arguments(kind, "wx")
    expected = grad(subject.f)(*args)
    with MODES[mode]():
        for transformed in (grad(MIXED(subject.f)), MIXED(grad(subject.f))):
            actual = jax.jit(transformed)(*args)
            assert jax.tree.map(jax.typeof, actual) == jax.tree.map(jax.typeof, expected)
            assert 0 < relative_error(actual, expected) < 3e-3


def test_nans_are_found():
    w, x = jnp.full((6, 6), jnp.nan), jnp.ones((4, 6))
    product = MIXED(lambda w, x: x @ w)
    assert np.isnan(product(w, x)).all()
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        product(w, x)


def test_integers_stay_exact_among_floats():
    def fun(w, x, i, j):
        return x @ w, i @ j

    i, j = (jnp.arange(12, dtype=jnp.int32).reshape(shape) * 1_000_003 for shape in ((3, 4), (4, 3)))
    args = *arguments(DENSE, "wx"), i, j
    transformed = mixed_precision(fun, MIXED.keywords["policy"])
    _, product = transformed(*args)
    np.testing.assert_array_equal(product, i @ j)
    assert product.dtype == jnp.int32
