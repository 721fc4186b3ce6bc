"""The formulas of the statistics, compared with NumPy in float64, and the float32 contraction with which the
shadow mode compares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Literal

from dfpjax.insight._shadow import contract_float32
from dfpjax.insight._statistics import operand_statistics, relative_error
from dfpjax.numbers import Quantizer
from dfpjax.numbers.format.dtype import to_integers
from dfpjax.numbers.format.quantize import quantize_array
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT
from dfpjax.operations.primitives import contract_linear_p, contract_p
from dfpjax.policy import OpConfig, Policy
from dfpjax.transform import mixed_precision


def oracle(x, mantissa, exponent, bits):
    """The statistics' fields for an array that is not all zeros, in float64."""
    x, mantissa = np.asarray(x, np.float64), np.asarray(mantissa, np.float64)
    value = mantissa * 2.0 ** np.asarray(exponent, np.float64)
    nonzero = x != 0
    with np.errstate(divide="ignore"):
        sqnr = 10 * np.log10(np.sum(x**2) / np.sum((x - value) ** 2))
    return {
        "exponent": np.max(exponent),
        "rms_over_max": np.sqrt(np.mean(x**2)) / np.abs(x).max(),
        "sqnr_db": sqnr,
        "zeros": np.sum(nonzero & (mantissa == 0)) / nonzero.sum(),
        "clamped": np.mean(np.abs(mantissa) == 2 ** (bits - 1) - 1),
    }


def statistics_of(x, bits, slice_axes=()):
    mantissa, exponent = quantize_array(jnp.asarray(x), Quantizer(bits=bits), slice_axes=slice_axes)
    mantissa = to_integers(mantissa)
    actual = operand_statistics(jnp.asarray(x), mantissa, exponent, bits=bits)
    return actual, oracle(x, mantissa, exponent, bits)


def assert_matches(actual, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(actual, name), value, rtol=2e-4, err_msg=name)


def values(kind: str) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(6, 50, 7)).astype(np.float32)
    match kind:
        case "outlier":
            x[0, 0, 0] = 3e4
        case "tiny":
            x *= np.float32(1e-36)  # with subnormal numbers
        case "huge":
            x *= np.float32(5e37)
        case "sparse":
            x[np.random.default_rng(1).random(x.shape) < 0.7] = 0
        case "at the limit":
            x = np.where(x > 0.5, np.float32(1.9999), x / 8)
        case "relu of cubes":
            x = np.maximum(x, 0) ** 3
    return x


@pytest.mark.parametrize("bits", [16, 8, 3])
@pytest.mark.parametrize(
    "kind", ["normal", "outlier", "tiny", "huge", "sparse", "at the limit", "relu of cubes"]
)
def test_the_formulas(kind, bits):
    assert_matches(*statistics_of(values(kind), bits))


def test_the_kinds_show_what_they_are_meant_to():
    assert statistics_of(values("outlier"), 8)[0].zeros > 0.9
    assert statistics_of(values("outlier"), 16)[0].rms_over_max < 0.05
    assert statistics_of(values("at the limit"), 8)[0].clamped > 0.2
    assert statistics_of(values("normal"), 16)[0].sqnr_db > statistics_of(values("normal"), 8)[0].sqnr_db + 40


def test_slices_with_exponents_of_their_own():
    x = values("normal") * (2.0 ** np.arange(-20, 22, 7)[:, None, None]).astype(np.float32)
    actual, expected = statistics_of(x, 8, slice_axes=(0,))
    assert_matches(actual, expected)
    assert actual.exponent.shape == ()


def statistics_of_any(x):
    """The statistics of an array that may be empty, zero or not finite."""
    mantissa, exponent = quantize_array(x, Quantizer())
    return operand_statistics(x, to_integers(mantissa), exponent, bits=16)


@pytest.mark.parametrize("shape", [(1,), (0, 3), (6, 50, 7)])
def test_nothing_but_zeros(shape):
    actual = jax.jit(statistics_of_any)(np.zeros(shape, np.float32))
    assert (actual.rms_over_max, actual.zeros, actual.clamped) == (0, 0, 0)
    assert actual.sqnr_db == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows(value):
    x = values("normal")
    x[1, 2, 3] = value
    actual = statistics_of_any(jnp.asarray(x))
    assert actual.exponent >= NONFINITE_EXPONENT // 2
    assert np.isnan([actual.rms_over_max, actual.sqnr_db, actual.zeros, actual.clamped]).all()


