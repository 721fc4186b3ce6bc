"""One cell of the matrix: a program around a kind of operation, transformed, against float32."""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from cases import COMPILED_QUICKLY
from forced import FORCED
from jax.extend.core import check_jaxpr
from transform_helpers import floats, primitives, quantized, relative_error

from conformance.transformations import (
    EXAMPLES,
    TRANSFORMATIONS,
    Subject,
    Transformation,
    arguments,
)
from dfpjax import Policy, mixed_precision

TOLERANCE = {0: 1e-3, 1: 3e-3, 2: 2e-2}
"""Largest relative error against float32, by the order of the derivative."""

Outcome = Literal["values", "jaxpr", "n/a", "not run"]


def _identity(fun):
    return fun


@dataclass(frozen=True)
class Version:
    """A subject with or without `mixed_precision`, with its jaxprs and values."""

    subject: Subject
    mixed: Any
    _traces: dict[str, Any] = field(default_factory=dict)
    _executables: dict[str, Any] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)

    def build(self, t: Transformation):
        return t.build(self.subject, self.mixed)

    def arguments(self, t: Transformation) -> list[jax.Array]:
        return arguments(self.subject.kind, t.takes)

    def traced(self, t: Transformation):
        if t.name not in self._traces:
            self._traces[t.name] = jax.jit(self.build(t)).trace(*self.arguments(t))
        return self._traces[t.name]

    def executable(self, t: Transformation):
        if t.eager:
            return self.build(t)
        if t.name not in self._executables:
            self._executables[t.name] = self.traced(t).lower().compile(COMPILED_QUICKLY)
        return self._executables[t.name]

    def value(self, t: Transformation):
        if t.name not in self._values:
            self._values[t.name] = self.executable(t)(*self.arguments(t))
        return self._values[t.name]

    def loop(self, t: Transformation):
        """The result that `vmap` must give: the mapped function's values, example by example, stacked."""
        one, results = self.executable(TRANSFORMATIONS[t.maps]), []
        for index in range(EXAMPLES):
            pairs = zip(t.takes, self.arguments(t), strict=True)
            results.append(one(*[x[index] if letter.isupper() else x for letter, x in pairs]))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


@dataclass(frozen=True)
class Row:
    """A program around a kind of operation, under every transformation."""

    subject: Subject
    policy: Policy = FORCED

    @cached_property
    def ours(self) -> Version:
        # One object per function, as in a program, so all its transformations share the trace.
        return Version(self.subject, cache(partial(mixed_precision, policy=self.policy)))

    @cached_property
    def float32(self) -> Version:
        return Version(self.subject, _identity)

    def check(self, t: Transformation, values: bool) -> Outcome:
        """Check one cell. Raises an AssertionError if the check fails."""
        if pattern := self.subject.program.refusal(t.name, t.needs):
            for version in (self.float32, self.ours):
                _assert_refused(version, t, pattern)
            return "n/a"
        if t.eager and not values:
            return "not run"
        self._check_jaxpr(t)
        if not values:
            return "jaxpr"
        self._check_values(t)
        return "values"

    def _check_jaxpr(self, t: Transformation):
        jaxpr = self.ours.traced(t).jaxpr
        if not primitives(jaxpr)["closed_call"]:  # JAX's checker does not know one of its parameters
            check_jaxpr(jaxpr.jaxpr)
        same = TRANSFORMATIONS[t.same_as] if t.same_as and not t.recomputes else t
        reference = self.float32.traced(same).jaxpr
        assert floats(jaxpr) == 0, f"{floats(jaxpr)} operations are left in float32"
        # Outer products, which sum nothing, stay in float32, except as derivatives of rewritten operations.
        least, most, found = floats(reference), _contractions(reference), quantized(jaxpr)
        if t.inside and self.subject.program.recomputes_inside:
            most = found
        assert 0 < least <= found <= most, f"{found} operations in dynamic fixed point, not {least} to {most}"
        assert jaxpr.out_avals == reference.out_avals
        if t.maps:
            assert _loops(jaxpr) == _loops(reference), "vmap adds a loop"

    def _check_values(self, t: Transformation):
        actual = self.ours.value(t)
        if t.maps:
            expected = self.float32.loop(t)
            if not self.subject.program.batches_itself:
                _assert_same_bits(actual, self.ours.loop(t))
        else:
            expected = self.float32.value(TRANSFORMATIONS[t.same_as or t.name])
        error = relative_error(actual, expected)
        assert 0 < error < TOLERANCE[t.order], f"relative error {error:.1e} against float32"
        if t.same_as:
            other = relative_error(actual, self.ours.value(TRANSFORMATIONS[t.same_as]))
            assert other < TOLERANCE[t.order], f"relative error {other:.1e} against {t.same_as}"


def _assert_refused(version: Version, t: Transformation, pattern: str):
    try:
        version.traced(t).lower()
    except (TypeError, ValueError, NotImplementedError) as error:
        assert re.search(pattern, str(error)), f"another refusal than {pattern!r}: {error}"
    else:
        raise AssertionError(f"JAX accepts it, though it is said to refuse with {pattern!r}")


def _assert_same_bits(actual, loop):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(loop), strict=True):
        np.testing.assert_array_equal(a, b, "vmap is not the loop")


def _contractions(jaxpr) -> int:
    found = primitives(jaxpr)
    return found["conv_general_dilated"] + found["dot_general"]


def _loops(jaxpr) -> Counter:
    return Counter({name: primitives(jaxpr)[name] for name in ("scan", "while")})
