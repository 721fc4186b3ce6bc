import functools
import operator

import exact
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dfpjax
import dfpjax.numpy as dnp
from dfpjax import DFP32Array, DFPArray
from dfpjax.numbers.format.scaling import NONFINITE_EXPONENT

# These functions move, shift and compare integers, so XLA has no float32 arithmetic to contract.
SHAPE = (2, 4, 6)
INTEGER = {DFPArray: np.int16, DFP32Array: np.int32}


def tensor(kind=DFPArray, exponent=-11, shape=SHAPE):
    bound = np.iinfo(INTEGER[kind]).max
    m = np.random.default_rng(0).integers(-bound, bound + 1, shape)
    return kind(jnp.asarray(m, INTEGER[kind]), exponent)


EXPONENTS = {
    "tensor": -11,
    "last": np.arange(6) - 9,
    "first": np.array([[[3]], [[-20]]]),
}
TENSORS = {
    **{f"{name}": tensor(DFPArray, exponent) for name, exponent in EXPONENTS.items()},
    "accumulator": tensor(DFP32Array, np.arange(12).reshape(2, 1, 6) - 14),
}
# Exponents along the first axis alone are in the slow tier: the accumulator has some along that and the last.
every_tensor = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "first" else ()) for name in TENSORS]
)


def assert_all_same_values(functions, references, *arguments):
    """Under jit, functions give the same numbers as the references on dequantized values, for each tuple of
    arguments. They are traced together, so they compile once."""
    assert functions.keys() == references.keys()
    compiled = jax.jit(lambda *xs: {k: f(*xs) for k, f in functions.items()})
    for tensors in arguments:
        assert_results(compiled(*tensors), references, *tensors)


def assert_results(results, references, *tensors):
    arrays = [numbers(x) for x in tensors]
    for key, result in results.items():
        assert type(result) is type(tensors[0])
        assert result.values.dtype == tensors[0].dtype
        np.testing.assert_array_equal(numbers(result), references[key](*arrays), err_msg=key)


def numbers(x):
    """float32 values, rounded once, by NumPy, because compiling `dequantize` for every result takes long."""
    return np.ldexp(np.asarray(x.mantissa, np.float64), np.asarray(x.exponent)).astype(np.float32)


INDICES = {
    "integer": 1,
    "negative": -1,
    "slice": slice(0, 1),
    "empty": slice(0, 0),
    "several": (slice(None), slice(1, 4, 2), slice(None, None, -1)),
    "ellipsis": (..., 3),
    "inner ellipsis": (1, ..., slice(2, 5)),
    "new axis": (slice(None), None, 2),
    "array": (slice(None), np.array([3, 0, 0])),
    "matrix of indices": np.array([[0, 1], [1, 1]]),
    "apart": (np.array([0, 1, 1]), slice(None), np.array([5, 0, 2])),
    "with an integer": (0, slice(None), np.array([5, 0])),
    "nothing": (),
    "everything": (0, 1, 2),
}


@every_tensor
def test_indexing(name):
    keys = {description: operator.itemgetter(key) for description, key in INDICES.items()}
    assert_all_same_values(keys, keys, (TENSORS[name],))


# Without jit, a few that use different primitives.
@pytest.mark.parametrize("key", ["integer", "several", "new axis", "apart"])
def test_indexing_without_jit(key):
    item = {key: operator.itemgetter(INDICES[key])}
    assert_results({key: item[key](TENSORS["last"])}, item, TENSORS["last"])


@every_tensor
def test_indexing_with_a_traced_position(name):
    x = TENSORS[name]
    element = jax.jit(lambda x, i: x[:, i])(x, 2)
    np.testing.assert_array_equal(numbers(element), numbers(x)[:, 2])


@pytest.mark.parametrize("name", ["last", "accumulator"])
def test_iteration_and_length(name):
    x = TENSORS[name]
    assert len(x) == 2
    for row, expected in zip(x, numbers(x), strict=True):
        np.testing.assert_array_equal(numbers(row), expected)
    with pytest.raises(TypeError, match="without axes"):
        len(type(x)(np.zeros((), x.mantissa.dtype), 0))


METHODS = {
    "reshape": lambda x: x.reshape(8, 6),
    "reshape tuple": lambda x: x.reshape((2, -1, 3)),
    "reshape split": lambda x: x.reshape(2, 2, 1, 2, 3, 2),
    "ravel": lambda x: x.ravel(),
    "T": lambda x: x.T,
    "transpose": lambda x: x.transpose(1, 0, 2),
    "transpose tuple": lambda x: x.transpose((2, 0, 1)),
    "swapaxes": lambda x: x.swapaxes(0, 2),
    "squeeze": lambda x: x[:1].squeeze(),
    "squeeze axis": lambda x: x[:1].squeeze(0),
}


