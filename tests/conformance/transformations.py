"""Transformations: all combinations of `mixed_precision` with JAX's own transformations.

Each builds a function from a subject and `mixed`, which is `mixed_precision` or, for the float32 reference,
the identity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from conformance.kinds import Kind
from conformance.programs import Op, Program
from dfpjax import checkpoint_policies

EXAMPLES = 2
"""Size of the mapped axes."""


@dataclass(frozen=True, eq=False)
class Subject:
    """The subject of a transformation: a program around a kind of operation."""

    program: Program
    kind: Kind

    def f(self, w, x):
        return self.around(self.kind.apply)(w, x)

    def around(self, op: Op) -> Callable:
        return partial(self.program.fun, op)


Mixed = Callable[[Callable], Callable]


@dataclass(frozen=True, kw_only=True)
class Transformation:
    """One column of the matrix."""

    name: str
    build: Callable[[Subject, Mixed], Callable]
    """Builds the function to trace and run. It takes the arguments that `takes` names."""

    needs: tuple[str, ...] = ()
    """The capabilities that JAX must have for the program: "forward", "reverse", "batching"."""

    order: int = 0
    """The order of the derivative: errors grow with it."""

    takes: str = "wx"
    """The arguments, one letter each: `w`, `x`, their tangents `v` and `u`, a vector `t` of two numbers. A
    capital letter is a stack of examples."""

    maps: str | None = None
    """For `vmap`: the mapped transformation. A loop runs it too, for a comparison bit for bit."""

    everywhere: bool = False
    """Values are compared in every program, not only in some."""

    first: bool = False
    """They are compared in the first tier already."""

    eager: bool = False
    """Run without `jax.jit`."""

    inside: bool = False
    """`mixed_precision` is applied inside the program."""

    same_as: str | None = None
    """A transformation with the same values: the two are compared and share their float32 reference."""

    recomputes: bool = False
    """It computes the values of `same_as` by different operations. Their number is compared with its own
    float32 jaxpr."""


def loss(f: Callable) -> Callable:
    return lambda w, x: sum((leaf * leaf).sum() for leaf in jax.tree.leaves(f(w, x)))


def grad(f: Callable) -> Callable:
    return jax.grad(loss(f), (0, 1))


def jvp(f: Callable) -> Callable:
    return lambda w, x, v, u: jax.jvp(f, (w, x), (v, u))


def vjp(f: Callable) -> Callable:
    def pulled_back(w, x):
        out, pullback = jax.vjp(f, w, x)
        return pullback(out)

    return pulled_back


def linearize(f: Callable) -> Callable:
    def linearized(w, x, v, u):
        out, tangent_map = jax.linearize(f, w, x)
        return out, tangent_map(v, u)

    return linearized


def slope(f: Callable) -> Callable:
    """The derivative of the loss in a direction, in forward mode."""
    return lambda w, x, v, u: jax.jvp(loss(f), (w, x), (v, u))[1]


def reverse_over_reverse(f: Callable) -> Callable:
    def inner(w, x, v, u):
        dw, dx = grad(f)(w, x)
        return (dw * v).sum() + (dx * u).sum()

    return jax.grad(inner, (0, 1))


def reverse_over_forward(f: Callable) -> Callable:
    return jax.grad(slope(f), (0, 1))


def forward_over_reverse(f: Callable) -> Callable:
    return lambda w, x, v, u: jax.jvp(grad(f), (w, x), (v, u))[1]


def along(f: Callable, transform: Callable) -> Callable:
    """Transforms `f` as a function of two numbers: the step lengths along the two tangents."""
    return lambda w, x, v, u, t: transform(lambda t: f(w + t[0] * v, x + t[1] * u))(t)


def stepped(f: Callable) -> Callable:
    """A training step of a jitted loop: value, gradients and updated parameters."""

    def step(w, x):
        value, (dw, dx) = jax.value_and_grad(loss(f), (0, 1))(w, x)
        return value, w - dw / 8, x - dx / 8

    return step


def scanned(f: Callable) -> Callable:
    return lambda w, x: lax.scan(lambda c, v: (c, f(w, v)), None, jnp.stack([x, x / 2]))[1]


_FORWARD = {"needs": ("forward",), "order": 1, "takes": "wxvu"}
_REVERSE = {"needs": ("reverse",), "order": 1}
_SECOND = {"needs": ("reverse", "forward"), "order": 2, "takes": "wxvu"}
_ALONG_REVERSE = {"needs": ("reverse", "batching"), "order": 1, "takes": "wxvut"}
_ALONG_FORWARD = {"needs": ("forward", "batching"), "order": 1, "takes": "wxvut"}

_TABLE: list[tuple[str, Callable, dict]] = [
    # value
    ("mixed(f)", lambda s, mixed: mixed(s.f), {"everywhere": True, "first": True}),
    ("mixed(f), eagerly", lambda s, mixed: mixed(s.f), {"eager": True, "same_as": "mixed(f)"}),
    ("jit(mixed(f))", lambda s, mixed: jax.jit(mixed(s.f)), {"same_as": "mixed(f)"}),
    ("mixed(jit(f))", lambda s, mixed: mixed(jax.jit(s.f)), {"same_as": "mixed(f)"}),
    ("mixed(mixed(f))", lambda s, mixed: mixed(mixed(s.f)), {"same_as": "mixed(f)"}),
    (
        "f around mixed(op)",
        lambda s, mixed: s.around(mixed(s.kind.apply)),
        {"same_as": "mixed(f)"},
    ),
    ("scan(mixed(f))", lambda s, mixed: scanned(mixed(s.f)), {}),
    # reverse mode
    ("grad(mixed(f))", lambda s, mixed: grad(mixed(s.f)), _REVERSE | {"everywhere": True, "first": True}),
    (
        "grad(mixed(f)), eagerly",
        lambda s, mixed: grad(mixed(s.f)),
        _REVERSE | {"eager": True, "same_as": "grad(mixed(f))"},
    ),
    (
        "mixed(grad(f))",
        lambda s, mixed: mixed(grad(s.f)),
        _REVERSE | {"everywhere": True, "same_as": "grad(mixed(f))"},
    ),
    (
        "mixed(grad(mixed(f)))",
        lambda s, mixed: mixed(grad(mixed(s.f))),
        _REVERSE | {"same_as": "grad(mixed(f))"},
    ),
    (
        "grad(f around mixed(op))",
        lambda s, mixed: grad(s.around(mixed(s.kind.apply))),
        _REVERSE | {"same_as": "grad(mixed(f))", "inside": True},
    ),
    (
        "jit(grad(jit(mixed(f))))",
        lambda s, mixed: jax.jit(grad(jax.jit(mixed(s.f)))),
        _REVERSE | {"same_as": "grad(mixed(f))", "recomputes": True},
    ),
    (
        "grad(checkpoint(mixed(f)))",
        lambda s, mixed: grad(jax.checkpoint(mixed(s.f), policy=checkpoint_policies.dots_saveable)),
        _REVERSE | {"same_as": "grad(mixed(f))", "recomputes": True},
    ),
    (
        "grad(mixed(checkpoint(f)))",
        lambda s, mixed: grad(mixed(jax.checkpoint(s.f))),
        _REVERSE | {"same_as": "grad(mixed(f))", "recomputes": True},
    ),
    ("value_and_grad(mixed(f))", lambda s, mixed: stepped(mixed(s.f)), _REVERSE),
    (
        "mixed(value_and_grad(f))",
        lambda s, mixed: mixed(stepped(s.f)),
        _REVERSE | {"same_as": "value_and_grad(mixed(f))"},
    ),
    ("vjp(mixed(f))", lambda s, mixed: vjp(mixed(s.f)), _REVERSE),
    (
        "jacrev(mixed(f))",
        lambda s, mixed: along(mixed(s.f), jax.jacrev),
        _ALONG_REVERSE,
    ),
    # forward mode
    ("jvp(mixed(f))", lambda s, mixed: jvp(mixed(s.f)), _FORWARD),
    ("mixed(jvp(f))", lambda s, mixed: mixed(jvp(s.f)), _FORWARD | {"same_as": "jvp(mixed(f))"}),
    (
        "linearize(mixed(f))",
        lambda s, mixed: linearize(mixed(s.f)),
        _FORWARD | {"same_as": "jvp(mixed(f))", "recomputes": True},
    ),
    (
        "jacfwd(mixed(f))",
        lambda s, mixed: along(mixed(s.f), jax.jacfwd),
        _ALONG_FORWARD,
    ),
    # second derivatives
    (
        "grad(grad(mixed(f)))",
        lambda s, mixed: reverse_over_reverse(mixed(s.f)),
        _SECOND | {"needs": ("reverse",)},
    ),
    (
        "mixed(grad(grad(f)))",
        lambda s, mixed: mixed(reverse_over_reverse(s.f)),
        _SECOND | {"needs": ("reverse",), "same_as": "grad(grad(mixed(f)))", "recomputes": True},
    ),
    (
        "jvp(grad(mixed(f)))",
        lambda s, mixed: forward_over_reverse(mixed(s.f)),
        _SECOND | {"needs": ("reverse",), "same_as": "grad(grad(mixed(f)))", "recomputes": True},
    ),
    (
        "grad(jvp(mixed(f)))",
        lambda s, mixed: reverse_over_forward(mixed(s.f)),
        _SECOND | {"same_as": "grad(grad(mixed(f)))", "recomputes": True},
    ),
    (
        "hessian(mixed(f))",
        lambda s, mixed: along(loss(mixed(s.f)), jax.hessian),
        _SECOND | {"needs": ("reverse", "batching"), "takes": "wxvut"},
    ),
]

_BATCHED = {"needs": ("batching",)}
_FORWARD_BATCHED = {"needs": ("forward", "batching"), "order": 1}
_REVERSE_BATCHED = {"needs": ("reverse", "batching"), "order": 1}

_VMAP: list[tuple[str, str, dict]] = [
    ("vmap(mixed(f))", "mixed(f)", _BATCHED | {"takes": "wX", "everywhere": True}),
    ("vmap(mixed(f)) over w", "mixed(f)", _BATCHED | {"takes": "Wx"}),
    ("vmap(mixed(f)) over both", "mixed(f)", _BATCHED | {"takes": "WX"}),
    ("vmap(grad(mixed(f)))", "grad(mixed(f))", _REVERSE_BATCHED | {"takes": "wX"}),
    ("vmap(mixed(grad(f)))", "mixed(grad(f))", _REVERSE_BATCHED | {"takes": "WX"}),
    ("vmap(jvp(mixed(f)))", "jvp(mixed(f))", _FORWARD_BATCHED | {"takes": "wXvU"}),
]

_OF_VMAP: list[tuple[str, Callable, dict]] = [
    ("mixed(vmap(f))", lambda s, mixed: mixed(jax.vmap(s.f, (None, 0))), _BATCHED | {"takes": "wX"}),
    (
        "grad(vmap(mixed(f)))",
        lambda s, mixed: grad(jax.vmap(mixed(s.f), (None, 0))),
        _REVERSE | {"needs": ("batching", "reverse"), "takes": "wX"},
    ),
]

TRANSFORMATIONS: dict[str, Transformation] = {
    name: Transformation(name=name, build=build, **fields) for name, build, fields in _TABLE + _OF_VMAP
}


def _vmap(name: str, maps: str, fields: dict) -> Transformation:
    axes = tuple(0 if letter.isupper() else None for letter in fields["takes"])
    one = TRANSFORMATIONS[maps].build
    return Transformation(name=name, build=lambda s, m: jax.vmap(one(s, m), axes), maps=maps, **fields)


TRANSFORMATIONS |= {name: _vmap(name, maps, fields) for name, maps, fields in _VMAP}


def arguments(kind: Kind, takes: str) -> list[jax.Array]:
    """Random arguments, as `Transformation.takes` says."""

    def normal(letter: str) -> jax.Array:
        shape = {"w": kind.w, "x": kind.x, "v": kind.w, "u": kind.x, "t": (2,)}[letter.lower()]
        if letter.isupper():
            shape = (EXAMPLES, *shape)
        values = np.random.default_rng(ord(letter)).standard_normal(shape)
        if letter.isupper():  # examples differ in scale, so their exponents differ too
            values[1] *= 5
        return jnp.asarray(values / 2, jnp.float32)

    return [normal(letter) for letter in takes]
