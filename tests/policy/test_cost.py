"""The cost rule: both sides of its thresholds, its messages, and that more work is never worth less."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from dfpjax.policy import OpConfig
from dfpjax.policy._cost import LEAST, PHASES_OF_A_CALL, Work, _readable, objection
from dfpjax.transform._contractions import CONTRACTIONS, work

kinds = pytest.mark.parametrize(("kind", "least"), LEAST.items())


@kinds
def test_few_macs_are_not_worth_it(kind, least):
    enough = Work(kind=kind, macs=least.macs, elements=1)
    assert objection(enough) is None
    reason = objection(dataclasses.replace(enough, macs=least.macs - 1))
    assert reason == f"float32: {_readable(least.macs - 1)}, below {_readable(least.macs)}"


@kinds
def test_few_macs_per_element_are_not_worth_it(kind, least):
    elements = 1000 * least.macs  # enough elements for the least number of MACs
    enough = Work(kind=kind, macs=least.macs_per_element * elements, elements=elements)
    assert objection(enough) is None
    reason = objection(dataclasses.replace(enough, elements=2 * elements))
    half = f"{least.macs_per_element / 2:.1f}".removesuffix(".0")
    assert reason == f"float32: {half} MACs per element, below {least.macs_per_element}"
    assert objection(dataclasses.replace(enough, elements=elements + 1)) is not None


def test_many_phases_want_more_macs():
    phases = 2 * PHASES_OF_A_CALL
    enough = Work(kind="convolution", macs=2 * LEAST["convolution"].macs, elements=1, phases=phases)
    assert objection(enough) is None
    reason = objection(dataclasses.replace(enough, macs=enough.macs - 1))
    assert reason is not None and f"in each of {phases} phases" in reason


@pytest.mark.parametrize(
    ("macs", "text"),
    [
        (1, "1 MAC"),
        (999, "999 MAC"),
        (3_000, "3 kMAC"),
        (3_456, "3.45 kMAC"),
        (10_050, "10 kMAC"),
        (259_999, "259 kMAC"),
        (999_999, "999 kMAC"),
        (1_234_567, "1.23 MMAC"),
        (700_000_000, "700 MMAC"),
        (2_040_000_000, "2.04 GMAC"),
        (5_000_000_000_000, "5000 GMAC"),
    ],
)
def test_counts_are_readable(macs, text):
    assert _readable(macs) == text


counts = st.integers(1, 10**12)


@given(st.sampled_from([*LEAST]), counts, counts, counts)
def test_more_macs_and_fewer_elements_are_never_worth_less(kind, macs, elements, more):
    if objection(Work(kind=kind, macs=macs, elements=elements)) is None:
        assert objection(Work(kind=kind, macs=macs + more, elements=elements)) is None
        assert objection(Work(kind=kind, macs=macs, elements=max(elements - more, 1))) is None


def work_of(fun, *shapes) -> Work:
    """The work of a function's only convolution or dot product."""
    jaxpr = jax.make_jaxpr(fun)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    (found,) = (work(eqn) for eqn in jaxpr.eqns if eqn.primitive.name in CONTRACTIONS)
    return found


def test_work_of_a_dot():
    found = work_of(lambda x, w: jnp.einsum("bmk,bkn->bmn", x, w), (5, 2, 3), (5, 3, 4))
    size = {"macs": 5 * 2 * 3 * 4, "elements": 5 * (2 * 3 + 3 * 4 + 2 * 4)}
    assert found == Work(kind="batched dot product", **size)


def test_one_dot_is_no_batch():
    found = work_of(lambda x, w: jnp.einsum("bmk,bkn->bmn", x, w), (1, 2, 3), (1, 3, 4))
    assert found == Work(kind="dot product", macs=2 * 3 * 4, elements=2 * 3 + 3 * 4 + 2 * 4)


@pytest.mark.parametrize(("groups", "kind"), [(1, "convolution"), (4, "grouped convolution")])
def test_work_of_a_convolution(groups, kind):
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    lhs, rhs, out = (2, 8, 8, 4), (3, 3, 4 // groups, 16), (2, 4, 4, 16)
    elements = sum(map(math.prod, (lhs, rhs, out)))
    macs = math.prod(out) * math.prod(rhs[:3])
    assert work_of(convolve, lhs, rhs) == Work(kind=kind, macs=macs, elements=elements)


sizes = st.integers(1, 5000)


@given(sizes, sizes, sizes, sizes, st.integers(0, 3), st.integers(2, 9))
def test_a_larger_dot_is_never_worth_less(batch, m, k, n, grown, factor):
    def verdict(batch, m, k, n):
        elements = batch * (m * k + k * n + m * n)
        kind = "batched dot product" if batch > 1 else "dot product"
        return objection(Work(kind=kind, macs=math.prod((batch, m, k, n)), elements=elements))

    larger = [batch, m, k, n]
    larger[grown] *= factor
    if verdict(batch, m, k, n) is None:
        assert verdict(*larger) is None


@pytest.mark.parametrize(("m", "k", "n"), [(4, 6, 8), (64, 512, 1024), (1, 4096, 4096), (512, 512, 512)])
def test_a_dot_and_its_transpose_are_one(m, k, n):
    product = work_of(lambda x, w: x @ w, (m, k), (k, n))
    swapped = work_of(lambda x, w: lax.dot_general(w, x, (((0,), (1,)), ((), ()))), (m, k), (k, n))
    assert product == swapped


@pytest.mark.parametrize("force", [1, "yes", None])
def test_force_is_a_bool(force):
    with pytest.raises(ValueError, match=rf"OpConfig: force must be True or False, got {force!r}"):
        OpConfig(force=force)


def test_force_is_part_of_the_value():
    forced = OpConfig(force=True)
    assert forced == OpConfig(force=True) != OpConfig()
    assert hash(forced) == hash(OpConfig(force=True))
    assert repr(forced) == "OpConfig(force=True)"
    assert forced.quantizers() == OpConfig().quantizers()