@every_tensor
def test_methods(name):
    assert_all_same_values(METHODS, METHODS, (TENSORS[name],))


@pytest.mark.parametrize("method", ["reshape split", "T", "squeeze"])
def test_methods_without_jit(method):
    assert_results({method: METHODS[method](TENSORS["last"])}, METHODS, TENSORS["last"])


INDICES_TO_TAKE = np.array([[1, 0], [-1, 1]])
FUNCTIONS = {
    "reshape": lambda x, m: m.reshape(x, (4, 12)),
    "transpose": lambda x, m: m.transpose(x, (0, 2, 1)),
    "swapaxes": lambda x, m: m.swapaxes(x, -1, 0),
    "moveaxis": lambda x, m: m.moveaxis(x, (0, 1), (2, 0)),
    "expand_dims": lambda x, m: m.expand_dims(x, (0, 2)),
    "ravel": lambda x, m: m.ravel(x),
    "broadcast_to": lambda x, m: m.broadcast_to(x, (3, 2, 4, 6)),
    "flip": lambda x, m: m.flip(x),
    "flip an axis": lambda x, m: m.flip(x, 2),
    "pad": lambda x, m: m.pad(x, ((1, 2), (0, 0), (3, 0))),
    "pad alike": lambda x, m: m.pad(x, (1, 0)),
    "absolute": lambda x, m: m.absolute(x),
    "take 0": lambda x, m: m.take(x, INDICES_TO_TAKE, 0),
    "take 1": lambda x, m: m.take(x, INDICES_TO_TAKE, 1),
    "take -1": lambda x, m: m.take(x, INDICES_TO_TAKE, -1),
    **{
        f"{name} {axis}": lambda x, m, name=name, count=count, axis=axis: getattr(m, name)([x] * count, axis)
        for name, count in (("concatenate", 2), ("stack", 3))
        for axis in (0, 1, -1)
    },
}
DNP, NP = ({name: functools.partial(f, m=module) for name, f in FUNCTIONS.items()} for module in (dnp, np))


@every_tensor
def test_functions_named_as_numpys(name):
    assert_all_same_values(DNP, NP, (TENSORS[name],))


@pytest.mark.parametrize(
    "function", ["moveaxis", "broadcast_to", "flip", "pad", "absolute", "take 1", "concatenate 1", "stack 0"]
)
def test_functions_without_jit(function):
    assert_results({function: DNP[function](TENSORS["last"])}, NP, TENSORS["last"])


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.reshape(2, 4, 3, 2), (1, 1, 3, 2)),
        (lambda x: x.reshape(8, 6), (1, 6)),
        (lambda x: x.T, (6, 1, 1)),
        (lambda x: x[0], (1, 6)),
        (lambda x: x[..., 1:3], (1, 1, 2)),
        (lambda x: x[..., 1], (1, 1)),
        (lambda x: x[np.array([0, 1, 1])], (1, 1, 6)),
        (lambda x: dnp.expand_dims(x, 3), (1, 1, 6, 1)),
        (lambda x: dnp.pad(x, ((1, 1), (0, 0), (0, 0))), (1, 1, 6)),
        (lambda x: dnp.relu(x), (1, 1, 6)),
        (lambda x: dnp.max_pool(x, (2,)), (1, 1, 6)),
        (lambda x: dnp.concatenate([x, x]), (1, 1, 6)),
    ],
)
def test_shared_exponents_stay_shared(function, shape):
    assert jax.eval_shape(function, TENSORS["last"]).exponent.shape == shape


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1, 1)])
def test_empty_and_scalar(shape):
    @jax.jit
    def results(x):
        same = dnp.relu(x), dnp.pad(x, 0), dnp.expand_dims(x, 0).reshape(shape)
        return dnp.ravel(x), dnp.transpose(x), dnp.stack([x, x]), *same

    shapes = (int(np.prod(shape)),), shape[::-1], (2, *shape), shape, shape, shape
    for result, expected in zip(results(DFPArray(np.ones(shape, np.int16), 0)), shapes, strict=True):
        np.testing.assert_array_equal(numbers(result), np.ones(expected))


def test_reshape_of_an_empty_tensor_with_exponents_per_slice():
    x = DFPArray(np.zeros((0, 4), np.int16), np.arange(4))
    assert jax.jit(lambda x: x.reshape(4, 0, 2).dequantize())(x).shape == (4, 0, 2)


# --- joining --------------------------------------------------------------------------------------

ELEMENTS = st.lists(st.integers(-32767, 32767), min_size=3, max_size=3)


