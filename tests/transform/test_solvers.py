"""Solvers such as those of Optimistix, Lineax and Equinox, whose primitives keep functions as jaxprs among
their static parameters."""

import functools

import equinox.internal
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
import pytest
from forced import FORCED
from jax import lax
from transform_helpers import normal, primitives, quantized, relative_error

import dfpjax
from dfpjax.policy import Policy
from dfpjax.transform import mixed_precision

W = normal(0, 6, 6) / 5
B = normal(1, 6)
START = jnp.zeros(6)
TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}


def image(y, args):
    w, b = args
    return jax.nn.relu(w @ y) / 2 + jnp.tanh(w @ y) / 2 + b


def residual(y, args):
    return y - image(y, args)


def squared(y, args):
    return jnp.sum(residual(y, args) ** 2)


def root_find(w, b):
    return optimistix.root_find(residual, optimistix.Newton(**TOLERANCES), START, (w, b)).value


def fixed_point(w, b):
    return optimistix.fixed_point(image, optimistix.FixedPointIteration(**TOLERANCES), START, (w, b)).value


def least_squares(w, b):
    solver = optimistix.LevenbergMarquardt(**TOLERANCES)
    return optimistix.least_squares(residual, solver, START, (w, b)).value


def minimise(w, b):
    return optimistix.minimise(squared, optimistix.BFGS(**TOLERANCES), START, (w, b)).value


def lineax_cg(w, b):
    operator = lineax.FunctionLinearOperator(
        lambda y: 2 * y + w.T @ (w @ y), jax.eval_shape(lambda: b), lineax.positive_semidefinite_tag
    )
    return lineax.linear_solve(operator, b, lineax.CG(rtol=1e-5, atol=1e-5)).value


def lineax_jacobian(w, b):
    return lineax.linear_solve(lineax.JacobianLinearOperator(residual, b, (w, b)), b).value


def checkpointed_loop(w, b):
    """A loop like those in which Diffrax integrates."""

    def step(y):
        return 0.9 * y + 0.1 * image(y, (w, b))

    return equinox.internal.while_loop(
        lambda y: jnp.sum(y) < 1e6, step, b, kind="checkpointed", max_steps=4, checkpoints=2
    )


def custom_linear_solve(w, b):
    def solve(matvec, y):
        return lax.fori_loop(0, 12, lambda _, z: (y - matvec(z) + 3 * z) / 3, jnp.zeros_like(y))

    return lax.custom_linear_solve(lambda y: 2 * y + w.T @ (w @ y), b, solve, symmetric=True)


def custom_root(w, b):
    def solve(f, y):
        return lax.fori_loop(0, 12, lambda _, z: z - f(z), y)

    def tangent_solve(g, y):
        return jnp.linalg.solve(jax.jacobian(g)(y), y)

    return lax.custom_root(lambda y: residual(y, (w, b)), START, solve, tangent_solve)


# References without a solver, in NumPy and float64.


def image_and_slopes(y, w, b):
    z = w @ y
    return np.maximum(z, 0) / 2 + np.tanh(z) / 2 + b, (z > 0) / 2 + (1 - np.tanh(z) ** 2) / 2


def solution(w, b):
    y = b
    for _ in range(60):
        y, _ = image_and_slopes(y, w, b)
    return y


def linear_solution(w, b):
    return np.linalg.solve(2 * np.eye(6) + w.T @ w, b)


def linearized_solution(w, b):
    _, slopes = image_and_slopes(b, w, b)
    return np.linalg.solve(np.eye(6) - slopes[:, None] * w, b)


def integrated(w, b):
    y = b
    for _ in range(4):
        y = 0.9 * y + 0.1 * image_and_slopes(y, w, b)[0]
    return y


PROGRAMS = {
    root_find: solution,
    fixed_point: solution,
    least_squares: solution,
    minimise: solution,
    custom_root: solution,
    lineax_cg: linear_solution,
    custom_linear_solve: linear_solution,
    lineax_jacobian: linearized_solution,
    checkpointed_loop: integrated,
}


def gradient(fun):
    return jax.grad(lambda w, b: jnp.sum(jnp.sin(fun(w, b))), (0, 1))


def value_and_gradients(fun):
    def with_value(w, b):
        y = fun(w, b)
        return jnp.sum(jnp.sin(y)), y

    def run(w, b):
        gradients, value = jax.grad(with_value, (0, 1), has_aux=True)(w, b)
        return value, gradients

    return run


@functools.cache
def expected(fun):
    """Value and gradients, the latter from central differences."""
    w, b = np.asarray(W, np.float64), np.asarray(B, np.float64)

    def slope(dw, db):
        difference = np.sin(fun(w + dw, b + db)) - np.sin(fun(w - dw, b - db))
        return difference.sum() / (2 * np.linalg.norm(dw) + 2 * np.linalg.norm(db))

    steps = 1e-6 * np.eye(36).reshape(6, 6, 6, 6)
    of_w = np.array([[slope(step, 0 * b) for step in row] for row in steps])
    of_b = np.array([slope(0 * w, 1e-6 * step) for step in np.eye(6)])
    return fun(w, b), (of_w, of_b)


@pytest.mark.parametrize(
    "fun",
    [pytest.param(fun, marks=[pytest.mark.slow] * (fun in (least_squares, minimise))) for fun in PROGRAMS],
)
def test_values_and_gradients(fun):
    actual = jax.jit(value_and_gradients(mixed_precision(fun, FORCED)))(W, B)
    assert relative_error(actual, expected(PROGRAMS[fun])) < 2e-3


def test_vmap():
    batched = jax.vmap(value_and_gradients(mixed_precision(fixed_point, FORCED)), (None, 0))
    actual = jax.jit(batched)(W, np.stack([B / 2, B]))
    assert relative_error(jax.tree.map(lambda x: x[1], actual), expected(solution)) < 2e-3


@pytest.mark.parametrize(
    ("fun", "policy"),
    [
        *(pytest.param(fun, FORCED, id=f"{fun.__name__}-forced") for fun in PROGRAMS),
        *(pytest.param(fun, Policy(), id=f"{fun.__name__}-default") for fun in (lineax_cg, custom_root)),
    ],
)
def test_gradients_are_traced(fun, policy):
    of_transformed = gradient(mixed_precision(fun, policy))
    transformed = mixed_precision(gradient(fun), policy)
    jax.make_jaxpr(jax.vmap(of_transformed, (None, 0)))(W, np.stack([B, B]))
    counts = [quantized(jax.make_jaxpr(f)(W, B)) for f in (of_transformed, transformed)]
    # Lineax keeps the function that it solves as a jaxpr. Later JAX's `custom_root` is opaque.
    is_opaque = fun is lineax_cg or primitives(jax.make_jaxpr(fun)(W, B))["call_hi_primitive"] > 0
    assert [count > 0 for count in counts] == [policy is FORCED and not is_opaque, policy is FORCED]


def test_a_gradient_without_jit():
    actual = gradient(mixed_precision(root_find, FORCED))(W, B)
    assert relative_error(actual, expected(solution)[1]) < 2e-3


def test_operations_of_functions_that_are_kept_are_reported():
    report = dfpjax.explain(lineax_cg, W, B, policy=FORCED)
    assert "linear_solve" in report.opaque


def test_a_primitive_without_contractions_is_not():
    report = dfpjax.explain(fixed_point, W, B, policy=FORCED)
    assert "linear_solve" not in report.opaque and len(report.ops) == 2
