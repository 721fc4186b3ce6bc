"""Finds, in one jaxpr at a time, chains of equations that the library computes in one pass over memory.

- The sum and the sum of squares of each channel of a tensor (batch statistics) are computed together, with
  the least and the greatest value.
- Such a tensor may be normalized, shifted or rectified and then become an operation's left operand. All of
  this is monotonic, so the same steps take the extremes to the operand's extremes. These are its *witness*.
  If the operand has one exponent, it follows from the witness, without a pass over the operand.
- `(x − mean) · scale + shift` and `x + shift`, per channel, have gradients in one pass. So does the former
  with a rectification.
- A rectified sum of a normalized tensor and a residual is one pass, which also gives its extremes. So is that
  of a tensor with a bias and a residual, if it becomes an operand.
- Maximum pooling of images in NHWC, and its gradient.
- What is rectified or pooled, and the gradient by a normalization's or a rectified bias's input, become an
  operand in blocks in the pass that computes them, if an operation takes them.

Large float32 tensors alone gain. Nothing is assumed of a program that does not match: it stays as it is.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from dfpjax import _compat
from dfpjax._symbolic import is_symbolic, nominal
from dfpjax.numbers import Quantizer
from dfpjax.operations.channels import normalize_channels, shift_channels
from dfpjax.operations.moments import measured
from dfpjax.operations.pooling import Windows, max_pool, max_pool_gradient
from dfpjax.operations.rectified import rectify_normalized, rectify_shifted_sum, rectify_sum
from dfpjax.operations.rectified_bias import rectify_shifted
from dfpjax.policy._config import PASSES
from dfpjax.transform._decide import Treatment
from dfpjax.transform._rectification import is_relu, lower_bound

RECTIFICATION, POOLING = "rectification", "pooling"


@dataclass(frozen=True, kw_only=True)
class Least:
    """The least elements of a tensor that gains by a pass."""

    summed: int = 1 << 20
    """For sums of channels: from this size on, XLA reads the tensor from memory."""
    pooled: int = 1 << 15
    """For maximum pooling of a batch of images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusion:
    """One pass in place of one or more equations."""

    kind: str
    """In words, for `explain`."""
    eqn: JaxprEqn
    """The equation that it replaces, whose source it has."""
    fun: Callable
    inputs: Sequence[Var]
    outputs: Sequence[Var | None]
    """The variable of each result of `fun`; None for a result that no equation has."""
    extremes_of: Var | None = None
    """The tensor whose channels' least and greatest values are the last two results, if any."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Witness:
    """How to compute a small tensor that has the largest magnitude of a large one."""

    of: Var
    """The tensor with whose extremes the computation starts."""
    steps: tuple[tuple[Callable, tuple[Var, ...]], ...] = ()
    """The steps applied to the extremes, each a function of them and of a few arrays."""

    def then(self, fun: Callable, *inputs: Var) -> "Witness":
        """One more step."""
        return Witness(of=self.of, steps=(*self.steps, (fun, inputs)))

    @property
    def inputs(self) -> list[Var]:
        """The arrays that the steps take beside the extremes."""
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
    """The fusions of a jaxpr."""

    passes: dict[int, Fusion] = field(default_factory=dict)
    """By the index of the equation at which they are written. Batch statistics, which need only the tensor
    itself, are written earlier if a witness needs them."""
    dropped: set[int] = field(default_factory=set)
    """Indices of the equations that they replace."""
    witnesses: dict[Var, Witness] = field(default_factory=dict)
    produced: dict[Var, str] = field(default_factory=dict)
    """What the passes rectify or pool, and which of both, in words."""
    differentiated: set[Var] = field(default_factory=set)
    """Tensors by which a pass computes the gradient."""

    def witness(self, eqn: JaxprEqn, treatment: Treatment | None) -> Witness | None:
        """The witness of a treated operation's left operand, or None if it has none."""
        lhs = eqn.invars[0]
        if treatment is None or not isinstance(lhs, Var):
            return None
        whole = treatment.quantizers.lhs.granularity == "tensor" and treatment.passes == frozenset(PASSES)
        return self.witnesses.get(lhs) if whole else None

    def operand_from(self, eqn: JaxprEqn, treatment: Treatment | None) -> str | None:
        """What the pass does that also quantizes a treated operation's left operand, or None."""
        in_blocks = treatment is not None and treatment.lhs_in_blocks
        return self.produced.get(eqn.invars[0]) if in_blocks else None

    def gives_cotangent(self, eqn: JaxprEqn, treatment: Treatment | None) -> bool:
        """Whether the pass that computes the gradient by a treated operation's result also quantizes it."""
        in_blocks = treatment is not None and treatment.cotangent_in_blocks
        return in_blocks and eqn.outvars[0] in self.differentiated


