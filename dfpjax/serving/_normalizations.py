"""Normalizations by known numbers behind convolutions and dot products: where they are, and programs without
them.

Such a normalization is a chain of additions and multiplications that a product's result passes through alone.
The other operands are computed from the program's variables, with one number for each of the product's
channels. The chain is y · scale + shift, so the product with a scaled kernel, and one addition, replace it.
The shift takes the place of one of the arrays of variables that only the chain reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.source_info_util import new_name_stack

from dfpjax import _compat
from dfpjax.policy._layers import layer_name
from dfpjax.transform._contractions import CONTRACTIONS
from dfpjax.transform._hoist import with_own_results
from dfpjax.transform._replace import renamed, without_constants
from dfpjax.transform._subjaxprs import opened, sub_jaxprs

_ARITHMETIC = frozenset({"add", "sub", "mul", "div"})
_SAME_ARRAY = frozenset({"convert_element_type", "copy", "copy_p", "dfp_thaw"})
"""Primitives whose result stands for an array of the variables."""

# Why a product stays as it is.
_NOTHING_FOLLOWS = "no normalization follows"
_SEVERAL_READERS = "more than a normalization reads its result"
_SHARED_KERNEL = "its kernel is not an array of the variables that it alone reads"
_NO_CARRIER = "no array of the variables with a number for each channel is read by the normalization alone"

Atom = Var | Literal


@dataclass(frozen=True, kw_only=True)
class Step:
    """An equation of a chain: the running value and a known one, combined."""

    eqn: JaxprEqn
    known: Atom
    reflected: bool
    """Whether the known value comes first."""

    def apply(self, scale: np.ndarray, shift: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """y · scale + shift after this step."""
        match self.eqn.primitive.name:
            case "add":
                return scale, shift + known
            case "sub" if self.reflected:
                return -scale, known - shift
            case "sub":
                return scale, shift - known
            case "mul":
                return scale * known, shift * known
        return scale / known, shift / known


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalization:
    """A chain behind a product. Arrays of the variables are given by their index."""

    product: JaxprEqn
    kernel: int
    kernel_axis: int
    """The kernel's axis of channels."""
    out_axis: int
    """The result's."""
    steps: tuple[Step, ...]
    carrier: int
    """The array that takes the shift."""

    @property
    def arrays(self) -> tuple[int, int]:
        return self.kernel, self.carrier

    @property
    def channels(self) -> int:
        return self.product.outvars[0].aval.shape[self.out_axis]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What there is in a program."""

    jaxpr: Jaxpr
    variables: Mapping[Var, int]
    """The program's inputs that are variables, and the index of each."""
    normalizations: tuple[Normalization, ...]
    kept: tuple[tuple[int | str, str], ...]
    """Other products by variables: the kernel's index, or the layer's name, and why it stays."""
    by_batch: tuple[int | str, ...]
    """Products whose results are normalized by the statistics of a batch."""

    def folded(self) -> Jaxpr:
        """The program of scaled kernels and shifts, without the normalizations."""
        inputs = {index: v for v, index in self.variables.items()}
        steps: dict[int, list[JaxprEqn]] = {}
        for found in self.normalizations:
            steps |= {id(step.eqn): [] for step in found.steps}
            steps[id(found.steps[-1].eqn)] = _addition(found, inputs[found.carrier])
        eqns = [new for eqn in self.jaxpr.eqns for new in steps.get(id(eqn), [eqn])]
        return self.jaxpr.replace(eqns=_needed(eqns, self.jaxpr.outvars)[0])

    def unread(self) -> frozenset[int]:
        """The variables that the folded program does not read, and the program does."""
        before, after = (_needed(jaxpr.eqns, jaxpr.outvars)[1] for jaxpr in (self.jaxpr, self.folded()))
        return frozenset(index for v, index in self.variables.items() if v in before and v not in after)

    def known(self, consts: Sequence[Any], arrays: Mapping[int, Any]) -> dict[Var, Any]:
        """The known values in all chains, given the program's constants and the variables."""
        steps = (step for found in self.normalizations for step in found.steps)
        wanted = list(dict.fromkeys(step.known for step in steps if isinstance(step.known, Var)))
        eqns, _ = _needed(self.jaxpr.eqns, wanted)
        inputs = list(self.variables)
        part = self.jaxpr.replace(
            eqns=eqns, invars=inputs, outvars=wanted, debug_info=_compat.nameless_debug_info("known")
        )
        values = _compat.eval_jaxpr(part, consts, *(arrays[self.variables[v]] for v in inputs))
        return dict(zip(wanted, values, strict=True))


def find_normalizations(jaxpr: ClosedJaxpr, variables: Mapping[Var, int]) -> Found:
    """Find the normalizations of a program, jitted functions in it included.

    Arguments:
        jaxpr: the program.
        variables: those of its inputs that are variables, with an index each.
    """
    program = _entered(jaxpr.jaxpr)
    return _Search(program, variables).found()


