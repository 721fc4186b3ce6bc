"""The JAX primitives of the library, and how they differentiate, batch and lower.

`contract_p` takes two quantized operands. Its derivative is a sum of `contract_linear_p`, which is linear
in one float32 operand (a tangent or a cotangent, quantized when it runs) and holds the other one
quantized. The transpose of a contraction is a contraction, so fprop, dgrad and wgrad, and derivatives of
any order, stay within the two (Das et al., 2018, §4.1).

Mantissas have dtype `dfp16`, whose tangents are float32. Between the passes only mantissas are kept, so
residuals are 16 bits wide. The derivative names them for `jax.checkpoint`.

Two more primitives return what only the kernels know: `saturated_chains_p` the number of saturated chains of
a contraction with a `FixedChain`, and `chain_lengths_p` the chain lengths of one with certified accumulation.
They lower to a kernel call that also returns the contraction's result. The contraction lowers to the same
call with a `FixedChain`, and with certified accumulation if its parameter `counted` is set. So one kernel
call serves both primitives.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding

from dfpjax import _compat
from dfpjax._symbolic import is_symbolic
from dfpjax.kernels import memory
from dfpjax.numbers import Quantizer
from dfpjax.numbers.contraction.algorithm import Choice
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.contraction.plan import CHAINS
from dfpjax.numbers.format.dtype import to_integers
from dfpjax.numbers.format.explicit import (
    cotangent_sharding,
    lower_fun,
    mapped_sharding,
    with_leading,
    with_partitions,
)
from dfpjax.numbers.format.quantize import quantize_p
from dfpjax.operations.evaluation import (
    chosen,
    examples_of,
    run_certified,
    run_counting,
    run_fixed_chain,
    settled,
)
from dfpjax.operations.exponents import align, blocks_of, map_with_exponents, quantize_operand
from dfpjax.operations.producers import find_producer

Backend = Literal["auto", "reference"]

LHS_NAME = "dfp_lhs"
"""The name (`jax.ad_checkpoint.checkpoint_name`) of a left operand's mantissas and exponent, given where the
operation is differentiated."""

RHS_NAME = "dfp_rhs"
"""The same for a right operand."""

contract_p = Primitive("dfp_contract")
contract_linear_p = Primitive("dfp_contract_linear")
saturated_chains_p = Primitive("dfp_saturated_chains")
chain_lengths_p = Primitive("dfp_chain_lengths")


# --- evaluation -----------------------------------------------------------------------------------


def contract(*operands, **params) -> jax.Array:
    """Bind `contract_p`.

    Arguments:
        operands: (lhs, lhs_exponent, rhs, rhs_exponent).
        params: contraction; cotangent, the quantizer of what comes back to it; accumulation; algorithm, the
            one that is wanted, here and for derivatives, where it can be had; bits, those of lhs's and rhs's
            mantissas, after the accumulation's pre-shift; blocks, the size of lhs's and of rhs's blocks, or
            None for each; backend; out_sharding, the `NamedSharding` of the result's type (of an empty mesh
            if it has none). Optionally counted: whether the program asks for the `chain_lengths` of the same
            operands, so that one kernel call serves both.
    """
    return contract_p.bind(*_compat.vary_together(*operands), **params)


def contract_linear(lhs, rhs, rhs_exponent, *, contraction: Contraction, blocks, **params) -> jax.Array:
    """Bind `contract_linear_p`: lhs is float32; with `contract`'s parameters, except that `blocks` is that of
    rhs alone. The quantizer of cotangents has that of lhs."""
    if blocks is None:
        lhs, contraction = map_with_exponents(lhs, contraction, rhs_exponent)
    operands = _compat.vary_together(lhs, rhs, rhs_exponent)
    return contract_linear_p.bind(*operands, contraction=contraction, blocks=blocks, **params)


def _abstract_eval(lhs, *_, contraction: Contraction, out_sharding: NamedSharding, **params):
    return _compat.result_aval(lhs, contraction.out_shape, jnp.dtype("float32"), out_sharding)


def saturated_chains(primitive: Primitive, *operands, **params) -> jax.Array:
    """The number of chains that an equation of `contract_p` or `contract_linear_p` saturates.

    Arguments:
        primitive, operands, params: the equation's.

    Returns:
        int32 of the shape of the axes that vmap added; 0 for certified chains, and at most 2³¹ − 1.
    """
    return _bind_beside(saturated_chains_p, primitive, *operands, **params)


def chain_lengths(primitive: Primitive, *operands, **params) -> jax.Array:
    """The chain lengths of an equation of `contract_p` or `contract_linear_p`.

    Arguments:
        primitive, operands, params: the equation's, with certified accumulation.

    Returns:
        float32[*axes that vmap added, len(CHAINS)]: the share of multiply-accumulates in chains of each
        length.
    """
    assert params["accumulation"] == "certified"
    return _bind_beside(chain_lengths_p, primitive, *operands, **params)


def chosen_algorithm(primitive: Primitive, *operands, **params) -> Choice:
    """The algorithm of an equation of `contract_p` or `contract_linear_p` with these operands, and why."""
    if primitive is contract_linear_p:
        operands, params = all_quantized(*operands, **params)
    wanted = {name: params[name] for name in ("blocks", "accumulation", "algorithm")}
    return chosen(params["contraction"], *operands, **wanted)


def _bind_beside(measure: Primitive, primitive: Primitive, *operands, **params):
    """Bind a primitive that measures an equation of `primitive`."""
    if primitive is contract_linear_p:
        operands, params = all_quantized(*operands, **params)
    params = {name: value for name, value in params.items() if name != "counted"}
    return measure.bind(*_compat.vary_together(*operands), **params)


def _abstract_saturated_chains(lhs, *_, contraction: Contraction, out_sharding: NamedSharding, **params):
    return _of_examples(lhs, contraction, out_sharding, (), jnp.dtype("int32"))


def _abstract_chain_lengths(lhs, *_, contraction: Contraction, out_sharding: NamedSharding, **params):
    return _of_examples(lhs, contraction, out_sharding, (len(CHAINS),), jnp.dtype("float32"))


def _of_examples(lhs, contraction: Contraction, out_sharding: NamedSharding, shape, dtype):
    """The type of what there is for each example of vmap."""
    examples = examples_of(contraction)
    split = (*_compat.partitions(out_sharding)[: len(examples)], *(None,) * len(shape))
    return _compat.result_aval(lhs, (*examples, *shape), dtype, with_partitions(out_sharding, split))


def _contract(
    lhs, lhs_exponent, rhs, rhs_exponent,
    *, contraction, cotangent, accumulation, algorithm, bits, blocks, backend, native, out_sharding,
    counted=False,
):  # fmt: skip
    operands = to_integers(lhs), lhs_exponent, to_integers(rhs), rhs_exponent
    params = {"contraction": contraction, "blocks": blocks, "native": native and backend == "auto"}
    if accumulation != "certified":
        return run_fixed_chain(*operands, **params, length=accumulation.length, bits=bits)[0]
    algorithm = settled(contraction, *operands, blocks=blocks, algorithm=algorithm)
    run = run_counting if counted else run_certified
    return run(*operands, **params, algorithm=algorithm)[0]


def _contract_linear(*operands, **params):
    operands, params = all_quantized(*operands, **params)
    return _contract(*operands, **params)


def all_quantized(
    lhs, rhs, rhs_exponent, *, contraction: Contraction, cotangent: Quantizer, blocks, backend, **params
):
    """Operands and parameters of `contract_p` from those of `contract_linear_p`."""
    common, shift = align(contraction, rhs_exponent, blocks)
    quantized = quantize_operand(lhs, contraction, cotangent, shift, native=backend == "auto")
    params |= {"contraction": contraction, "cotangent": cotangent, "backend": backend}
    return (*quantized, rhs, common), {"blocks": (blocks_of(cotangent), blocks), **params}


def _saturated_chains(
    lhs, lhs_exponent, rhs, rhs_exponent,
    *, contraction, cotangent, accumulation, algorithm, bits, blocks, backend, native, out_sharding,
):  # fmt: skip
    if accumulation == "certified":
        return jnp.zeros(examples_of(contraction), jnp.int32)
    operands = to_integers(lhs), lhs_exponent, to_integers(rhs), rhs_exponent
    params = {"contraction": contraction, "blocks": blocks, "native": native and backend == "auto"}
    return run_fixed_chain(*operands, **params, length=accumulation.length, bits=bits)[1]


def _chain_lengths(
    lhs, lhs_exponent, rhs, rhs_exponent,
    *, contraction, cotangent, accumulation, algorithm, bits, blocks, backend, native, out_sharding,
):  # fmt: skip
    operands = to_integers(lhs), lhs_exponent, to_integers(rhs), rhs_exponent
    params = {"contraction": contraction, "blocks": blocks, "native": native and backend == "auto"}
    # By the same algorithm as `_contract`, so that it is the same call.
    algorithm = settled(contraction, *operands, blocks=blocks, algorithm=algorithm)
    return run_counting(*operands, **params, algorithm=algorithm)[1]


def _lowering(function):
    run = lower_fun(function, multiple_results=False)

    def lower(ctx, *operands, native, **params):
        native = native and params["backend"] == "auto"
        symbolic = is_symbolic(*(aval.shape for aval in (*ctx.avals_in, *ctx.avals_out)))
        if symbolic and not native:
            raise NotImplementedError(
                "dynamic fixed point takes symbolic extents in native code alone: export for the platform "
                '"cpu" alone and with backend="auto", or with fixed shapes'
            )
        if native and not symbolic:
            memory.hint(4 * max(aval.size for aval in ctx.avals_in))
        return run(ctx, *operands, native=native, **params)

    return lower


def _lower_linear(ctx, lhs, *rhs, native, **params):
    """The lowering of `contract_linear_p`. If one pass computes and quantizes lhs, what it gives is
    contracted."""
    cotangent, contraction = params["cotangent"], params["contraction"]
    quantization = {
        "quantizer": cotangent, "blocks": blocks_of(cotangent), "slice_axes": (), "given": (),
        "mapped_axes": contraction.mapped_axes(contraction.lhs), "native": True,
    }  # fmt: skip
    # Exponents of rhs that are not those of blocks may shift lhs (`align`).
    alone = native and params["backend"] == "auto" and params["blocks"]
    alone = alone and not _compat.is_partly_manual(ctx)
    producer = find_producer(lhs, ctx.avals_in[0].shape, quantization) if alone else None
    if producer is None:
        return _lowering_of_linear(ctx, lhs, *rhs, native=native, **params)
    quantized, _ = quantize_p.abstract_eval(ctx.avals_in[0], **quantization)
    mantissa, exponent = producer.lower(ctx.replace(avals_out=quantized), quantization)
    params["blocks"] = (quantization["blocks"], params["blocks"])
    ctx = ctx.replace(avals_in=[*quantized, *ctx.avals_in[1:]])
    return _lowering_of_contract(ctx, mantissa, exponent, *rhs, native=native, **params)


_lowering_of_contract, _lowering_of_linear = _lowering(_contract), _lowering(_contract_linear)


def _register(primitive, abstract_eval, lower, *, cacheable: bool = True):
    primitive.def_abstract_eval(abstract_eval)
    primitive.def_impl(functools.partial(_compat.apply_primitive, primitive))
    for platform, native in ((None, False), ("cpu", True)):
        rule = functools.partial(lower, native=native)
        mlir.register_lowering(primitive, rule, platform=platform, cacheable=cacheable)


_register(contract_p, _abstract_eval, _lowering_of_contract)
_register(contract_linear_p, _abstract_eval, _lower_linear, cacheable=False)
_register(saturated_chains_p, _abstract_saturated_chains, _lowering(_saturated_chains))
_register(chain_lengths_p, _abstract_chain_lengths, _lowering(_chain_lengths))


# --- differentiation ------------------------------------------------------------------------------


def _add(terms, like):
    return functools.reduce(lax.add, terms) if terms else ad.Zero(jax.typeof(like).to_tangent_aval())


def _is_zero(tangent) -> bool:
    return isinstance(tangent, ad.Zero)


def linear_parts(contraction: Contraction, cotangent: Quantizer, bits, blocks, **params) -> tuple[dict, dict]:
    """`contract_linear`'s parameters for the derivative by lhs, and for the one by rhs, of a `contract`."""
    params = {**params, "cotangent": cotangent}
    by_lhs, by_rhs = (
        {**params, "bits": (cotangent.bits, bits[held]), "blocks": blocks[held]} for held in (1, 0)
    )
    return {**by_lhs, "contraction": contraction}, {**by_rhs, "contraction": contraction.swap()}