def find_fusions(jaxpr: Jaxpr, least: Least, operands: Mapping[Var, Sequence[Quantizer]]) -> Fusions:
    """Find the fusions of a jaxpr, without the jaxprs inside it. `operands` has left operands in blocks, each
    with the quantizers of all treated operations that take it."""
    return _Finder(jaxpr, least, operands).fusions


class _Finder:
    def __init__(self, jaxpr: Jaxpr, least: Least, operands: Mapping[Var, Sequence[Quantizer]]):
        self._jaxpr = jaxpr
        self._operands = operands
        self._least = least
        self._made_at: dict[Var, int] = {}
        self._uses: dict[Var, int] = {}
        # Where the statistics of a tensor are written, and what stands for the tensor from there on.
        self._measured: dict[Var, tuple[int, Var]] = {}
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

    def _operand(self, var: Var) -> Quantizer | None:
        """The quantizer of a treated operation that takes this as its left operand in blocks."""
        return next(iter(self._operands.get(var, ())), None)

    def _drop_if_unused(self, var: Var) -> None:
        if self._uses[var] == 0:
            self.fusions.dropped.add(self._made_at[var])

    # --- batch statistics ---

    def _moments(self) -> None:
        sums: dict[Var, int] = {}
        squares: dict[Var, int] = {}
        for index, eqn in enumerate(self._jaxpr.eqns):
            if eqn.primitive.name != "reduce_sum" or not _large(eqn.invars[0], self._least.summed):
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
                fun=measured,
                inputs=[x],
                outputs=[twin := Var(x.aval), total.outvars[0], square.outvars[0], None, None],
                extremes_of=x,
            )
            self._measured[x] = first, twin
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
        if not _large(out, self._least.summed):
            return
        for x, shift in (eqn.invars, eqn.invars[::-1]):
            if _of_channels(shift, out) and _large(x, self._least.summed):
                break
        else:
            return
        normalized = self._normalized(x)
        if normalized is None:
            kind, fun, inputs = "bias", shift_channels, (x, shift)
        else:
            kind, fun, inputs = "normalization", normalize_channels, (*normalized, shift)
        x, *others = inputs
        measured_at, twin = self._measured.get(x, (index, x))
        if measured_at < index:
            inputs = (twin, *others)
            self.fusions.differentiated.add(x)
        self.fusions.passes[index] = Fusion(kind=kind, eqn=eqn, fun=fun, inputs=inputs, outputs=[out])
        if (witness := self.fusions.witnesses.get(x)) is not None:
            self.fusions.witnesses[out] = witness.then(fun, *others)

    def _normalized(self, scaled: Var) -> tuple[Var, Var, Var] | None:
        """x, mean and scale, if this is (x − mean) · scale and has no other use. Drops its equations then."""
        multiply = self._maker(scaled, "mul")
        if multiply is None or self._uses[scaled] > 1:
            return None
        for centred, scale in (multiply.invars, multiply.invars[::-1]):
            subtract = self._maker(centred, "sub")
            if subtract is None or self._uses[centred] > 1 or not _of_channels(scale, scaled):
                continue
            x, mean = subtract.invars
            if _of_channels(mean, scaled) and _large(x, self._least.summed):
                self.fusions.dropped.update((self._made_at[scaled], self._made_at[centred]))
                return x, mean, scale
        return None

    # --- rectification ---

    def _rectified(self, index: int, eqn: JaxprEqn) -> None:
        if len(eqn.outvars) != 1 or not _large(out := eqn.outvars[0], self._least.summed):
            return
        if (found := lower_bound(eqn, self._jaxpr)) is None:
            return
        x, bound = found.x, found.bound
        if (witness := self.fusions.witnesses.get(x)) is not None:
            self.fusions.witnesses[out] = witness.then(lambda w: jnp.maximum(w, bound))
        if self._uses[x] > 1 or not _large(x, self._least.summed) or not is_relu(eqn, found):
            return
        if (normalized := self._normalization(x)) is not None:
            self.fusions.passes[index] = Fusion(
                kind="rectified normalization", eqn=eqn, fun=rectify_normalized,
                inputs=normalized.inputs, outputs=[out],
            )  # fmt: skip
            self.fusions.produced[out] = RECTIFICATION
            return
        if (operand := self._operand(out)) is not None and (shifted := self._bias(x)) is not None:
            self.fusions.passes[index] = Fusion(
                kind="rectified bias", eqn=eqn,
                fun=functools.partial(rectify_shifted, operand=operand),
                inputs=shifted.inputs, outputs=[out],
            )  # fmt: skip
            self.fusions.produced[out] = RECTIFICATION
            self.fusions.differentiated.add(shifted.inputs[0])
            return
        add = self._maker(x, "add")
        if add is None or add.invars[0].aval.shape != add.invars[1].aval.shape:
            return
        for x, residual in (add.invars, add.invars[::-1]):
            if not isinstance(residual, Var):
                continue
            summed, fun = self._normalization(x), rectify_sum
            if summed is None and self._operand(out) is not None:
                summed, fun = self._bias(x), rectify_shifted_sum
            if summed is not None:
                added = self._made_at[add.outvars[0]]
                self.fusions.passes.pop(added, None)  # a single row is a bias too
                self.fusions.dropped.add(added)
                self.fusions.passes[index] = Fusion(
                    kind="rectified sum", eqn=eqn,
                    fun=functools.partial(fun, operand=self._operand(out)),
                    inputs=[*summed.inputs, residual], outputs=[out, None, None], extremes_of=out,
                )  # fmt: skip
                self.fusions.witnesses[out] = Witness(of=out)
                self.fusions.produced[out] = RECTIFICATION
                return

    def _normalization(self, var: Var | Literal) -> Fusion | None:
        """The normalization that computes this, if it has no other use. Drops it then."""
        return self._taken(var, normalize_channels)

    def _bias(self, var: Var | Literal) -> Fusion | None:
        """The same for an added bias."""
        return self._taken(var, shift_channels)

    def _taken(self, var: Var | Literal, fun: Callable) -> Fusion | None:
        index = self._made_at.get(var) if isinstance(var, Var) else None
        found = self.fusions.passes.get(index)
        if found is None or found.fun is not fun or self._uses[var] > 1:
            return None
        del self.fusions.passes[index]
        self.fusions.dropped.add(index)
        return found

    # --- pooling ---

    def _pool(self, index: int, eqn: JaxprEqn) -> None:
        gradient = eqn.primitive.name == "select_and_scatter_add"
        x = eqn.invars[-1]
        windows = _windows(eqn)
        if windows is None or not _large(x, self._least.pooled) or eqn.outvars[0].aval.size == 0:
            return
        fun = max_pool_gradient if gradient else self._max_pool(eqn.outvars[0])
        self.fusions.passes[index] = Fusion(
            kind="maximum pooling",
            eqn=eqn,
            fun=lambda *operands: fun(*operands, windows),
            inputs=eqn.invars,
            outputs=eqn.outvars,
        )

    def _max_pool(self, out: Var) -> Callable:
        self.fusions.produced[out] = POOLING
        quantizers = self._operands.get(out, ())
        kept = self._uses.get(out, 0) > len(quantizers) or len(set(quantizers)) > 1
        return functools.partial(max_pool, operand=self._operand(out), kept=kept)


def _large(var: Var | Literal, least: int) -> bool:
    """Whether it is a large float32 tensor whose channels its type does not split. Symbolic extents are those
    that they count as."""
    aval = var.aval
    return (
        isinstance(var, Var)
        and aval.dtype == jnp.float32
        and not aval.weak_type
        and aval.ndim >= 2
        and isinstance(aval.shape[-1], int)
        and nominal(aval.size) >= least
        and not _compat.is_unreduced(aval)
        and _compat.partitions(aval.sharding)[-1] is None
    )


def _of_channels(var: Var | Literal, x: Var) -> bool:
    """Whether it has one number for each of x's channels."""
    aval, shape = var.aval, x.aval.shape
    return (
        isinstance(var, Var)
        and aval.dtype == jnp.float32
        and aval.shape == (1,) * (len(shape) - 1) + shape[-1:]
    )


def _windows(eqn: JaxprEqn) -> Windows | None:
    """The windows of a pooling equation on images in NHWC, or None if the library has no pass for them."""
    x, params = eqn.invars[-1], eqn.params
    if x.aval.ndim != 4 or is_symbolic(x.aval.shape[1:]):
        return None
    if eqn.primitive.name == "select_and_scatter_add" and params["select_prim"].name != "ge":
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
