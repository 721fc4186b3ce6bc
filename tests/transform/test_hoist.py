"""Products that move out of loops: which do, and that all else stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forced import FORCED
from jax import lax
from transform_helpers import REALIGNED, normal, relative_error

import dfpjax
from dfpjax.policy import OpConfig, Policy, Rule
from dfpjax.transform import mixed_precision

pytestmark = pytest.mark.jax_releases

LOOP = Policy(default=FORCED.default, fuse=False)
STEPS, BATCH, WIDTH = 5, 3, 40
XS, STATE = normal(0, STEPS, BATCH, WIDTH), normal(1, BATCH, WIDTH)
W, U = normal(2, WIDTH, WIDTH) / 6, normal(3, WIDTH, WIDTH) / 6
BIAS = normal(4, WIDTH)


def cell(state, x, w, u):
    """A recurrent layer: one product of the input, one of the state."""
    return jnp.tanh(x @ w + BIAS + state @ u)


def recurrent(xs, w, u, **options):
    """States of a recurrent layer."""

    def step(state, x):
        state = cell(state, x, w, u)
        return state, state

    return lax.scan(step, STATE, xs, **options)[1]


def gates(xs, w, u):
    """Gates that are parts of one product, of matrices that the loop puts together, and of a scaled input."""

    def step(state, x):
        a, b = jnp.split((2 * x) @ jnp.concatenate([w, u], 1), 2, axis=1)
        c, d = jnp.split(state @ jnp.concatenate([u, w], 1), 2, axis=1)
        state = jax.nn.sigmoid(a + c) * jnp.tanh(b - d)
        return state, state

    return lax.scan(step, STATE, xs)[1]


def matrix_first(xs, w, u):
    """The matrix is the left operand."""

    def step(state, x):
        state = jnp.tanh(w @ x.T + u @ state)
        return state, state

    return lax.scan(step, STATE.T, xs)[1]


def convolutional(xs, w, u):
    """A convolution of the input and one of the state."""
    kernel, recurrent = (m[: 3 * 8].reshape(3, 8, 40)[..., :8] for m in (w, u))

    def convolved(x, k):
        return lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    def step(state, x):
        state = jnp.tanh(convolved(x, kernel) + convolved(state, recurrent))
        return state, state

    return lax.scan(step, STATE.reshape(BATCH, 5, 8), xs.reshape(STEPS, BATCH, 5, 8))[1]


MOVE = {
    "recurrent": recurrent,
    "reverse": lambda *args: recurrent(*args, reverse=True),
    "unrolled": lambda *args: recurrent(*args, unroll=2),
    "gates": gates,
    "matrix first": matrix_first,
    "convolutional": convolutional,
    "jit": lambda *args: jax.jit(recurrent)(*args),
    "remat": lambda *args: jax.checkpoint(recurrent)(*args),
    "inner loop": lambda xs, w, u: lax.scan(lambda c, x: (c, recurrent(x, w, u)), 0.0, xs[None])[1],
}


def products_inside(fun, *args) -> list[int]:
    """The number of times that each product of a program runs, as `explain` has it."""
    return sorted(op.count for op in dfpjax.explain(fun, *args, policy=FORCED).ops)


@pytest.mark.parametrize("name", MOVE)
def test_products_of_inputs_move_out_of_the_loop(name):
    fun = MOVE[name]
    assert products_inside(fun, XS, W, U) == [1, STEPS]

    def value_and_gradients(policy):
        f = mixed_precision(fun, policy)
        return f(XS, W, U), jax.grad(lambda *args: (f(*args) ** 2).sum(), (0, 1, 2))(XS, W, U)

    (moved, gradients), (loop, others) = jax.jit(lambda: [value_and_gradients(p) for p in (FORCED, LOOP)])()
    # XLA computes tanh in other vectors. A transposed input has other blocks when all steps are one tensor.
    assert relative_error(moved, loop) < (REALIGNED if name == "matrix first" else 1e-5)
    exact = jax.jit(jax.grad(lambda *args: (fun(*args) ** 2).sum(), (0, 1, 2)))(XS, W, U)
    for gradient, other, expected in zip(gradients, others, exact, strict=True):
        error = relative_error(gradient, expected)
        assert 0 < error < 1e-3
        assert error < 2 * relative_error(other, expected)


def of_microbatches(xs, w, u):
    """Gradients that a loop adds up: its products need no state, but it is there to save memory."""

    def step(total, x):
        return total + jax.grad(lambda u: (jnp.tanh(jnp.tanh(x @ w) @ u) ** 2).sum())(u), None

    return lax.scan(step, jnp.zeros_like(u), xs)[0]


def of_state(xs, w, u):
    def step(state, x):
        return jnp.tanh(state @ w) @ u + x, None

    return lax.scan(step, STATE, xs)[0]


def of_two_inputs(xs, w, u):
    def step(state, x):
        return state + x @ x.T @ x, None

    return lax.scan(step, STATE, xs)[0]


def of_sums(xs, w, u):
    """All terms at once would take as much memory as there are steps."""
    return lax.scan(lambda total, x: (total + x @ w, None), STATE, xs)[0]


def of_sorted_inputs(xs, w, u):
    """What makes the operand is more than an arrangement."""

    def step(state, x):
        return state + jnp.sort(x, 0) @ w, None

    return lax.scan(step, STATE, xs)[0]


def without_state(xs, w, u):
    return lax.map(lambda x: jnp.tanh(x @ w) @ u, xs)


STAY = [of_microbatches, of_sums, of_state, of_two_inputs, of_sorted_inputs, without_state]


@pytest.mark.parametrize("fun", STAY)
def test_other_products_stay(fun):
    assert set(products_inside(fun, XS, W, U)) == {STEPS}


def test_only_what_runs_in_dynamic_fixed_point_moves():
    for policy in (LOOP, Policy(default=None), Policy(), Policy(rules=[Rule("", None)])):
        assert [op.count for op in dfpjax.explain(recurrent, XS, W, U, policy=policy).ops] == [STEPS] * 2
    assert str(jax.make_jaxpr(mixed_precision(recurrent))(XS, W, U)) == str(
        jax.make_jaxpr(recurrent)(XS, W, U)
    )


def test_one_exponent_per_tensor_is_that_of_all_steps():
    """A loop's product has exponents of the step."""
    policy = Policy(default=OpConfig(force=True, granularity="tensor"))
    scaled = XS * 2.0 ** -np.arange(STEPS, dtype=np.float32)[:, None, None]
    actual = jax.jit(mixed_precision(lambda xs: recurrent(xs, W, jnp.zeros_like(U)), policy))(scaled)
    assert 0 < relative_error(actual, recurrent(scaled, W, jnp.zeros_like(U))) < 1e-3