def _contract_jvp(primals, tangents, **params):
    # The result is computed from the named operands, so that a policy that saves them avoids requantization.
    lhs, lhs_exponent = checkpoint_name(tuple(primals[:2]), LHS_NAME)
    rhs, rhs_exponent = checkpoint_name(tuple(primals[2:]), RHS_NAME)
    out = contract(lhs, lhs_exponent, rhs, rhs_exponent, **params)
    of_lhs, of_rhs = linear_parts(**params)
    terms = []
    if not _is_zero(tangents[0]):
        terms.append(contract_linear(tangents[0], rhs, rhs_exponent, **of_lhs))
    if not _is_zero(tangents[2]):
        terms.append(contract_linear(tangents[2], lhs, lhs_exponent, **of_rhs))
    return out, _add(terms, out)


def _contract_linear_jvp(primals, tangents, **params):
    lhs, rhs, rhs_exponent = primals
    out = contract_linear(*primals, **params)
    of_cotangent = blocks_of(params["cotangent"])
    of_lhs, of_rhs = linear_parts(**{**params, "blocks": (of_cotangent, params["blocks"])})
    terms = []
    if not _is_zero(tangents[0]):
        terms.append(contract_linear(tangents[0], rhs, rhs_exponent, **of_lhs))
    if not _is_zero(tangents[1]):
        contraction = params["contraction"]
        _, shift = align(contraction, rhs_exponent, params["blocks"])
        native = params["backend"] == "auto"
        held, exponent = quantize_operand(lhs, contraction, params["cotangent"], shift, native=native)
        exponent = exponent if shift is None else exponent - shift
        terms.append(contract_linear(tangents[1], held, exponent, **of_rhs))
    return out, _add(terms, out)


