"""`dot_general` in dynamic fixed point."""

import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dfpjax import _checks
from dfpjax.numbers import Quantizers
from dfpjax.numbers.contraction.accumulation import Accumulation, check_roles, pre_shifted
from dfpjax.numbers.contraction.algorithm import RequestedAlgorithm
from dfpjax.numbers.contraction.contraction import Contraction
from dfpjax.numbers.format.explicit import permuted, permuted_sharding, reshaped
from dfpjax.operations import primitives
from dfpjax.operations.exponents import blocks_of, quantize_operand
from dfpjax.operations.primitives import Backend


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    dimension_numbers,
    out_sharding: NamedSharding | PartitionSpec | None = None,
    quantizers: Quantizers = Quantizers(),  # noqa: B008 (frozen)
    accumulation: Accumulation = "certified",
    backend: Backend = "auto",
    witness: jax.Array | None = None,
) -> jax.Array:
    """`jax.lax.dot_general` with both operands quantized, exact integer chains and float32 sums between them.

    Arguments:
        lhs, rhs: float32 arrays.
        dimension_numbers: ((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)), as in JAX.
        out_sharding: on an explicit mesh, the result's sharding, as in JAX.
        quantizers: bits, rounding and granularity of the operands and of the cotangents.
        accumulation: "certified" for chains that cannot overflow, or a `FixedChain`.
        backend: "auto" for native kernels where the platform has them, "reference" for plain JAX.
        witness: float32 of any shape with the largest magnitude of lhs, which saves a pass over lhs.

    Returns:
        float32 of the shape, and on an explicit mesh of the sharding, that `jax.lax.dot_general` gives: batch
        axes, then lhs's free ones, then rhs's.

    Raises:
        TypeError: if an operand is not float32, or the shapes do not fit.
        ValueError: if the accumulation does not suit the quantizers' bits.
    """
    problem = dot_problem(lhs, rhs, dimension_numbers=dimension_numbers, out_sharding=out_sharding)
    return contract(problem, quantizers, accumulation, backend, witness)


class Problem(NamedTuple):
    """An operation as a contraction of operands."""

    function: str
    """The operation's name."""

    lhs: jax.Array
    """float32, with the contraction's axes."""
    rhs: jax.Array
    contraction: Contraction
    sharding: NamedSharding
    """The sharding of the contraction's result."""
    out: jax.core.ShapedArray
    """The result's type in JAX; the contraction's result may have more axes."""
    axes: tuple[int, ...]
    """The result's axes in the contraction's order."""
    algorithm: RequestedAlgorithm = "direct"

    def result(self, contracted: jax.Array) -> jax.Array:
        """The operation's result, given the contraction's."""
        sharding = permuted_sharding(self.out.sharding, self.axes)
        merged = reshaped(contracted, permuted(self.out.shape, self.axes), sharding)
        return jax.lax.transpose(merged, tuple(map(self.axes.index, range(merged.ndim))))

    def cotangent(self, of_result: jax.Array) -> jax.Array:
        """The cotangent of the contraction's result, given that of the operation's."""
        of_result = jax.lax.transpose(of_result, self.axes)
        return reshaped(of_result, self.contraction.out_shape, self.sharding)


def dot_problem(lhs: jax.Array, rhs: jax.Array, *, dimension_numbers, out_sharding=None) -> Problem:
    """The contraction that a `dot_general` is, and its operands."""
    _require_float32("dot_general", lhs=lhs, rhs=rhs)
    dimension_numbers = _dimension_numbers(dimension_numbers)

    def multiply(x, y):
        return jax.lax.dot_general(x, y, dimension_numbers, out_sharding=out_sharding)

    out = result_type(multiply, lhs, rhs, out_sharding)
    contraction = dot_contraction(lhs.ndim, rhs.ndim, dimension_numbers, out.shape)
    return Problem("dot_general", lhs, rhs, contraction, out.sharding, out, tuple(range(out.ndim)))