@pytest.mark.parametrize("rounding", exact.ROUNDINGS)
@settings(deadline=None, max_examples=50)
@given(ELEMENTS, ELEMENTS, st.integers(-40, 40))
def test_concatenate_aligns_as_an_addition(rounding, ma, mb, eb):
    a, b = (DFPArray(np.asarray(m, np.int16), e) for m, e in ((ma, 0), (mb, eb)))
    joined = dnp.concatenate([a, b], rounding=rounding)
    zeros = [0] * 3
    expected_a, exponent = exact.add(ma + zeros, 0, zeros + mb, eb, 16, rounding)
    np.testing.assert_array_equal(joined.mantissa, expected_a)
    assert int(joined.exponent) == exponent
    stacked = dnp.stack([a, b], axis=1, rounding=rounding)
    np.testing.assert_array_equal(stacked.mantissa, expected_a.reshape(2, 3).T)
    assert int(stacked.exponent) == exponent


def test_concatenate_along_an_axis_of_exponents_shifts_nothing():
    a, b = TENSORS["first"], tensor(exponent=90)
    joined = dnp.concatenate([a, b])
    assert_results({"": joined}, {"": lambda a, b: np.concatenate([a, b])}, a, b)
    np.testing.assert_array_equal(joined.exponent.ravel(), [3, -20, 90, 90])


def test_concatenate_with_an_accumulator():
    a, b = TENSORS["tensor"], tensor(DFP32Array, -27)
    joined = dnp.concatenate([a, b])
    assert isinstance(joined, DFP32Array) and int(joined.exponent) == -27
    mantissa = np.asarray(joined.mantissa)
    np.testing.assert_array_equal(mantissa[:2], np.int32(a.mantissa) << 16)
    np.testing.assert_array_equal(mantissa[2:], b.mantissa)


def test_concatenate_with_zeros_and_nonfinite():
    small, zero = DFPArray(np.ones(2, np.int16), -300), DFPArray(np.zeros(2, np.int16), 0)
    nan = DFPArray(np.zeros(2, np.int16), NONFINITE_EXPONENT)
    concatenate, stack = (jax.jit(lambda *xs, join=join: join(xs)) for join in (dnp.concatenate, dnp.stack))
    assert int(concatenate(small, zero).exponent) == -300
    for joined in (concatenate(small, nan), stack(nan, zero)):
        assert np.isnan(np.asarray(joined)).all()


# --- selection ------------------------------------------------------------------------------------


@every_tensor
def test_relu_and_maximum(name):
    x = TENSORS[name]
    opposite = type(x)(-np.asarray(x.mantissa), x.exponent)
    functions = {"relu": lambda x, _: dnp.relu(x), "maximum": dnp.maximum}
    references = {"relu": lambda x, _: np.maximum(x, 0), "maximum": np.maximum}
    assert_all_same_values(functions, references, (x, opposite))


def test_relu_and_maximum_without_jit():
    x, y = TENSORS["last"], DFPArray(-np.asarray(TENSORS["last"].mantissa), EXPONENTS["last"])
    results = {"relu": dnp.relu(x), "maximum": dnp.maximum(x, y)}
    assert_results(results, {"relu": lambda x, _: np.maximum(x, 0), "maximum": np.maximum}, x, y)


def test_maximum_aligns():
    a, b = DFPArray(np.array([3, -3], np.int16), 0), DFPArray(np.array([2, 2], np.int16), 1)
    larger = dnp.maximum(a, b)
    np.testing.assert_array_equal(larger.mantissa, [2, 2])
    assert int(larger.exponent) == 1


POOLS = [
    ((2, 2), None, "VALID"), ((2, 2), (2, 2), "VALID"), ((3, 3), (2, 2), "SAME"), ((3, 2), (1, 3), "SAME"),
    ((3, 3), (2, 1), [(1, 2), (0, 1)]), ((1, 1), (2, 2), "VALID"), ((7, 8), (1, 1), "VALID"),
]  # fmt: skip


@pytest.mark.parametrize("kind", [DFPArray, DFP32Array])
@pytest.mark.parametrize("exponent", [-9, np.array([1, -1, 20])])
def test_max_pool(kind, exponent):
    ours, flaxs = (
        {str(pool): lambda x, f=module.max_pool, pool=pool: f(x, *pool) for pool in POOLS}
        for module in (dnp, nn)
    )
    x = tensor(kind, exponent, (2, 7, 8, 3))
    negative = kind(-np.abs(x.mantissa), exponent)  # among negative values, padding with zeros would show
    assert_all_same_values(ours, flaxs, (x,), (negative,))


