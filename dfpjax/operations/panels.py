"""Products whose right operand is a matrix in panels (`dfpjax.numbers.format.panels`).

`contract_panels_p` is `contract_p` with panels for the mantissas and exponents of rhs. Where there is no
native code for it, and in derivatives, the matrix is brought back to its own order first. It gives the same
bits.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding

from dfpjax import _compat
from dfpjax._symbolic import is_symbolic
from dfpjax.kernels.panels import contract_panels as run_contract
from dfpjax.kernels.panels import pack_panels as run_pack
from dfpjax.numbers import Blocks
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.contraction.plan import Plan, make_plan
from dfpjax.numbers.format.dtype import from_integers, to_integers
from dfpjax.numbers.format.explicit import lower_fun, mapped_sharding
from dfpjax.numbers.format.panels import Panels
from dfpjax.operations.primitives import (
    contract,
    contract_linear,
    linear_parts,
    map_leading,
    map_quantized,
)
from dfpjax.operations.shaped import deferred_plan

contract_panels_p = Primitive("dfp_contract_panels")


def packed(form: Panels, mantissa: jax.Array, exponent: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays of a matrix in panels.

    Arguments:
        form: what is made.
        mantissa: int16 of the matrix's shape.
        exponent: int32, its blocks' exponents.
    """
    k, n = form.extents
    plan = _plan_of(form, 1)
    absent = (k, n, _count((1, k)))
    words, info = run_pack(plan, form, mantissa, exponent, absent=absent)
    return words, info, form.aligned_exponent(exponent)


def _plan_of(form: Panels, rows: int) -> Plan:
    """The plan of a product of rows with the matrix."""
    k, n = form.extents
    rhs = (1, 2) if form.contracted == 0 else (2, 1)
    contraction = Contraction(lhs=(0, 1), rhs=rhs, out=(0, 2), out_shape=(rows, n))
    counts = form.blocks.counts((rows, k)), form.blocks.counts(form.shape)
    return make_plan(contraction, (rows, k), form.shape, *counts, (form.blocks, form.blocks))


def _count(shape) -> int:
    outer, rows, columns = Blocks().counts(shape)
    return outer * rows * columns


def contract_panels(*operands, **params) -> jax.Array:
    """Bind `contract_panels_p`.

    Arguments:
        operands: (lhs, lhs_exponent, words, info, exponent), the last three those of a matrix in panels.
        params: those of `contract`, with certified accumulation, and `form`, the matrix's.
    """
    return contract_panels_p.bind(*_compat.vary_together(*operands), **params)


@contract_panels_p.def_abstract_eval
def _abstract_eval(lhs, *_, contraction: Contraction, out_sharding: NamedSharding, **params):
    return _compat.result_aval(lhs, contraction.out_shape, jnp.dtype("float32"), out_sharding)


def _rows(form: Panels, arrays) -> tuple[jax.Array, jax.Array]:
    mantissa, exponent = form.rows_of(*arrays)
    return from_integers(mantissa), exponent


def _contract_rows(lhs, lhs_exponent, *arrays, form: Panels, **params) -> jax.Array:
    return contract(lhs, lhs_exponent, *_rows(form, arrays), **params)


def _contract_natively(
    lhs, lhs_exponent, words, info, exponent, *, form: Panels, contraction, blocks, **params
) -> jax.Array:
    counts = form.blocks.counts(form.shape)
    lhs = to_integers(lhs)
    if is_symbolic(lhs.shape):
        plan = deferred_plan(contraction, blocks, "direct", rhs=(form.shape, counts))
        # Columns are the innermost axis of the result and no lanes, so there is one part, as it has to be.
        readable = form.extents[1] > 1
    else:
        plan = make_plan(contraction, lhs.shape, form.shape, lhs_exponent.shape, counts, blocks)
        readable = not plan.swapped and len(plan.parts) == 1 and not plan.parts[0].lanes
    if not readable:
        given = {"form": form, "contraction": contraction, "blocks": blocks}
        return _contract_rows(from_integers(lhs), lhs_exponent, words, info, exponent, **given, **params)
    operands = (lhs, words, info, lhs_exponent)
    return run_contract(plan, *operands, shape_b=form.shape, exponents_b=counts)


_lower_natively = lower_fun(_contract_natively, multiple_results=False)
_lower_rows = lower_fun(_contract_rows, multiple_results=False)


def _lower(ctx, *operands, native: bool, **params):
    native = native and params["backend"] == "auto" and not _compat.is_partitioned(ctx)
    return (_lower_natively if native else _lower_rows)(ctx, *operands, **params)


def _jvp(primals, tangents, *, form: Panels, **params):
    out = contract_panels(*primals, form=form, **params)
    if isinstance(tangents[0], ad.Zero):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    of_lhs, _ = linear_parts(**params)
    return out, contract_linear(tangents[0], *_rows(form, primals[2:]), **of_lhs)


def _batch(operands, dims, *, form: Panels, contraction: Contraction, out_sharding, blocks, **params):
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    params |= {"out_sharding": mapped_sharding(operands, dims, out_sharding), "blocks": blocks}
    lhs, lhs_exponent, lhs_mapped = map_quantized(*operands[:2], dims[:2], size, blocks[0])
    arrays, of_arrays = operands[2:], dims[2:]
    if all(dim is None for dim in of_arrays):
        mapped = contraction.map(size, lhs=lhs_mapped, rhs=False)
        return contract_panels(lhs, lhs_exponent, *arrays, form=form, contraction=mapped, **params), 0
    # Each example has a matrix of its own.
    arrays = [map_leading(x, dim, size) for x, dim in zip(arrays, of_arrays, strict=True)]
    mantissa, exponent = jax.vmap(lambda *arrays: _rows(form, arrays))(*arrays)
    mapped = contraction.map(size, lhs=lhs_mapped, rhs=True)
    return contract(lhs, lhs_exponent, mantissa, exponent, contraction=mapped, **params), 0


contract_panels_p.def_impl(functools.partial(_compat.apply_primitive, contract_panels_p))
for _platform, _native in ((None, False), ("cpu", True)):
    mlir.register_lowering(contract_panels_p, functools.partial(_lower, native=_native), platform=_platform)
ad.primitive_jvps[contract_panels_p] = _jvp
batching.primitive_batchers[contract_panels_p] = _batch
