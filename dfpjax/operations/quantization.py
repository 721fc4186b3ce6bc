"""The native lowering of quantization, for exponents of blocks and for whole tensors rounded to nearest.

On large tensors it runs faster than HLO, and on small ones it compiles much faster. Other kinds of
quantization lower to HLO. In partitioned programs each device quantizes the blocks it has; XLA partitions
other kinds, and stochastic rounding. One pass also computes the operand itself if there is a pass that does
(`dfpjax.operations.producers`).
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
from dfpjax.operations.producers import find_producer
from dfpjax.operations.sharding import partitioned_quantization


@jax.named_scope(quantize_p.name)
def _quantize_natively(x: jax.Array, *more: jax.Array, **params) -> tuple[jax.Array, jax.Array]:
    """The computation of `quantize_p`, in native code as far as there is some."""
    quantizer, mapped, given = params["quantizer"], len(params["mapped_axes"]), params["given"]
    whole = not (mapped or given or params["slice_axes"]) and quantizer.rounding == "nearest"
    if params["native"] and params["blocks"] is not None:
        mantissa, exponent = _in_blocks(x, *more, quantizer=quantizer, blocks=params["blocks"], mapped=mapped)
    elif params["native"] and whole:
        mantissa, exponent = passes.quantize(x, quantizer.bits)
        exponent = exponent.reshape((1,) * x.ndim)
    else:
        return quantize_in_hlo(x, *more, **params)
    return from_integers(mantissa), exponent


def _in_blocks(x, *seed, quantizer: Quantizer, blocks: Blocks, mapped: int):
    seeds = None
    if seed and quantizer.rounding == "stochastic":  # its other axes have extent 1
        examples = x.shape[:mapped]
        seeds = jnp.broadcast_to(seed[0].reshape(seed[0].shape[:mapped]), examples).reshape(
            math.prod(examples)
        )
    return passes.quantize_blocks(x, quantizer, blocks, mapped=mapped, seeds=seeds)


def _quantize(x: jax.Array, *more: jax.Array, devices: tuple, native_code: bool, **params):
    """The computation of `quantize_p`, of each device's shard by itself where there are devices."""
    quantize = functools.partial(_quantize_natively if native_code else quantize_in_hlo, **params)
    if not devices:
        return quantize(x, *more)

    def compute(x):
        mantissa, exponent = quantize(x)
        return to_integers(mantissa), exponent

    mapped = len(params["mapped_axes"])
    mantissa, exponent = partitioned_quantization(compute, devices, params["blocks"], mapped, x)
    return from_integers(mantissa), exponent


_quantized = lower_fun(_quantize, multiple_results=True)


def _lower(ctx, *operands, on_cpu: bool, **params):
    native = on_cpu and params["native"]
    devices = ()
    if not _compat.is_partitioned(ctx):
        producer = find_producer(operands[0], params) if native else None
        if producer is not None:
            return producer.lower(ctx, params)
    else:
        # Stochastic rounding depends on an element's index in the whole tensor, which a shard does not know.
        random = params["quantizer"].rounding == "stochastic" or params["given"]
        if params["blocks"] is not None and not random:
            ctx, devices = _compat.partitioned_context(ctx)
        native = native and bool(devices)
    return _quantized(ctx, *operands, devices=devices, native_code=native, **params)


for _platform, _on_cpu in ((None, False), ("cpu", True)):
    lower = functools.partial(_lower, on_cpu=_on_cpu)
    mlir.register_lowering(quantize_p, lower, platform=_platform, cacheable=False)