def test_many_elements_are_counted_right():
    x = np.ones((1 << 13, 2100), np.float32)  # more than the 2^24 that float32 can count one by one
    measure = jax.jit(functools.partial(operand_statistics, bits=8))
    actual = measure(x, np.full(x.shape, 127, np.int16), np.full((1, 1), -7, np.int32))
    assert (actual.clamped, actual.rms_over_max, actual.zeros) == (1, 1, 0)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_relative_error(scale):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(3, 5)).astype(np.float32) * np.float32(scale) for _ in range(2))
    expected = np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64))
    np.testing.assert_allclose(relative_error(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-5)
    assert relative_error(jnp.zeros(3), jnp.zeros(3)) == 0


def conv(x, w, strides, padding, lhs_dilation, rhs_dilation, **groups):
    return lax.conv_general_dilated(
        x, w, strides, padding, lhs_dilation, rhs_dilation, ("NHWC", "HWIO", "NHWC"), **groups
    )


CONVOLUTIONS = {
    "plain": ((2, 8, 9, 4), (3, 2, 4, 6), ((1, 1), "SAME", (1, 1), (1, 1)), {}),
    "strided": ((2, 9, 8, 4), (3, 3, 4, 6), ((2, 3), "SAME", (1, 1), (1, 1)), {}),
    "dilated": ((2, 6, 9, 4), (3, 2, 4, 6), ((2, 1), ((2, 0), (1, 3)), (2, 3), (2, 1)), {}),
    "cut": ((2, 9, 9, 4), (2, 2, 4, 6), ((2, 2), ((-1, 0), (0, -2)), (1, 1), (1, 1)), {}),
    "grouped": ((2, 7, 7, 6), (3, 3, 2, 9), ((2, 2), "SAME", (1, 1), (1, 1)), {"feature_group_count": 3}),
    "batch groups": ((6, 7, 7, 3), (3, 3, 3, 4), ((1, 1), "SAME", (1, 1), (1, 1)), {"batch_group_count": 2}),
}


def check_operations(fun, *operands):
    """Check fprop, dgrad and wgrad of a function with one operation."""
    transformed = mixed_precision(fun, Policy(default=OpConfig(force=True)))

    def program(*operands):
        out, vjp = jax.vjp(transformed, *operands)
        return vjp(jnp.sin(out))

    closed = jax.make_jaxpr(program)(*operands)

    @jax.jit
    def results(*operands):
        """For each operation its result, and the result of the float32 contraction."""
        env = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        env.update(zip(closed.jaxpr.invars, operands, strict=True))
        before_quantization = {}
        pairs = []
        for eqn in closed.eqns:
            values = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
            out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
            env.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))
            if eqn.primitive.name == "name" and eqn.invars[0] in before_quantization:
                before_quantization[eqn.outvars[0]] = before_quantization[eqn.invars[0]]
            if eqn.primitive.name == "dfp_quantize":
                before_quantization[eqn.outvars[0]] = values[0]
            if eqn.primitive in (contract_p, contract_linear_p):
                linear = eqn.primitive is contract_linear_p
                lhs = values[0] if linear else before_quantization[eqn.invars[0]]
                rhs = before_quantization[eqn.invars[1 if linear else 2]]
                pairs.append((out, contract_float32(lhs, rhs, eqn.params["contraction"])))
        return pairs

    pairs = results(*operands)
    assert len(pairs) == 3
    for out, expected in pairs:
        np.testing.assert_allclose(out, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_contract_float32_is_what_the_operations_compute(case):
    """Both without and with vmap."""
    x_shape, w_shape, numbers, groups = CONVOLUTIONS[case]
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (x_shape, w_shape))
    check_operations(lambda x, w: conv(x, w, *numbers, **groups), x, w)
    xs = np.stack([x, x[::-1], 2 * x])
    check_operations(jax.vmap(lambda x, w: conv(x, w, *numbers, **groups), (0, None)), xs, w)


def test_contract_float32_of_dot_products():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 4, 5, 6), (6, 3, 7, 5)))
    check_operations(lambda a, b: jnp.einsum("bijk,kblj->bil", a, b), a, b)
