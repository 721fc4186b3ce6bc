"""Mantissas as a `jax.Array`: each of its members works, or raises an error that says what to do."""

import copy
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dfpjax
from dfpjax.numbers.format.dtype import MantissaArray, from_integers

NUMBERS = np.arange(6, dtype=np.int16).reshape(2, 3)


def mantissas() -> MantissaArray:
    return from_integers(jnp.asarray(NUMBERS))


OPERATORS = [
    name
    for name in dir(jax.Array)
    if re.fullmatch(r"__\w+__", name) and getattr(getattr(jax.Array, name), "__isabstractmethod__", False)
]
METHODS = [name for name in dir(jax.Array) if not name.startswith("_")]

# Arguments for each method that works; all others must be refused.
ARGUMENTS = {
    "addressable_data": (0,),
    "astype": (jnp.int16,),
    "block_until_ready": (),
    "copy": (),
    "copy_to_host_async": (),
    "devices": (),
    "flatten": (),
    "is_deleted": (),
    "on_device_size_in_bytes": (),
    "ravel": (),
    "reshape": (3, 2),
    "squeeze": (),
    "swapaxes": (0, 1),
    "take": (1, 0),
    "to_device": (jax.devices()[0],),
    "transpose": (),
    "delete": (),
    "__array__": (),
    "__copy__": (),
    "__deepcopy__": ({},),
    "__eq__": (from_integers(jnp.asarray(NUMBERS)),),
    "__ne__": (from_integers(jnp.asarray(NUMBERS)),),
    "__getitem__": (0,),
    "__iter__": (),
    "__len__": (),
}


@pytest.mark.parametrize("name", sorted({*OPERATORS, *METHODS}))
def test_every_member_works_or_says_what_to_do(name):
    x = mantissas()
    try:
        member = getattr(x, name)
        if name in ARGUMENTS:
            member(*ARGUMENTS[name])
        elif callable(member):
            member(x)
            pytest.fail(f"{name} is neither refused nor listed")
    except (AttributeError, TypeError) as error:
        assert name not in ARGUMENTS, error
        assert re.search(r"exponent|\.at|immutable", str(error)), error


def test_hidden_members_are_no_abstract_ones():
    for name in dir(jax.Array):
        member = getattr(MantissaArray, name, None)
        assert not getattr(member, "__isabstractmethod__", False), name


def test_absent_properties_are_absent_to_hasattr():
    assert not hasattr(mantissas(), "real") and not hasattr(mantissas(), "flat")
    with pytest.raises(TypeError, match=r"MantissaArray.__add__: .*\.dequantize\(\)"):
        mantissas() + 1
    with pytest.raises(TypeError, match=r"MantissaArray.__radd__"):
        np.float32(1) + mantissas()


def test_copies_and_conversions():
    x = mantissas()
    q = dfpjax.quantize(np.float32([1, -2, 3]))
    for duplicate in (
        copy.copy(x),
        copy.deepcopy(x),
        x.copy(),
        jnp.asarray(x),
        jnp.array(x),
        x.astype(x.dtype),
    ):
        assert isinstance(duplicate, MantissaArray)
        np.testing.assert_array_equal(duplicate, NUMBERS)
    np.testing.assert_array_equal(copy.deepcopy(q).dequantize(), [1, -2, 3])
    integers = x.astype(jnp.int16)
    assert integers.dtype == jnp.int16
    np.testing.assert_array_equal(integers, NUMBERS)
    with pytest.raises(TypeError, match=r"astype: dtype must be dfp16 or int16, got .*dequantize"):
        x.astype(jnp.float32)


def test_structure():
    x = mantissas()
    np.testing.assert_array_equal(x.mT, NUMBERS.T)
    np.testing.assert_array_equal(x.swapaxes(0, 1), NUMBERS.T)
    np.testing.assert_array_equal(x.flatten(), NUMBERS.ravel())
    np.testing.assert_array_equal(x.take(jnp.array([2, 0]), 1), NUMBERS[:, [2, 0]])


def test_comparison():
    x = mantissas()
    np.testing.assert_array_equal(x == from_integers(jnp.asarray(NUMBERS[::-1])), NUMBERS[::-1] == NUMBERS)
    assert not (x != x).any()
    with pytest.raises(TypeError, match=r"MantissaArray: == takes mantissas of the same dtype"):
        x == jnp.asarray(NUMBERS)  # noqa: B015
    assert (x == None) is False  # noqa: E711


def test_shards():
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    x = jax.device_put(mantissas(), sharding)
    for shards in (x.addressable_shards, x.global_shards):
        assert [shard.device for shard in shards] == list(mesh.devices)
        for row, shard in enumerate(shards):
            assert isinstance(shard.data, MantissaArray) and shard.replica_id == 0
            np.testing.assert_array_equal(shard.data, NUMBERS[row : row + 1])
            np.testing.assert_array_equal(NUMBERS[shard.index], shard.data)


def _loss(x):
    with jax.named_scope("layer"):
        y = x @ x
    return jnp.log(y - 100).sum()


@pytest.fixture
def debugged():
    with jax.debug_nans(True):
        yield


def test_debug_nans_lets_pass_what_is_finite(debugged):
    x = jnp.ones((4, 4))
    policy = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
    product = dfpjax.mixed_precision(jnp.matmul, policy)
    np.testing.assert_array_equal(product(x, x), np.full((4, 4), 4))
    q = jax.jit(dfpjax.quantize)(x)
    np.testing.assert_array_equal(q.mantissa, np.full((4, 4), 1 << 14))


def test_debug_nans_names_the_culprit(debugged):
    policy = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
    for transform in (lambda f: f, lambda f: dfpjax.mixed_precision(f, policy)):
        for call in (transform(_loss), jax.jit(transform(_loss)), jax.grad(transform(_loss))):
            with pytest.raises(FloatingPointError, match=r"invalid value \(nan\) encountered in log"):
                call(jnp.ones((4, 4)))
