"""The native lowering of quantization, for exponents of blocks and for whole tensors rounded to nearest.

On large tensors it runs faster than HLO, and on small ones it compiles much faster. Other kinds of
quantization lower to HLO. In partitioned programs each device quantizes the blocks it has; XLA partitions
other kinds, and stochastic rounding, which depends on an element's index in the whole tensor. One pass also
computes the operand itself if there is a pass that does (`dfpjax.operations.producers`).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.interpreters import mlir

from dfpjax import _compat
from dfpjax.kernels import passes
from dfpjax.numbers import Quantizer
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.dtype import from_integers, to_integers
from dfpjax.numbers.format.explicit import lower_fun
from dfpjax.numbers.format.quantize import quantize_in_hlo, quantize_p
from dfpjax.operations.layouts import quantization_layout
from dfpjax.operations.partitioning import per_shard
from dfpjax.operations.producers import find_producer


@jax.named_scope(quantize_p.name)
def _quantize(
    x: jax.Array, *more: jax.Array, native_code: bool, by_shard: bool, **params
) -> tuple[jax.Array, jax.Array]:
    """The computation of `quantize_p`, in native code as far as there is some.

    Arguments:
        by_shard: whether a shard can be quantized by itself, if there are blocks.
    """
    quantizer, mapped, blocks = params["quantizer"], len(params["mapped_axes"]), params["blocks"]
    whole = not (mapped or params["given"] or params["slice_axes"]) and quantizer.rounding == "nearest"
    if blocks is not None and by_shard:
        of_blocks = {"quantizer": quantizer, "blocks": blocks, "mapped": mapped}
        mantissa, exponent = _in_blocks(x, **of_blocks, native=native_code)
    elif native_code and blocks is not None:
        seeds = _seeds(x.shape[:mapped], *more)
        mantissa, exponent = passes.quantize_blocks(x, quantizer, blocks, mapped=mapped, seeds=seeds)
    elif native_code and whole:
        mantissa, exponent = passes.quantize(x, quantizer.bits)
        exponent = exponent.reshape((1,) * x.ndim)
    else:
        return quantize_in_hlo(x, *more, **params)
    return from_integers(mantissa), exponent


@per_shard("quantization", quantization_layout)
def _in_blocks(x, *, quantizer: Quantizer, blocks: Blocks, mapped: int, native: bool):
    if native:
        return passes.quantize_blocks(x, quantizer, blocks, mapped=mapped)
    of_hlo = {"mapped_axes": tuple(range(mapped)), "slice_axes": (), "given": (), "native": False}
    mantissa, exponent = quantize_in_hlo(x, quantizer=quantizer, blocks=blocks, **of_hlo)
    return to_integers(mantissa), exponent


def _seeds(examples, *seed) -> jax.Array | None:
    """A seed for each example, whose other axes have extent 1."""
    if not seed:
        return None
    seeds = jnp.broadcast_to(seed[0].reshape(seed[0].shape[: len(examples)]), examples)
    return seeds.reshape(math.prod(examples))


_quantized = lower_fun(_quantize, multiple_results=True)


def _lower(ctx, *operands, on_cpu: bool, **params):
    native = on_cpu and params["native"] and not _compat.is_partly_manual(ctx)
    by_index = params["quantizer"].rounding == "stochastic"
    if _compat.is_partitioned(ctx):
        native = native and params["blocks"] is not None and not by_index
    by_shard = not (by_index or _compat.is_partly_manual(ctx))
    producer = find_producer(operands[0], ctx.avals_in[0].shape, params) if native else None
    if producer is not None:
        return producer.lower(ctx, params)
    return _quantized(ctx, *operands, native_code=native, by_shard=by_shard, **params)


for _platform, _on_cpu in ((None, False), ("cpu", True)):
    lower = functools.partial(_lower, on_cpu=_on_cpu)
    mlir.register_lowering(quantize_p, lower, platform=_platform, cacheable=False)
