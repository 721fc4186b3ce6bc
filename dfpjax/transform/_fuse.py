"""Chains of equations for which the library has one pass over memory: found here, in one jaxpr at a time.

- The sum and the sum of squares of each channel of a tensor (batch statistics) are computed together, with
  the least and the greatest value.
- Where what has these extremes is normalized, shifted or rectified and then becomes an operation's left
  operand, its largest magnitude is where the extremes go, since all of this is monotonic: they are the
  operand's *witness*, from which its exponent is computed without a pass over the operand.
- `(x − mean) · scale + shift` and `x + shift`, of each channel, have gradients in one pass, also where the
  former is rectified.
- Such a normalized tensor plus a residual, rectified, is one pass, and its own extremes come with it.
- Maximum pooling of images in NHWC, and its gradient.

Large float32 tensors alone gain. Nothing is assumed of a program that does not match: it stays as it is.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.sharding import AxisType

from dfpjax import _compat
from dfpjax.operations.channels import normalize_channels, shift_channels
from dfpjax.operations.passes import moments
from dfpjax.operations.pooling import Windows, max_pool, max_pool_gradient
from dfpjax.operations.rectified import rectify_normalized, rectify_sum
from dfpjax.policy._config import PASSES
from dfpjax.transform._decide import Treatment
from dfpjax.transform._subjaxprs import opened

LEAST_SUMMED = 1 << 20
"""Elements of a tensor from which on a channel's sums are fused: from there on XLA reads it from memory."""