def _constant_jvp(primitive, primals, tangents, **params):
    out = primitive.bind(*primals, **params)
    return out, ad.Zero(jax.typeof(out).to_tangent_aval())


def _contract_linear_transpose(
    ct, lhs, rhs, rhs_exponent, *, contraction: Contraction, out_sharding: NamedSharding, **params
):
    assert ad.is_undefined_primal(lhs) and not ad.is_undefined_primal(rhs)  # linear in lhs alone
    if _is_zero(ct):
        return [ad.Zero(lhs.aval), None, None]
    transposed = contraction.transpose(lhs.aval.shape)
    summed, entries = contraction.summed_by_transpose(), _compat.partitions(out_sharding)
    split = [entries[contraction.out.index(label)] for label in summed]
    out_sharding = with_leading(cotangent_sharding(lhs.aval, out_sharding), split)
    params = {"contraction": transposed, "out_sharding": out_sharding, **params}
    result = contract_linear(ct, rhs, rhs_exponent, **params)
    return [lax.reduce_sum(result, axes=tuple(range(len(summed)))) if summed else result, None, None]


def _contract_transpose(ct, lhs, lhs_exponent, rhs, rhs_exponent, **params):
    """For programs that JAX transposes without differentiating them first; the derivative's transpose."""
    if _is_zero(ct):
        return [None] * 4

    def transposed(linear, held, held_exponent, params):
        operand = ad.UndefinedPrimal(linear.aval.update(dtype=jnp.dtype("float32")))
        return _contract_linear_transpose(ct, operand, held, held_exponent, **params)[0]

    of_lhs, of_rhs = linear_parts(**params)
    if ad.is_undefined_primal(lhs):
        return [transposed(lhs, rhs, rhs_exponent, of_lhs), None, None, None]
    return [None, None, transposed(rhs, lhs, lhs_exponent, of_rhs), None]


