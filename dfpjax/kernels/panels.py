"""Bindings of the native packing of a matrix into panels, and of contractions with one."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _native
from dfpjax.kernels.native import plan_attribute
from dfpjax.numbers.contraction.plan import DeferredPlan, Plan
from dfpjax.numbers.format.panels import Panels

_PACK, _CONTRACT = "dfpjax_pack_panels_v1", "dfpjax_contract_panels_v1"


def pack_panels(
    plan: Plan,
    form: Panels,
    b: jax.Array,
    exponent_b: jax.Array,
    *,
    absent: tuple[int, int, int],
    isa: str = "",
    threads: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Pack the B of a plan.

    Arguments:
        plan: of a product with the matrix as B, in blocks.
        form: what is made.
        b, exponent_b: the matrix's mantissas, int16, and its blocks' exponents, int32.
        absent: the number of elements of the plan's A, of its result, and of A's exponents.
        isa, threads: as for `dfpjax.kernels.contract`.

    Returns:
        words, int16, and what the kernels know of each panel, uint8, as `Panels` describes them.
    """
    words, panels = form.sizes
    results = [
        jax.ShapeDtypeStruct((words,), jnp.int16),
        jax.ShapeDtypeStruct((panels * _native.panel_info_bytes,), jnp.uint8),
    ]
    call = jax.ffi.ffi_call(_PACK, results)
    return tuple(call(b, exponent_b, **_attributes(plan, absent, isa, threads)))


def contract_panels(
    plan: Plan | DeferredPlan,
    a: jax.Array,
    words: jax.Array,
    info: jax.Array,
    exponent_a: jax.Array,
    *,
    shape_b: tuple[int, ...],
    exponents_b: tuple[int, ...],
    isa: str = "",
    threads: int = 0,
) -> jax.Array:
    """Run a plan with certified chains whose B is packed.

    Arguments:
        plan: with one part, in blocks, that does not swap the operands.
        a, exponent_a: int16 mantissas of A and int32 exponents.
        words, info: B, from `pack_panels`.
        shape_b, exponents_b: the shapes that B and its exponents have in the plan.
        isa, threads: as for `dfpjax.kernels.contract`.

    Returns:
        float32 of shape `plan.out_shape`, with the bits of `dfpjax.kernels.contract` of B itself.
    """
    absent = (math.prod(shape_b), math.prod(exponents_b))
    call = jax.ffi.ffi_call(_CONTRACT, jax.ShapeDtypeStruct(plan.out_shape, jnp.float32))
    return call(a, words, info, exponent_a, **_attributes(plan, absent, isa, threads))


def _attributes(plan: Plan | DeferredPlan, absent, isa: str, threads: int) -> dict:
    sizes = {"absent": np.asarray(absent, np.int64)}
    return {**plan_attribute(plan), **sizes, "isa": isa, "threads": np.int64(threads)}