def test_selection_keeps_nonfinite():
    nan = DFPArray(np.zeros((1, 4, 1), np.int16), NONFINITE_EXPONENT)
    for result in jax.jit(lambda x: (dnp.relu(x), dnp.max_pool(x, (2,)), x[:, 1:2], x.ravel()))(nan):
        assert np.isnan(np.asarray(result)).all()


# --- derivatives and vmap -------------------------------------------------------------------------

DIFFERENTIABLE = {
    "structure": lambda x, m: m.flip(m.pad(m.moveaxis(x.reshape(8, 6).T[1:4], 0, 1), 1), 0),
    "take": lambda x, m: m.take(x, np.array([1, 1, 0]), 1),
    "concatenate": lambda x, m: m.concatenate([x, m.stack([x, x])[1, :1]]),
    "broadcast_to": lambda x, m: m.broadcast_to(x, (3, *SHAPE)),
    "relu": lambda x, m: (dnp.relu if m is dnp else jax.nn.relu)(x),
    "max_pool": lambda x, m: (dnp if m is dnp else nn).max_pool(x, (3,), (2,), "SAME"),
}


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_derivatives(function):
    f = DIFFERENTIABLE[function]
    x = numbers(tensor())

    def real(x):
        return (f(x, jnp) ** 2).sum()

    def integer(x):
        return (f(dfpjax.quantize(x), dnp).dequantize() ** 2).sum()

    actual, expected = jax.jit(lambda x: (jax.grad(integer)(x), jax.grad(real)(x)))(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_max_pool_sends_the_derivative_to_the_first_of_equals():
    x = np.ones((1, 4, 4, 1), np.float32)
    gradient = jax.grad(lambda x: dnp.max_pool(dfpjax.quantize(x), (2, 2), (2, 2)).dequantize().sum())
    first = np.zeros((4, 4))
    first[::2, ::2] = 1
    np.testing.assert_array_equal(jax.jit(gradient)(x)[0, :, :, 0], first)


def test_vmap_is_the_loop():
    x = jax.vmap(dfpjax.quantize)(numbers(tensor()) * np.float32([1, 1e6])[:, None, None])
    assert x.exponent.shape == (2, 1, 1)

    def f(x):
        return dnp.concatenate([dnp.relu(x).T[1:], dnp.pad(x[:, 2:], 1).reshape(6, 6)[:5, :4]])

    batched, one = jax.jit(jax.vmap(f))(x), jax.jit(f)
    for i in range(2):
        alone = one(DFPArray(np.asarray(x.mantissa)[i], np.asarray(x.exponent)[i]))
        np.testing.assert_array_equal(np.asarray(batched.mantissa)[i], alone.mantissa)
        np.testing.assert_array_equal(np.asarray(batched.exponent)[i], alone.exponent)


# --- errors ---------------------------------------------------------------------------------------

Q = TENSORS["tensor"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dnp.reshape(np.ones(3), 3), TypeError, "reshape: x must be .* quantize it first"),
        (lambda: dnp.relu(jnp.ones(3)), TypeError, "relu: x must be .* quantize it first"),
        (lambda: dnp.concatenate([Q, np.ones(3)]), TypeError, r"concatenate: arrays\[1\] must be"),
        (lambda: dnp.concatenate([]), ValueError, "needs one or more arrays of the same rank"),
        (lambda: dnp.stack([Q, Q[0]]), ValueError, "needs one or more arrays of the same rank"),
        (lambda: dnp.concatenate([Q, Q], 3), ValueError, "concatenate: axis 3 is not one of 3 axes"),
        (lambda: dnp.stack([Q, Q], 4), ValueError, "stack: axis 4 is not one of 4 axes"),
        (lambda: dnp.squeeze(Q, 1), ValueError, "squeeze: axis 1 .* has an extent other than 1"),
        (lambda: dnp.pad(Q, -1), ValueError, "pad: pad_width must not be negative"),
        (lambda: dnp.take(Q, 0, 5), ValueError, "take: axis 5 is not one of 3 axes"),
        (lambda: TENSORS["last"][np.ones(2, bool)], TypeError, "boolean mask"),
        (lambda: dnp.max_pool(Q, (2, 2, 2)), ValueError, "max_pool: window_shape"),
        (lambda: dnp.max_pool(Q, (2,), (0,)), ValueError, "max_pool: window_shape .* must be positive"),
        (lambda: dnp.max_pool(Q, (2,), padding=[(2, 0)]), ValueError, "max_pool: padding must be a pair"),
        (lambda: dnp.max_pool(Q, (5,)), ValueError, "window's extent 5 exceeds axis 1, padded to 4"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