def _dimension_numbers(numbers):
    """Tuples of integers, in the form that JAX has."""
    wanted = "((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)), sequences of axes"
    try:
        contracting, batch = ([tuple(map(operator.index, axes)) for axes in pair] for pair in numbers)
        (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = contracting, batch
    except (TypeError, ValueError):
        raise _checks.wrong_type("dot_general", "dimension_numbers", wanted, numbers) from None
    return (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)


def result_type(function: Callable, lhs: jax.Array, rhs: jax.Array, out_sharding):
    """The type of a JAX function's result; checks the shapes and the parameters on the way.

    A sharding that is given may be over a mesh that has not been set.
    """
    given = isinstance(out_sharding, NamedSharding)
    mesh = jax.sharding.use_abstract_mesh(out_sharding.mesh.abstract_mesh) if given else nullcontext()
    with mesh:
        return jax.make_jaxpr(function)(lhs, rhs).out_avals[0]


def dot_contraction(lhs_ndim: int, rhs_ndim: int, dimension_numbers, out_shape) -> Contraction:
    """The contraction that a `dot_general` is."""
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = dimension_numbers
    lhs = list(range(lhs_ndim))
    rhs = list(range(lhs_ndim, lhs_ndim + rhs_ndim))
    pairs = (*zip(lhs_contracting, rhs_contracting, strict=True), *zip(lhs_batch, rhs_batch, strict=True))
    for lhs_axis, rhs_axis in pairs:
        rhs[rhs_axis] = lhs[lhs_axis]
    bound_lhs, bound_rhs = {*lhs_contracting, *lhs_batch}, {*rhs_contracting, *rhs_batch}
    out = [lhs[axis] for axis in lhs_batch]
    out += [label for axis, label in enumerate(lhs) if axis not in bound_lhs]
    out += [label for axis, label in enumerate(rhs) if axis not in bound_rhs]
    return Contraction(lhs=tuple(lhs), rhs=tuple(rhs), out=tuple(out), out_shape=tuple(out_shape))


def contract(
    problem: Problem,
    quantizers: Quantizers,
    accumulation: Accumulation,
    backend: Backend,
    witness: jax.Array | None = None,
) -> jax.Array:
    """Quantize both operands and contract them. A witness has any shape and belongs to lhs."""
    operands, params = quantized(problem, quantizers, accumulation, backend, witness)
    return problem.result(primitives.contract(*operands, **params))


def quantized(
    problem: Problem,
    quantizers: Quantizers,
    accumulation: Accumulation,
    backend: Backend,
    witness: jax.Array | None = None,
) -> tuple[tuple, dict]:
    """Operands and parameters of `contract_p`."""
    _checks.instance(problem.function, "quantizers", quantizers, Quantizers, "a Quantizers")
    _checks.choice(problem.function, "backend", backend, get_args(Backend))
    native = backend == "auto"
    if witness is not None:  # it has the axes of its own tensor, while groups may have split those of lhs
        witness = witness.reshape(-1, *(1,) * (problem.lhs.ndim - 1))
    try:
        check_roles(accumulation, quantizers)
    except ValueError as error:
        raise ValueError(f"{problem.function}: {error}") from None
    quantizers = pre_shifted(quantizers, accumulation)
    contraction = problem.contraction
    operands = (
        *quantize_operand(problem.lhs, contraction, quantizers.lhs, witness=witness, native=native),
        *quantize_operand(problem.rhs, contraction.swap(), quantizers.rhs, native=native),
    )
    return operands, {
        "contraction": contraction,
        "cotangent": quantizers.cotangent,
        "accumulation": accumulation,
        "algorithm": problem.algorithm,
        "bits": (quantizers.lhs.bits, quantizers.rhs.bits),
        "blocks": (blocks_of(quantizers.lhs), blocks_of(quantizers.rhs)),
        "backend": backend,
        "out_sharding": problem.sharding,
    }


def _require_float32(function: str, **operands) -> None:
    for name, x in operands.items():
        _checks.instance(function, name, x, jax.Array | np.ndarray, "a float32 array")
        if x.dtype != jnp.float32:
            raise TypeError(f"{function}: {name} must be float32, got {x.dtype}; convert it first")
