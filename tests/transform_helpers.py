"""Helpers for tests of the transform, of the tools built on it, and for the conformance matrix."""

from collections import Counter

import jax
import numpy as np
from flax import linen
from jax.extend.core import jaxprs_in_params

REALIGNED = 3e-4
"""How far results in blocks may be from each other where programs align mantissas differently: where a split
puts other exponents beside each other, or where an operand is A in one program and B in the other."""


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs inside it."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


def primitives(jaxpr) -> Counter:
    """The number of equations with each primitive in a jaxpr and the jaxprs inside it."""
    return Counter(eqn.primitive.name for eqn in equations(jaxpr))


def floats(jaxpr) -> int:
    """Number of float convolutions, and of float dot products with more than one term."""
    return sum(eqn.primitive.name == "conv_general_dilated" or _is_sum(eqn) for eqn in equations(jaxpr))


def _is_sum(eqn) -> bool:
    if eqn.primitive.name != "dot_general":
        return False
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted]) > 1


def quantized(jaxpr) -> int:
    """Number of operations in dynamic fixed point."""
    found = primitives(jaxpr)
    return found["dfp_contract"] + found["dfp_contract_linear"]


def relative_error(actual, expected) -> float:
    """Norm of the difference divided by the norm of the expected values, over all leaves."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(actual)]
    others = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(expected)]
    a, b = np.concatenate(leaves), np.concatenate(others)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def normal(seed: int, *shape: int) -> jax.Array:
    """Normally distributed float32 numbers, different for each seed and shape."""
    # From NumPy, because XLA takes half a second per shape to compile JAX's generator. jnp.asarray would
    # compile a program for each shape, too.
    values = np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)
    return jax.device_put(values, may_alias=False)


def variables_of(model: linen.Module, *args):
    """Random variables in the structure of `model.init`, without compiling its random numbers."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    leaves, structure = jax.tree.flatten(shapes)
    return structure.unflatten(_variable(seed, leaf.shape) for seed, leaf in enumerate(leaves))


def _variable(seed: int, shape: tuple[int, ...]) -> jax.Array:
    values = np.asarray(normal(seed, *shape))
    if len(shape) < 2:  # biases, scales, and variances, which are positive
        return jax.device_put(np.exp(values / 4))
    return jax.device_put(values / np.sqrt(np.prod(shape[:-1]), dtype=np.float32))