def _entered(jaxpr: Jaxpr) -> Jaxpr:
    """A program with the equations of jitted functions that hold products in place of their calls."""
    eqns: list[JaxprEqn] = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name != "jit" or not _has_products(opened(eqn.params["jaxpr"])):
            eqns.append(eqn)
            continue
        inner = eqn.params["jaxpr"]

        def call(*operands, inner=inner):
            return _compat.eval_jaxpr(inner.jaxpr, inner.consts, *operands)

        # Traced anew, since a function that is called twice has the same variables in both calls.
        with eqn.ctx.manager:
            own = _entered(with_own_results(call, [v.aval for v in eqn.invars]))
        names = zip((*own.invars, *own.outvars), (*eqn.invars, *eqn.outvars), strict=True)
        eqns += renamed(own, eqn, dict(names))
    return jaxpr.replace(eqns=eqns)


def _has_products(jaxpr: Jaxpr) -> bool:
    return any(
        eqn.primitive.name in CONTRACTIONS or any(_has_products(opened(sub.jaxpr)) for sub in sub_jaxprs(eqn))
        for eqn in jaxpr.eqns
    )


class _Search:
    """The search in one program."""

    def __init__(self, jaxpr: Jaxpr, variables: Mapping[Var, int]):
        self._jaxpr = jaxpr
        self._variables = variables
        # The variables that each known value is computed from.
        self._sources: dict[Var, frozenset[int]] = {v: frozenset([index]) for v, index in variables.items()}
        self._sources |= dict.fromkeys(jaxpr.constvars, frozenset())
        self._made_by: dict[Var, JaxprEqn] = {}
        self._readers: dict[Var, list[JaxprEqn | None]] = {}
        for eqn in jaxpr.eqns:
            self._made_by |= dict.fromkeys(eqn.outvars, eqn)
            if not eqn.effects and all(self._is_known(v) for v in eqn.invars):
                sources = frozenset().union(*map(self._sources_of, eqn.invars))
                self._sources |= dict.fromkeys(eqn.outvars, sources)
            for v in eqn.invars:
                if isinstance(v, Var):
                    self._readers.setdefault(v, []).append(eqn)
        for v in jaxpr.outvars:
            if isinstance(v, Var):
                self._readers.setdefault(v, []).append(None)

    def found(self) -> Found:
        normalizations, kept, by_batch = [], [], []
        taken: set[int] = set()  # arrays that are changed
        for eqn in self._jaxpr.eqns:
            if eqn.primitive.name not in CONTRACTIONS or (axes := self._channel_axes(eqn)) is None:
                continue
            operand, kernel_axis, out_axis = axes
            kernel = self._array(eqn.invars[operand])
            name = kernel if kernel is not None else layer_name(new_name_stack() + eqn.source_info.name_stack)
            steps, end = self._chain(eqn, out_axis)
            if self._has_batch_statistics(end, out_axis):
                by_batch.append(name)
            elif not steps:
                several = len(self._readers.get(end, [])) > 1
                kept.append((name, _SEVERAL_READERS if several else _NOTHING_FOLLOWS))
            elif kernel is None or kernel in taken:
                kept.append((name, _SHARED_KERNEL))
            elif (carrier := self._carrier(steps, eqn.outvars[0].aval.shape[out_axis])) is None:
                kept.append((name, _NO_CARRIER))
            else:
                taken |= {kernel, carrier}
                normalizations.append(
                    Normalization(
                        product=eqn,
                        kernel=kernel,
                        kernel_axis=kernel_axis,
                        out_axis=out_axis,
                        steps=tuple(steps),
                        carrier=carrier,
                    )
                )
        return Found(
            jaxpr=self._jaxpr,
            variables=self._variables,
            normalizations=tuple(normalizations),
            kept=tuple(kept),
            by_batch=tuple(by_batch),
        )

    def _is_known(self, v: Atom) -> bool:
        return isinstance(v, Literal) or v in self._sources

    def _sources_of(self, v: Atom) -> frozenset[int]:
        return self._sources[v] if isinstance(v, Var) else frozenset()

    def _channel_axes(self, eqn: JaxprEqn) -> tuple[int, int, int] | None:
        """Of a product by a known kernel: which operand it is, its axis of channels, and the result's."""
        known = [self._is_known(v) for v in eqn.invars]
        if known == [False, True] and eqn.primitive.name == "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            return 1, numbers.rhs_spec[0], numbers.out_spec[1]
        if sum(known) != 1 or eqn.primitive.name != "dot_general":
            return None
        contracting, batch = eqn.params["dimension_numbers"]
        operand = known.index(True)
        bound = (*contracting[operand], *batch[operand])
        free = [axis for axis in range(eqn.invars[operand].aval.ndim) if axis not in bound]
        if batch[operand] or len(free) != 1:
            return None
        return operand, free[0], eqn.outvars[0].aval.ndim - 1 if operand else 0

    def _array(self, v: Atom) -> int | None:
        """The array of the variables that a product reads as its kernel, if nothing else reads it."""
        while isinstance(v, Var) and len(self._readers[v]) == 1:
            if v in self._variables:
                return self._variables[v]
            eqn = self._made_by.get(v)
            if eqn is None or eqn.primitive.name not in _SAME_ARRAY:
                return None
            v = eqn.invars[0]
        return None

    def _chain(self, product: JaxprEqn, axis: int) -> tuple[list[Step], Var]:
        """The steps up to the last one that is arithmetic, and the value behind all steps. No steps if none
        scales by variables."""
        steps: list[Step] = []
        v, scales = product.outvars[0], False
        while (eqn := self._only_reader(v)) is not None:
            if eqn.primitive.name in _ARITHMETIC:
                step = self._step(eqn, v, axis)
                if step is None:
                    break
                steps.append(step)
                scales |= eqn.primitive.name in ("mul", "div") and bool(self._sources_of(step.known))
            elif eqn.primitive.name != "convert_element_type" or not _is_float(eqn.outvars[0]):
                break
            v = eqn.outvars[0]
        return (steps if scales else []), v

    def _only_reader(self, v: Var) -> JaxprEqn | None:
        readers = self._readers.get(v, [])
        return readers[0] if len(readers) == 1 else None

    def _step(self, eqn: JaxprEqn, v: Var, axis: int) -> Step | None:
        reflected = eqn.invars[0] is not v
        known = eqn.invars[0 if reflected else 1]
        if not self._is_known(known) or (reflected and eqn.primitive.name == "div"):
            return None
        shape = known.aval.shape
        if any(size > 1 for i, size in enumerate(shape) if i != axis):
            return None
        return Step(eqn=eqn, known=known, reflected=reflected)

    def _carrier(self, steps: Sequence[Step], channels: int) -> int | None:
        """An array that only the chain reads, with a number for each channel: if possible the last one that
        is added."""
        removed = {id(step.eqn) for step in steps}
        rest = [eqn for eqn in self._jaxpr.eqns if id(eqn) not in removed]
        start = steps[0].eqn.invars[1 if steps[0].reflected else 0]
        _, read_elsewhere = _needed(rest, [*self._jaxpr.outvars, start])
        own = {
            index
            for v, index in self._variables.items()
            if v not in read_elsewhere and v.aval.size == channels and _is_float(v)
        }
        added_last = sorted(reversed(steps), key=lambda step: step.eqn.primitive.name in ("mul", "div"))
        for step in added_last:
            for index in sorted(self._sources_of(step.known) & own):
                return index
        return None

    def _has_batch_statistics(self, v: Var, axis: int) -> bool:
        """Whether a value of several uses is summed over all axes but the channels'."""
        readers = self._readers.get(v, [])
        others = tuple(i for i in range(v.aval.ndim) if i != axis)
        return len(readers) > 1 and any(
            eqn is not None and eqn.primitive.name == "reduce_sum" and tuple(eqn.params["axes"]) == others
            for eqn in readers
        )