LEAST_POOLED = 1 << 15
"""Elements of an image batch from which on pooling is native."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusion:
    """One pass in place of one or more equations."""

    kind: str
    """In words, for `explain`."""
    eqn: JaxprEqn
    """Where it stands, and whose source it has."""
    fun: Callable
    inputs: Sequence[Var]
    outputs: Sequence[Var | None]
    """What each result of `fun` becomes; None for a result that no equation had."""
    extremes_of: Var | None = None
    """The tensor whose channels' least and greatest values are the last two results, if they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Witness:
    """A small tensor with the largest magnitude of a large one, as a function of arrays."""

    of: Var
    """The tensor whose extremes are the start."""
    steps: tuple[tuple[Callable, tuple[Var, ...]], ...] = ()
    """What happens to them, each a function of them and of a few arrays."""

    def then(self, fun: Callable, *inputs: Var) -> "Witness":
        """One more step."""
        return Witness(of=self.of, steps=(*self.steps, (fun, inputs)))

    @property
    def inputs(self) -> list[Var]:
        """What the steps take beside the extremes."""
        return [var for _, inputs in self.steps for var in inputs]

    def compute(self, low: jax.Array, high: jax.Array, *inputs: jax.Array) -> jax.Array:
        """The witness, given the extremes of each channel: float32[2, 1, ..., 1, channels]."""
        rank = len(self.of.aval.shape)
        x = jnp.stack([low, high]).reshape(2, *(1,) * (rank - 2), -1)
        remaining = iter(inputs)
        for fun, taken in self.steps:
            x = fun(x, *(next(remaining) for _ in taken))
        return jax.lax.stop_gradient(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusions:
    """What was found in a jaxpr."""

    passes: dict[int, Fusion] = field(default_factory=dict)
    """By the index of the equation at which they stand."""
    dropped: set[int] = field(default_factory=set)
    """Indices of the equations that are left out for them."""
    witnesses: dict[Var, Witness] = field(default_factory=dict)

    def witness(self, eqn: JaxprEqn, treatment: Treatment | None) -> Witness | None:
        """What an operation that is so treated has its left operand's exponent from, if not from itself."""
        lhs = eqn.invars[0]
        if treatment is None or not isinstance(lhs, Var):
            return None
        whole = treatment.quantizers.lhs.granularity == "tensor" and treatment.passes == frozenset(PASSES)
        return self.witnesses.get(lhs) if whole else None


def find_fusions(jaxpr: Jaxpr) -> Fusions:
    """Find what can be computed in one pass in a jaxpr; jaxprs inside of it are on their own."""
    return _Finder(jaxpr).fusions


class _Finder:
    def __init__(self, jaxpr: Jaxpr):
        self._jaxpr = jaxpr
        self._made_at: dict[Var, int] = {}
        self._uses: dict[Var, int] = {}
        for index, eqn in enumerate(jaxpr.eqns):
            self._made_at.update((var, index) for var in eqn.outvars)
            for var in eqn.invars:
                if isinstance(var, Var):
                    self._uses[var] = self._uses.get(var, 0) + 1
        for var in jaxpr.outvars:
            if isinstance(var, Var):
                self._uses[var] = self._uses.get(var, 0) + 1
        self.fusions = Fusions()
        self._moments()
        for index, eqn in enumerate(jaxpr.eqns):
            match eqn.primitive.name:
                case "add":
                    self._affine(index, eqn)
                case "max" | "custom_jvp_call":
                    self._rectified(index, eqn)
                case "reduce_window_max" | "select_and_scatter_add":
                    self._pool(index, eqn)

    def _maker(self, var: Var | Literal, *primitives: str) -> JaxprEqn | None:
        index = self._made_at.get(var) if isinstance(var, Var) else None
        eqn = self._jaxpr.eqns[index] if index is not None else None
        return eqn if eqn is not None and eqn.primitive.name in primitives else None

    def _drop_if_unused(self, var: Var) -> None:
        if self._uses[var] == 0:
            self.fusions.dropped.add(self._made_at[var])

    # --- batch statistics ---

    def _moments(self) -> None:
        sums: dict[Var, int] = {}
        squares: dict[Var, int] = {}
        for index, eqn in enumerate(self._jaxpr.eqns):
            if eqn.primitive.name != "reduce_sum" or not _large(eqn.invars[0], LEAST_SUMMED):
                continue
            (x,) = eqn.invars
            if tuple(eqn.params["axes"]) != tuple(range(x.aval.ndim - 1)):
                continue
            squared = self._squared(x)
            (sums if squared is None else squares).setdefault(x if squared is None else squared, index)
        for x in sums.keys() & squares.keys():
            indices = sums[x], squares[x]
            total, square = (self._jaxpr.eqns[i] for i in indices)
            first, last = min(indices), max(indices)
            self.fusions.passes[first] = Fusion(
                kind="channel statistics",
                eqn=self._jaxpr.eqns[first],
                fun=moments,
                inputs=[x],
                outputs=[total.outvars[0], square.outvars[0], None, None],
                extremes_of=x,
            )
            self.fusions.dropped.add(last)
            self._uses[square.invars[0]] -= 1
            self._drop_if_unused(square.invars[0])
            self.fusions.witnesses[x] = Witness(of=x)

    def _squared(self, var: Var) -> Var | None:
        eqn = self._maker(var, "square", "integer_pow", "mul")
        if eqn is None or (eqn.primitive.name == "integer_pow" and eqn.params["y"] != 2):
            return None
        same = all(operand is eqn.invars[0] for operand in eqn.invars)
        return eqn.invars[0] if same and isinstance(eqn.invars[0], Var) else None

    # --- affine maps ---

    def _affine(self, index: int, eqn: JaxprEqn) -> None:
        out = eqn.outvars[0]
        if not _large(out, LEAST_SUMMED):
            return
        for x, shift in (eqn.invars, eqn.invars[::-1]):
            if _of_channels(shift, out) and _large(x, LEAST_SUMMED):
                break
        else:
            return
        normalized = self._normalized(x)
        if normalized is None:
            kind, fun, inputs = "bias", shift_channels, (x, shift)
        else:
            kind, fun, inputs = "normalization", normalize_channels, (*normalized, shift)
        self.fusions.passes[index] = Fusion(kind=kind, eqn=eqn, fun=fun, inputs=inputs, outputs=[out])
        if (witness := self.fusions.witnesses.get(inputs[0])) is not None:
            self.fusions.witnesses[out] = witness.then(fun, *inputs[1:])

    def _normalized(self, scaled: Var) -> tuple[Var, Var, Var] | None:
        """x, mean and scale, if this is (x − mean) · scale and nothing else uses it; drops its equations."""
        multiply = self._maker(scaled, "mul")
        if multiply is None or self._uses[scaled] > 1:
            return None
        for centred, scale in (multiply.invars, multiply.invars[::-1]):
            subtract = self._maker(centred, "sub")
            if subtract is None or self._uses[centred] > 1 or not _of_channels(scale, scaled):
                continue
            x, mean = subtract.invars
            if _of_channels(mean, scaled) and _large(x, LEAST_SUMMED):
                self.fusions.dropped.update((self._made_at[scaled], self._made_at[centred]))
                return x, mean, scale
        return None

    # --- rectification ---

    def _rectified(self, index: int, eqn: JaxprEqn) -> None:
        bounded = _lower_bound(eqn)
        if bounded is None:
            return
        x, bound = bounded
        out = eqn.outvars[0]
        if (witness := self.fusions.witnesses.get(x)) is not None:
            self.fusions.witnesses[out] = witness.then(lambda w: jnp.maximum(w, bound))
        if self._uses[x] > 1 or not _large(x, LEAST_SUMMED) or not _is_relu(eqn, self._jaxpr):
            return
        if (normalized := self._normalization(x)) is not None:
            self.fusions.passes[index] = Fusion(
                kind="rectified normalization", eqn=eqn, fun=rectify_normalized,
                inputs=normalized.inputs, outputs=[out],
            )  # fmt: skip
            return
        add = self._maker(x, "add")
        if add is None or add.invars[0].aval.shape != add.invars[1].aval.shape:
            return
        for x, residual in (add.invars, add.invars[::-1]):
            normalized = self._normalization(x)
            if normalized is not None and isinstance(residual, Var):
                added = self._made_at[add.outvars[0]]
                self.fusions.passes.pop(added, None)  # a single row is a bias too
                self.fusions.dropped.add(added)
                self.fusions.passes[index] = Fusion(
                    kind="rectified sum", eqn=eqn, fun=rectify_sum,
                    inputs=[*normalized.inputs, residual], outputs=[out, None, None], extremes_of=out,
                )  # fmt: skip
                self.fusions.witnesses[out] = Witness(of=out)
                return

    def _normalization(self, var: Var | Literal) -> Fusion | None:
        """The normalization that makes this, if nothing else uses it; drops it."""
        index = self._made_at.get(var) if isinstance(var, Var) else None
        found = self.fusions.passes.get(index)
        if found is None or found.fun is not normalize_channels or self._uses[var] > 1:
            return None
        del self.fusions.passes[index]
        self.fusions.dropped.add(index)
        return found

    # --- pooling ---

    def _pool(self, index: int, eqn: JaxprEqn) -> None:
        gradient = eqn.primitive.name == "select_and_scatter_add"
        x = eqn.invars[-1]
        windows = _windows(eqn)
        if windows is None or not _large(x, LEAST_POOLED) or eqn.outvars[0].aval.size == 0:
            return
        fun = max_pool_gradient if gradient else max_pool
        self.fusions.passes[index] = Fusion(
            kind="maximum pooling",
            eqn=eqn,
            fun=lambda *operands: fun(*operands, windows),
            inputs=eqn.invars,
            outputs=eqn.outvars,
        )


def _large(var: Var | Literal, least: int) -> bool:
    """Whether it is a large float32 tensor, of a type that does not say how it is sharded."""
    aval = var.aval
    return (
        isinstance(var, Var)
        and aval.dtype == jnp.float32
        and not aval.weak_type
        and aval.ndim >= 2
        and all(isinstance(size, int) for size in aval.shape)
        and aval.size >= least
        and AxisType.Explicit not in aval.sharding.mesh.axis_types
    )


def _of_channels(var: Var | Literal, x: Var) -> bool:
    """Whether it has one number for each of x's channels."""
    aval, shape = var.aval, x.aval.shape
    return (
        isinstance(var, Var)
        and aval.dtype == jnp.float32
        and aval.shape == (1,) * (len(shape) - 1) + shape[-1:]
    )


def _lower_bound(eqn: JaxprEqn) -> tuple[Var, float] | None:
    """x and c, if the equation is max(x, c) for a number c, such as relu is."""
    if eqn.primitive.name == "max":
        for x, bound in (eqn.invars, eqn.invars[::-1]):
            if isinstance(x, Var) and isinstance(bound, Literal) and bound.aval.shape == ():
                return x, bound.val
        return None
    inside = eqn.params.get("call_jaxpr") or eqn.params.get("jaxpr")
    if inside is None or eqn.primitive.name not in ("custom_jvp_call", "jit"):
        return None
    inside = opened(inside)
    if (
        len(inside.eqns) != 1
        or len(inside.outvars) != 1
        or inside.eqns[0].outvars[0] is not inside.outvars[0]
    ):
        return None
    bounded = _lower_bound(inside.eqns[0])
    if bounded is None or bounded[0] not in inside.invars:
        return None
    outer = eqn.invars[inside.invars.index(bounded[0])]
    return (outer, bounded[1]) if isinstance(outer, Var) else None


def _is_relu(eqn: JaxprEqn, jaxpr: Jaxpr) -> bool:
    """Whether the derivative is known too: that of `jax.nn.relu`, which is 0 at 0."""
    if eqn.primitive.name != "custom_jvp_call" or len(eqn.invars) != 1:
        return False
    alone = jaxpr.replace(constvars=[], invars=eqn.invars, outvars=eqn.outvars, eqns=[eqn])
    rectify = functools.partial(_compat.eval_jaxpr, alone, ())
    try:
        found = _derivative(lambda x: rectify(x)[0], eqn)
    except Exception:  # a rule that has no derivative to give, of which a program may have no need
        return False
    return found == _derivative(jax.nn.relu, eqn)


def _derivative(fun: Callable, eqn: JaxprEqn) -> str:
    with eqn.ctx.manager:
        avals = [eqn.invars[0].aval] * 2
        return str(_compat.trace(lambda x, t: jax.jvp(fun, (x,), (t,))[1], avals, "derivative")[0])


def _windows(eqn: JaxprEqn) -> Windows | None:
    """The windows of a pooling equation of images in NHWC, if the library has a pass for them."""
    x, params = eqn.invars[-1], eqn.params
    if x.aval.ndim != 4 or (
        eqn.primitive.name == "select_and_scatter_add" and params["select_prim"].name != "ge"
    ):
        return None
    sizes, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    dilations = (*(params.get("base_dilation") or ()), *(params.get("window_dilation") or ()))
    if any(d != 1 for d in (*dilations, sizes[0], sizes[3], strides[0], strides[3])):
        return None
    if any(tuple(padding[axis]) != (0, 0) for axis in (0, 3)):
        return None
    windows = Windows(
        sizes=tuple(sizes[1:3]), strides=tuple(strides[1:3]), padding=tuple(tuple(p) for p in padding[1:3])
    )
    return windows if windows.fit(*x.aval.shape[1:3]) else None
