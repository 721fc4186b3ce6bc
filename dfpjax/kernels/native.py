"""Bindings of the native kernels: FFI registration at import, and the call."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _native
from dfpjax.numbers.plan import Plan

# The target's name carries a version: a program serialized with jax.export outlives the library that made it.
_TARGET = "dfpjax_contract_v1"

for _name, _capsule in _native.registrations().items():
    jax.ffi.register_ffi_target(_name, _capsule, platform="cpu")


def contract(
    plan: Plan,
    a: jax.Array,
    b: jax.Array,
    exponent_a: jax.Array,
    exponent_b: jax.Array,
    *,
    isa: str = "",
    threads: int = 0,
) -> jax.Array:
    """Run a plan in native code, on XLA's own thread pool.

    Arguments:
        plan: from `dfpjax.numbers.plan.make_plan`.
        a, b: int16 mantissas of the plan's A and B (rhs and lhs where `plan.swapped`).
        exponent_a, exponent_b: their int32 exponents.
        isa: name of an instruction set path, for tests; "" takes the best one that the machine has.
        threads: at most so many threads, for tests; 0 for all.

    Returns:
        float32 of shape `plan.out_shape`, bit-identical to `dfpjax.numbers.reference.run_plan`.
    """
    call = jax.ffi.ffi_call(_TARGET, jax.ShapeDtypeStruct(plan.out_shape, jnp.float32))
    encoded = np.asarray(plan.encode(), np.int64)
    return call(a, b, exponent_a, exponent_b, plan=encoded, isa=isa, threads=np.int64(threads))


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo:
    """What the native kernels run on, and why; `print` shows it a line each."""

    isa: str
    """Name of the instruction set path in use."""
    reason: str
    """Why this one."""
    usable: tuple[str, ...]
    """The paths that this build has and this CPU can run, best first; `DFPJAX_ISA` chooses one."""
    unusable: tuple[tuple[str, str], ...]
    """The others, each with the reason why it cannot run."""

    def __str__(self) -> str:
        others = ", ".join(name for name in self.usable if name != self.isa)
        lines = [f"{self.isa}: {self.reason}", f"also usable: {others or 'none'}"]
        return "\n".join([*lines, *(f"not usable: {name} ({why})" for name, why in self.unusable)])


def runtime_info() -> RuntimeInfo:
    """The instruction set path in use and why, and the others: those that one could choose with the
    environment variable `DFPJAX_ISA`, and what the rest are missing.

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