def _is_float(v: Var) -> bool:
    return jax.numpy.issubdtype(v.aval.dtype, jax.numpy.floating)


def _needed(eqns: Sequence[JaxprEqn], results: Sequence[Atom]) -> tuple[list[JaxprEqn], set[Var]]:
    """The equations on which results and effects depend, and the values that these read."""
    needed = {v for v in results if isinstance(v, Var)}
    kept = []
    for eqn in reversed(eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            kept.append(eqn)
            needed.update(v for v in eqn.invars if isinstance(v, Var))
    return kept[::-1], needed


def _addition(found: Normalization, carrier: Var) -> list[JaxprEqn]:
    """The equations that add the shift to a product's result, in place of the chain."""
    (product,), (result,) = found.product.outvars, found.steps[-1].eqn.outvars
    shape = [1] * product.aval.ndim
    shape[found.out_axis] = found.channels

    def add(y, shift):
        y = lax.convert_element_type(y, result.aval.dtype)
        return y + lax.convert_element_type(shift, result.aval.dtype).reshape(shape)

    eqn = found.product  # the addition counts as the product's bias
    with eqn.ctx.manager:
        jaxpr = without_constants(add, [product.aval, carrier.aval], "shift")
    inputs = zip(jaxpr.invars, (product, carrier), strict=True)
    return renamed(jaxpr, eqn, {**dict(inputs), jaxpr.outvars[0]: result})


def scale_and_shift(found: Normalization, known: Mapping[Var, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The chain as float64[channels] each, computed in float64 from the program's own known values."""
    scale, shift = np.ones(1), np.zeros(1)
    for step in found.steps:
        value = step.known.val if isinstance(step.known, Literal) else known[step.known]
        value = np.asarray(value).astype(np.float64).reshape(-1)
        scale, shift = step.apply(scale, shift, value)
    return tuple(np.broadcast_to(x, (found.channels,)) for x in (scale, shift))
