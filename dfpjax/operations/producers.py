"""What computes a tensor that is quantized, and the native pass that does both.

A quantization looks at what makes its operand in the lowered program. If this is a composite that
`dfpjax.kernels.operands` has a pass for, the pass takes the composite's operands and writes mantissas and
exponents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dfpjax import _compat
from dfpjax.kernels.export import PER_SHARD
from dfpjax.kernels.operands import POOLED_OPERAND, RECTIFIED_OPERAND, operand_attributes
from dfpjax.numbers.format.dtype import from_integers
from dfpjax.numbers.format.explicit import lower_fun
from dfpjax.numbers.format.quantize import quantize_p
from dfpjax.operations import operands as passes
from dfpjax.operations.channels import scaled_p
from dfpjax.operations.composites import composite_name
from dfpjax.operations.moments import add_affine_p
from dfpjax.operations.partitioning import described
from dfpjax.operations.pooling import max_pool_p
from dfpjax.operations.rectified import rectified_scaled_p, rectify_normalized_p
from dfpjax.operations.rectified_bias import masked_p, rectified_shift_p


@dataclass(frozen=True, kw_only=True)
class Written:
    """Mantissas and exponents that are there already."""

    mantissa: Any
    exponent: Any

    def lower(self, ctx, params: dict):
        """The lowering of the quantization that would give them."""
        aval = _compat.ShapedArray(ctx.avals_in[0].shape, jnp.dtype("int16"))
        ctx = ctx.replace(avals_in=[aval, ctx.avals_out[1]])
        return _as_quantized(ctx, self.mantissa, self.exponent)


@dataclass(frozen=True, kw_only=True)
class Producer:
    """A pass, and its operands in the lowered program with their types."""

    quantized: Callable
    values: Sequence[Any]
    avals: Sequence[Any]

    def lower(self, ctx, params: dict):
        """The lowering of a quantization with these parameters."""
        ctx = ctx.replace(avals_in=self.avals)
        return self.quantized(ctx, *self.values, quantizer=params["quantizer"], blocks=params["blocks"])


def find_producer(operand, shape, params: dict) -> Producer | Written | None:
    """The producer of a quantization's operand of this shape, or None if none is known or it has no pass with
    such parameters."""
    if params["blocks"] is None or params["given"] or params["mapped_axes"]:
        return None
    if (found := _compat.composite_of(operand, shape)) is None:
        return _written(operand, shape, params)
    name, values, avals = found
    if name == _NAMES[rectified_shift_p]:  # of x, shift, mantissas, exponents
        return _written(values[2], shape, params)
    if name == _NAMES[max_pool_p]:  # of x, mantissas, exponents
        return _written(values[1], shape, params)
    if name == _NAMES[masked_p]:
        return Producer(quantized=_masked, values=values, avals=avals)
    if name == _NAMES[rectify_normalized_p]:
        return Producer(quantized=_rectified_normalization, values=values, avals=avals)
    if name == _NAMES[add_affine_p] and (inner := _compat.composite_of(values[0], shape)) is not None:
        of_gradient, scaling, types = inner
        values, avals = [*scaling, *values[1:]], [*types, *avals[1:]]
        if of_gradient == _NAMES[scaled_p]:
            return Producer(quantized=_gradient, values=values, avals=avals)
        x, same = map(_compat.unconstrained, (values[1], values[5 % len(values)]))
        if of_gradient == _NAMES[rectified_scaled_p] and x == same:
            return Producer(quantized=_rectified_gradient, values=values, avals=avals)
    return None


def _written(result, shape, params: dict) -> Written | None:
    """What the call that gives this result, of this shape, has written, if it is an operand of this kind."""
    if (call := _compat.custom_call_of(result)) is None:
        return None
    target, attributes, results = call
    if target == PER_SHARD:
        name, found = described(attributes)
        if name not in (passes.RECTIFIED, passes.POOLED):
            return None
        attributes = _plain(operand_attributes(shape, found["quantizer"], found["blocks"]))
    elif target not in (RECTIFIED_OPERAND, POOLED_OPERAND):
        return None
    wanted = _plain(operand_attributes(shape, params["quantizer"], params["blocks"]))
    if any(attributes[name] != value for name, value in wanted.items()):
        return None
    return Written(mantissa=results[0], exponent=results[1])


def _plain(attributes: dict) -> dict:
    return {name: v if isinstance(v, str) else v.tolist() for name, v in attributes.items()}


_NAMES = {
    p: composite_name(p.name)
    for p in (
        rectify_normalized_p,
        rectified_shift_p,
        max_pool_p,
        add_affine_p,
        scaled_p,
        rectified_scaled_p,
        masked_p,
    )
}


def _pass(fun: Callable) -> Callable:
    """The lowering of a function of float32 arrays that gives mantissas as integers and exponents."""

    @jax.named_scope(quantize_p.name)
    def run(*operands, **params):
        mantissa, exponent = fun(*operands, **params)
        return from_integers(mantissa), exponent

    return lower_fun(run, multiple_results=True)


_as_quantized = lower_fun(lambda m, e: (from_integers(m), e), multiple_results=True)


@_pass
def _rectified_normalization(x, mean, scale, shift, **params):
    mean, scale, shift = (v.reshape(-1) for v in (mean, scale, shift))
    return passes.rectified_operand(x, shift, mean=mean, scale=scale, **params)[:2]


@_pass
def _masked(x, positive, **params):
    return passes.masked_operand(x, positive, **params)


@_pass
def _gradient(g, scale, x, offset, slope, **params):
    scale, offset, slope = (v.reshape(-1) for v in (scale, offset, slope))
    return passes.gradient_operand(g, x, scale, offset, slope, **params)


@_pass
def _rectified_gradient(g, x, mean, scale, shift, _x, offset, slope, **params):
    mean, scale, shift, offset, slope = (v.reshape(-1) for v in (mean, scale, shift, offset, slope))
    return passes.gradient_operand(g, x, scale, offset, slope, mean, shift, **params)
