"""The handler refuses every bad argument with an error that begins with the argument's name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.contraction.plan import make_plan

CONTRACTION = Contraction(lhs=(0, 1), rhs=(1, 2), out=(0, 2), out_shape=(4, 3))
PLAN = np.asarray(make_plan(CONTRACTION, (4, 5), (5, 3), (1, 1), (1, 1)).encode(), np.int64)
PER_ROW = np.asarray(make_plan(CONTRACTION, (4, 5), (5, 3), (4, 1), (1, 1)).encode(), np.int64)
PER_COLUMN = np.asarray(make_plan(CONTRACTION, (4, 5), (5, 3), (1, 1), (1, 3)).encode(), np.int64)
BASE_B = 5  # index in the plan of B's first element


def call(**changes):
    """The product of 4×5 and 5×3 ones. `changes` replace arguments; None omits an attribute."""
    arguments = {
        "a": jnp.ones((4, 5), jnp.int16),
        "b": jnp.ones((5, 3), jnp.int16),
        "ea": jnp.zeros((), jnp.int32),
        "eb": jnp.zeros((), jnp.int32),
        "c": jax.ShapeDtypeStruct((4, 3), jnp.float32),
        "plan": PLAN,
        "isa": "",
        "threads": np.int64(0),
        **changes,
    }
    operands = [arguments.pop(name) for name in ("a", "b", "ea", "eb")]
    function = jax.ffi.ffi_call("dfpjax_contract_v1", arguments.pop("c"))
    attributes = {name: value for name, value in arguments.items() if value is not None}
    return np.asarray(function(*operands, **attributes))


def call_fixed_chain(**changes):
    """Like `call`, with a fixed chain length; `saturated` is the second result."""
    arguments = {
        "saturated": jax.ShapeDtypeStruct((1,), jnp.int32),
        "plan": PLAN,
        "chain": np.int64(4),
        "bounded": False,
        "isa": "",
        "threads": np.int64(0),
        **changes,
    }
    operands = jnp.ones((4, 5), jnp.int16), jnp.ones((5, 3), jnp.int16), *(jnp.zeros((), jnp.int32),) * 2
    results = [jax.ShapeDtypeStruct((4, 3), jnp.float32), arguments.pop("saturated")]
    function = jax.ffi.ffi_call("dfpjax_fixed_chain_v1", results)
    attributes = {name: value for name, value in arguments.items() if value is not None}
    return jax.device_get(function(*operands, **attributes))


def call_chain_lengths(**changes):
    """Like `call`, with certified chains; `lengths` is the second result."""
    arguments = {
        "lengths": jax.ShapeDtypeStruct((1, 8), jnp.float32),
        "plan": PLAN,
        "isa": "",
        "threads": np.int64(0),
        **changes,
    }
    operands = jnp.ones((4, 5), jnp.int16), jnp.ones((5, 3), jnp.int16), *(jnp.zeros((), jnp.int32),) * 2
    results = [jax.ShapeDtypeStruct((4, 3), jnp.float32), arguments.pop("lengths")]
    function = jax.ffi.ffi_call("dfpjax_chain_lengths_v1", results)
    attributes = {name: value for name, value in arguments.items() if value is not None}
    return jax.device_get(function(*operands, **attributes))


def changed(plan, at, value):
    plan = plan.copy()
    plan[at] = value
    return plan


def test_good_arguments_are_taken():
    assert (call() == 5).all()
    out, saturated = call_fixed_chain()
    assert (out == 5).all() and saturated == [0]
    out, lengths = call_chain_lengths()
    assert (out == 5).all() and lengths.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "message", "changes"),
    [
        ("a", "type S16, not S32", {"a": jnp.ones((4, 5), jnp.int32)}),
        ("a", "outside the operand", {"a": jnp.ones((3, 5), jnp.int16)}),
        ("b", "type S16, not F32", {"b": jnp.ones((5, 3))}),
        ("b", "outside the operand", {"b": jnp.ones((5, 2), jnp.int16)}),
        ("b", "outside the operand", {"plan": changed(PLAN, BASE_B, 1)}),
        ("b", "outside the operand", {"plan": changed(PLAN, BASE_B, -1)}),
        ("ea", "type S32, not S16", {"ea": jnp.zeros((), jnp.int16)}),
        ("ea", "outside the exponents", {"ea": jnp.zeros(0, jnp.int32)}),
        ("ea", "outside the exponents", {"ea": jnp.zeros((3, 1), jnp.int32), "plan": PER_ROW}),
        ("eb", "type S32, not F32", {"eb": jnp.zeros(())}),
        ("eb", "outside the exponents", {"eb": jnp.zeros(0, jnp.int32)}),
        ("eb", "outside the exponents", {"eb": jnp.zeros((1, 2), jnp.int32), "plan": PER_COLUMN}),
        ("c", "type F32, not S32", {"c": jax.ShapeDtypeStruct((4, 3), jnp.int32)}),
        ("c", "more outputs", {"c": jax.ShapeDtypeStruct((4, 2), jnp.float32)}),
        ("c", "fewer outputs", {"c": jax.ShapeDtypeStruct((5, 3), jnp.float32)}),
        ("plan", "missing", {"plan": None}),
        ("plan", "expected S64 but got S32", {"plan": PLAN.astype(np.int32)}),
        ("plan", "expected array but got scalar", {"plan": np.int64(1)}),
        ("plan", "truncated", {"plan": PLAN[:-1]}),
        ("plan", "trailing", {"plan": np.append(PLAN, 0)}),
        ("plan", "unknown version", {"plan": changed(PLAN, 0, 99)}),
        ("plan", "unknown mode", {"plan": changed(PLAN, 3, 7)}),
        ("isa", "missing", {"isa": None}),
        ("isa", "expected string but got scalar", {"isa": np.int64(1)}),
        ("isa", "sse9.*portable", {"isa": "sse9"}),
        ("threads", "missing", {"threads": None}),
        ("threads", "expected S64 but got F32", {"threads": np.float32(1)}),
        ("threads", "negative", {"threads": np.int64(-1)}),
    ],
)
def test_a_bad_argument_is_named(name, message, changes):
    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"(?s)INVALID_ARGUMENT: {name}: .*{message}"):
        call(**changes)


@pytest.mark.parametrize(
    ("name", "message", "changes"),
    [
        ("chain", "missing", {"chain": None}),
        ("chain", "expected S64 but got F32", {"chain": np.float32(4.5)}),
        *(("chain", "power of two from 2 to 256", {"chain": np.int64(n)}) for n in (-4, 0, 1, 3, 100, 512)),
        ("bounded", "missing", {"bounded": None}),
        ("bounded", "expected PRED but got S64", {"bounded": np.int64(1)}),
        ("saturated", "type S32, not F32", {"saturated": jax.ShapeDtypeStruct((1,), jnp.float32)}),
        ("saturated", "as many elements", {"saturated": jax.ShapeDtypeStruct((2,), jnp.int32)}),
        ("saturated", "as many elements", {"saturated": jax.ShapeDtypeStruct((0,), jnp.int32)}),
        ("plan", "truncated", {"plan": PLAN[:-1]}),
    ],
)
def test_a_bad_argument_of_a_fixed_chain_is_named(name, message, changes):
    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"(?s)INVALID_ARGUMENT: {name}: .*{message}"):
        call_fixed_chain(**changes)


@pytest.mark.parametrize(
    ("name", "message", "changes"),
    [
        ("lengths", "type F32, not S32", {"lengths": jax.ShapeDtypeStruct((1, 8), jnp.int32)}),
        *(
            ("lengths", "8 elements for each of the examples", {"lengths": jax.ShapeDtypeStruct(shape, "f")})
            for shape in ((0, 8), (7,), (9,), (2, 8))
        ),
        ("plan", "truncated", {"plan": PLAN[:-1]}),
        ("isa", "sse9.*portable", {"isa": "sse9"}),
        ("threads", "negative", {"threads": np.int64(-1)}),
    ],
)
def test_a_bad_argument_of_chain_lengths_is_named(name, message, changes):
    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"(?s)INVALID_ARGUMENT: {name}: .*{message}"):
        call_chain_lengths(**changes)


def test_an_unknown_attribute_is_refused():
    with pytest.raises(jax.errors.JaxRuntimeError, match=re.escape("beside plan, isa, threads")):
        call(speed=np.int64(9))
    with pytest.raises(jax.errors.JaxRuntimeError, match="beside plan, chain, bounded, isa, threads"):
        call_fixed_chain(speed=np.int64(9))
    with pytest.raises(jax.errors.JaxRuntimeError, match=re.escape("beside plan, isa, threads")):
        call_chain_lengths(speed=np.int64(9))
