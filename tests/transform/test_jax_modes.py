"""Programs under JAX's stricter modes and debugging switches, which the library itself must not trigger."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance.kinds import CONV, DENSE
from conformance.programs import PROGRAMS
from conformance.transformations import Subject, arguments, grad
from forced import FORCED
from transform_helpers import relative_error

from dfpjax.transform import mixed_precision

mixed = functools.partial(mixed_precision, policy=FORCED)
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


@functools.cache
def float32_gradients(subject):
    return jax.jit(grad(subject.f))(*arguments(subject.kind, "wx"))


# The first tier has every mode with one program.
QUICK = "scan_of_remat"
SUBJECTS = [("residual_net", CONV), (QUICK, DENSE), ("custom_vjp", DENSE), ("custom_jvp", CONV)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(
            Subject(PROGRAMS[program], kind),
            id=f"{program}-{kind.name}",
            marks=() if program == QUICK else pytest.mark.slow,
        )
        for program, kind in SUBJECTS
    ],
)
def test_gradients(mode, subject):
    args = arguments(subject.kind, "wx")
    expected = float32_gradients(subject)
    transformed = grad(mixed(subject.f)), mixed(grad(subject.f))
    with MODES[mode]():
        for actual in jax.jit(lambda *args: [fun(*args) for fun in transformed])(*args):
            assert jax.tree.map(jax.typeof, actual) == jax.tree.map(jax.typeof, expected)
            assert 0 < relative_error(actual, expected) < 3e-3


def test_nans_are_found():
    w, x = jnp.full((6, 6), jnp.nan), jnp.ones((4, 6))
    product = mixed(lambda w, x: x @ w)
    assert np.isnan(product(w, x)).all()
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        product(w, x)


def test_integers_stay_exact_among_floats():
    def fun(w, x, i, j):
        return x @ w, i @ j

    i, j = (jnp.arange(12, dtype=jnp.int32).reshape(shape) * 1_000_003 for shape in ((3, 4), (4, 3)))
    args = *arguments(DENSE, "wx"), i, j
    transformed = mixed(fun)
    _, product = transformed(*args)
    np.testing.assert_array_equal(product, i @ j)
    assert product.dtype == jnp.int32