ad.primitive_jvps[contract_p] = _contract_jvp
ad.primitive_jvps[contract_linear_p] = _contract_linear_jvp
ad.primitive_transposes[contract_p] = _contract_transpose
ad.primitive_transposes[contract_linear_p] = _contract_linear_transpose
for _measure in (saturated_chains_p, chain_lengths_p):
    ad.primitive_jvps[_measure] = functools.partial(_constant_jvp, _measure)


# --- batching -------------------------------------------------------------------------------------


def map_leading(x, dim, size: int):
    """Move x's mapped axis to the front, or broadcast x along a new one of that size."""
    if dim is None:
        return lax.broadcast(x, (size,))
    return jnp.moveaxis(x, dim, 0) if dim else x


def map_quantized(mantissa, exponent, dims, size: int, blocks):
    """An operand's (mantissa, exponent) with the mapped axis in front, and whether it has one."""
    if dims[0] is None and dims[1] is None:
        return mantissa, exponent, False
    exponent_size = 1 if dims[1] is None and blocks is None else size
    return map_leading(mantissa, dims[0], size), map_leading(exponent, dims[1], exponent_size), True


def _size(operands, dims) -> int:
    return next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)


def _quantized_batch(bind, operands, dims, *, contraction: Contraction, out_sharding, blocks, **params):
    size = _size(operands, dims)
    params["out_sharding"] = mapped_sharding(operands, dims, out_sharding)
    lhs, lhs_exponent, lhs_mapped = map_quantized(*operands[:2], dims[:2], size, blocks[0])
    rhs, rhs_exponent, rhs_mapped = map_quantized(*operands[2:], dims[2:], size, blocks[1])
    mapped = contraction.map(size, lhs=lhs_mapped, rhs=rhs_mapped)
    return bind(lhs, lhs_exponent, rhs, rhs_exponent, contraction=mapped, blocks=blocks, **params), 0


def _contract_linear_batch(operands, dims, *, contraction: Contraction, out_sharding, blocks, **params):
    size = _size(operands, dims)
    params["out_sharding"] = mapped_sharding(operands, dims, out_sharding)
    lhs_mapped = dims[0] is not None
    lhs = map_leading(operands[0], dims[0], size) if lhs_mapped else operands[0]
    rhs, rhs_exponent, rhs_mapped = map_quantized(*operands[1:], dims[1:], size, blocks)
    mapped = contraction.map(size, lhs=lhs_mapped, rhs=rhs_mapped)
    return contract_linear(lhs, rhs, rhs_exponent, contraction=mapped, blocks=blocks, **params), 0


batching.primitive_batchers[contract_p] = functools.partial(_quantized_batch, contract)
batching.primitive_batchers[contract_linear_p] = _contract_linear_batch
for _measure in (saturated_chains_p, chain_lengths_p):
    batching.primitive_batchers[_measure] = functools.partial(_quantized_batch, _measure.bind)
