"""Operands for `benchmarks.fidelity`, and random ones of several distributions."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.common.shapes import Conv, Dot, Einsum

Case = Conv | Dot | Einsum
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Operands:
    """One operation of a network: its input, its kernel and the gradient of its output."""

    family: str
    layer: str
    case: Case
    x: np.ndarray
    w: np.ndarray
    dy: np.ndarray


def _normal(rng, shape):
    return rng.standard_normal(shape)


def _student_t(rng, shape):
    return rng.standard_t(3, shape)


def _log_normal(rng, shape):
    """Both signs, magnitudes of exp(1.5 z)."""
    return rng.choice([-1.0, 1.0], shape) * rng.lognormal(0, 1.5, shape)


def _relu(draw: Draw) -> Draw:
    return lambda rng, shape: np.maximum(draw(rng, shape), 0)


def _over_decades(draw: Draw) -> Draw:
    """The last axis's channels with scales from 1 to 1000, uniform in the logarithm."""
    return lambda rng, shape: draw(rng, shape) * 10 ** rng.uniform(0, 3, shape[-1])


RANDOM = {
    "normal": (_normal, _normal),
    "ReLU of normal": (_relu(_normal), _normal),
    "Student's t, 3 degrees": (_relu(_student_t), _student_t),
    "log-normal": (_relu(_log_normal), _log_normal),
    "channels over 3 decades": (_over_decades(_relu(_normal)), _over_decades(_normal)),
}
"""Of each family the distribution of inputs and of output gradients. Kernels are normal in all of them."""


def random_operands(family: str, case: Case, seed: int = 0) -> Operands:
    """Operands of that family in the shapes of that operation."""
    rng = np.random.default_rng(seed)
    draw_x, draw_dy = RANDOM[family]
    draws = (draw_x, case.lhs), (_normal, case.rhs), (draw_dy, case.out)
    x, w, dy = (draw(rng, shape).astype(np.float32) for draw, shape in draws)
    return Operands(family=family, layer="", case=case, x=x, w=w, dy=dy)
