"""Bindings of the native kernels: FFI registration at import, and the call."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _native
from dfpjax.numbers.contraction.plan import CHAINS, DeferredPlan, Plan

# Target names carry a version, because a program serialized with jax.export may outlive this library version.
_CERTIFIED, _CHAIN_LENGTHS = "dfpjax_contract_v1", "dfpjax_chain_lengths_v1"
_FIXED_CHAIN = "dfpjax_fixed_chain_v1"

for _name, _stages in _native.registrations().items():
    jax.ffi.register_ffi_target(_name, _stages, platform="cpu")


def contract(
    plan: Plan | DeferredPlan,
    a: jax.Array,
    b: jax.Array,
    exponent_a: jax.Array,
    exponent_b: jax.Array,
    *,
    isa: str = "",
    threads: int = 0,
) -> jax.Array:
    """Run a plan with certified chains in native code, on XLA's own thread pool.

    Arguments:
        plan: from `dfpjax.numbers.contraction.plan.make_plan`. With a `DeferredPlan`, A is the contraction's
            lhs and B its rhs.
        a, b: int16 mantissas of the plan's A and B (rhs and lhs where `plan.swapped`).
        exponent_a, exponent_b: their int32 exponents.
        isa: name of an instruction set path, for tests; "" takes the best one that the machine has.
        threads: at most so many threads, for tests; 0 for all.

    Returns:
        float32 of shape `plan.out_shape`, bit-identical to `dfpjax.numbers.contraction.reference.run_plan`.
    """
    call = jax.ffi.ffi_call(_CERTIFIED, jax.ShapeDtypeStruct(plan.out_shape, jnp.float32))
    return call(a, b, exponent_a, exponent_b, **_attributes(plan, isa, threads))


def contract_chain_lengths(
    plan: Plan | DeferredPlan,
    a: jax.Array,
    b: jax.Array,
    exponent_a: jax.Array,
    exponent_b: jax.Array,
    *,
    examples: int = 1,
    isa: str = "",
    threads: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Run a plan with certified chains, and return their lengths.

    Arguments:
        plan, a, b, exponent_a, exponent_b, isa, threads: as `contract` takes them.
        examples: number of examples (of `vmap`) in the plan's outermost index; 1 without `vmap`.

    Returns:
        The result of `contract`, and float32[examples, len(CHAINS)]: for each example the share of
        multiply-accumulates in chains of each length, in the order of `CHAINS`. Products with padding count,
        products that only fill up a tile do not. The counts are integers before the division, and equal those
        of `dfpjax.numbers.contraction.reference.run_plan_chain_lengths` to float32's precision.
    """
    results = [
        jax.ShapeDtypeStruct(plan.out_shape, jnp.float32),
        jax.ShapeDtypeStruct((examples, len(CHAINS)), jnp.float32),
    ]
    call = jax.ffi.ffi_call(_CHAIN_LENGTHS, results)
    out, lengths = call(a, b, exponent_a, exponent_b, **_attributes(plan, isa, threads))
    return out, lengths


def contract_fixed_chain(
    plan: Plan | DeferredPlan,
    a: jax.Array,
    b: jax.Array,
    exponent_a: jax.Array,
    exponent_b: jax.Array,
    *,
    length: int,
    bounded: bool = False,
    examples: int = 1,
    isa: str = "",
    threads: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Run a plan with chains of one length, saturated to int32.

    Arguments:
        plan, a, b, exponent_a, exponent_b, isa, threads: as `contract` takes them.
        length: products in a chain, a power of two from 2 to 256.
        bounded: promises that the mantissas are too small for any chain to overflow. Nothing is checked then,
            and sums wrap if the promise is broken.
        examples: number of examples (of `vmap`) in the plan's outermost index; 1 without `vmap`.

    Returns:
        float32 of shape `plan.out_shape`, and int32[examples]: the number of saturated chains of each
        example, at most 2³¹ − 1. Both are bit-identical to
        `dfpjax.numbers.contraction.reference.run_plan_fixed_chain`.
    """
    results = [
        jax.ShapeDtypeStruct(plan.out_shape, jnp.float32),
        jax.ShapeDtypeStruct((examples,), jnp.int32),
    ]
    chain = {"chain": np.int64(length), "bounded": bounded}
    call = jax.ffi.ffi_call(_FIXED_CHAIN, results)
    out, saturated = call(a, b, exponent_a, exponent_b, **chain, **_attributes(plan, isa, threads))
    return out, saturated


def plan_attribute(plan: Plan | DeferredPlan) -> dict:
    """The attribute that gives a call its plan."""
    if isinstance(plan, DeferredPlan):
        return {"contraction": plan.text}
    return {"plan": np.asarray(plan.encode(), np.int64)}


def _attributes(plan: Plan | DeferredPlan, isa: str, threads: int) -> dict:
    return {**plan_attribute(plan), "isa": isa, "threads": np.int64(threads)}


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo:
    """Which instruction set path the native kernels use, and why; `print` shows one line each."""

    isa: str
    """Name of the instruction set path in use."""
    reason: str
    """Why this path."""
    usable: tuple[str, ...]
    """The paths that this build has and this CPU can run, best first; `DFPJAX_ISA` chooses one."""
    unusable: tuple[tuple[str, str], ...]
    """The others, each with the reason why it cannot run."""

    def __str__(self) -> str:
        others = ", ".join(name for name in self.usable if name != self.isa)
        lines = [f"{self.isa}: {self.reason}", f"also usable: {others or 'none'}"]
        return "\n".join([*lines, *(f"not usable: {name} ({why})" for name, why in self.unusable)])


def runtime_info() -> RuntimeInfo:
    """The instruction set path in use and why, the paths that the environment variable `DFPJAX_ISA` can
    choose instead, and what the remaining paths need.

    Raises:
        ValueError: if `DFPJAX_ISA` names a path that this build or CPU does not have.
    """
    isa = _native.isa()
    paths = _native.isas()
    asked_for = _native.isa_asked_for()
    return RuntimeInfo(
        isa=isa,
        reason="DFPJAX_ISA asks for it" if asked_for else "the best path that this CPU can run",
        usable=tuple(name for name, why_not in paths if not why_not),
        unusable=tuple((name, why_not) for name, why_not in paths if why_not),
    )
