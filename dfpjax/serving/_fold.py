"""`fold_batch_norm`: normalizations by running statistics become part of the products in front of them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _checks
from dfpjax.numbers.format.frozen import is_frozen
from dfpjax.policy import Policy
from dfpjax.policy._layers import argument_paths
from dfpjax.serving._normalizations import Found, find_normalizations, scale_and_shift
from dfpjax.transform._mixed_precision import Program, mixed_precision, running
from dfpjax.transform._trace import Arguments, Traced, arrays_of, trace

_NOT_INFERENCE = (
    "fold the program of inference, in which running statistics are used and nothing changes: "
    "use_running_average=True in Flax (for most models train=False, or model.eval() of flax.nnx)"
)


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """How far a program's results are from those of the float32 program before folding."""

    largest: float
    """The largest difference."""
    relative: float
    """The norm of the difference by the norm of the results."""

    def __str__(self) -> str:
        return f"at most {self.largest:.2e}, relative {self.relative:.2e}"


@dataclass(frozen=True, kw_only=True)
class FoldReport:
    """What `fold_batch_norm` did; `print` shows it."""

    folded: tuple[tuple[str, str], ...]
    """For each normalization the path of the kernel that is scaled now, and of the array that holds the
    shift."""
    kept: tuple[tuple[str, str], ...]
    """The other products by variables, and why each stays as it is."""
    float32: OutputError | None
    """The folded program in float32; None where an argument has no numbers."""
    dfp16: OutputError | None
    """The folded program under `dfpjax.mixed_precision`."""
    dfp16_before: OutputError | None
    """The program before folding under `dfpjax.mixed_precision`, for comparison."""

    def __str__(self) -> str:
        lines = [f"folded into {kernel}, shift in {shift}" for kernel, shift in self.folded]
        lines += [f"kept {name}: {why}" for name, why in self.kept]
        errors = {
            "float32, folded": self.float32,
            "DFP16, folded": self.dfp16,
            "DFP16, not folded": self.dfp16_before,
        }
        return "\n".join(lines + [f"{name}: {error}" for name, error in errors.items() if error is not None])


class FoldedBatchNorm(NamedTuple):
    """What `fold_batch_norm` returns."""

    fun: Callable
    """The program without the normalizations, with the arguments of the function that was folded."""
    variables: Any
    """The variables for `fun`, in the structure that they had."""
    report: FoldReport


def fold_batch_norm(
    fun: Callable, variables: Any, *args: Any, policy: Policy | None = None, **kwargs: Any
) -> FoldedBatchNorm:
    """Fold the batch normalizations of an inference program into its convolutions and dot products.

        folded, variables, report = dfpjax.fold_batch_norm(apply, variables, x)
        y = jax.jit(dfpjax.mixed_precision(folded))(variables, x)

    A normalization by running statistics is y · scale + shift, with two numbers for each channel. If the
    product in front of it has no other reader, its kernel takes the scale, and the product is left with one
    addition, that of the shift. This changes float32 results by rounding alone, and DFP16 results by that of
    the scaled kernels; the report says by how much. Scales and shifts are computed in float64.

    The chain is found in the program itself, whatever library wrote it, in jitted functions too. It consists
    of additions, subtractions, multiplications and divisions whose other operand is computed from the
    variables alone and has one number for each channel, among them a product's bias. Products inside of
    loops, branches and `jax.checkpoint` stay.

    Arguments:
        fun: the function of variables and other arguments that computes in inference.
        variables: its first argument, a pytree of arrays. `flax.nnx`: the state that `nnx.split` gives, for a
            `fun` that merges it. To serve frozen weights, fold first and then `dfpjax.freeze`.
        *args, **kwargs: the other arguments; a `jax.ShapeDtypeStruct` may replace an array, and then no error
            is measured.
        policy: that of `mixed_precision`, for the error in DFP16.

    Returns:
        `fun`, `variables` and `report`. The new function takes arguments of other shapes, too, and works
        under every transformation, but only on these variables: kernels are scaled, shifts have taken the
        place of biases, and what nothing reads any more is NaN.

    Raises:
        TypeError: if `fun` is not callable, `policy` is not a `Policy`, or the variables are frozen or not
            concrete.
        ValueError: if there is nothing to fold, or the program normalizes by the statistics of the batch. The
            new function raises it if its program has other normalizations.
    """
    _checks.function_of_arrays("fold_batch_norm", "fun", fun)
    policy = Policy() if policy is None else policy
    _checks.instance("fold_batch_norm", "policy", policy, Policy, "a dfpjax.Policy")
    _require_concrete(variables)
    program = _program(fun, Arguments.of((variables, *args), kwargs))
    if not program.found.normalizations:
        raise ValueError(_nothing(program))
    run = running(fun, functools.partial(_folded_call, fun, program.layout))
    folded = _folded_variables(program, variables)
    errors: dict[str, OutputError | None] = dict.fromkeys(("float32", "dfp16", "dfp16_before"))
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((args, kwargs))):
        exact = fun(variables, *args, **kwargs)
        in_dfp16 = functools.partial(mixed_precision, policy=policy)
        errors = {
            "float32": _error(run(folded, *args, **kwargs), exact),
            "dfp16": _error(in_dfp16(run)(folded, *args, **kwargs), exact),
            "dfp16_before": _error(in_dfp16(fun)(variables, *args, **kwargs), exact),
        }
    report = FoldReport(folded=program.layout, kept=program.kept, **errors)
    return FoldedBatchNorm(run, folded, report)


class _Program(NamedTuple):
    """A traced call, and the normalizations in it."""

    traced: Traced
    found: Found
    names: Sequence[str]
    """The variables' paths."""

    @property
    def layout(self) -> tuple[tuple[str, str], ...]:
        """Where scales and shifts are."""
        return tuple(
            (self.names[found.kernel], self.names[found.carrier]) for found in self.found.normalizations
        )

    @property
    def kept(self) -> tuple[tuple[str, str], ...]:
        return tuple((self.name(at), why) for at, why in self.found.kept)

    def name(self, at: int | str) -> str:
        return self.names[at] if isinstance(at, int) else at


def _program(fun: Callable, arguments: Arguments) -> _Program:
    traced = trace(fun, arguments)
    if traced.updated or traced.lost:
        changed = traced.lost or tuple(jax.tree_util.keystr(path[2:]) for path in traced.updated)
        raise ValueError(f"fold_batch_norm: fun changes its arguments ({changed[0]}); {_NOT_INFERENCE}")
    inputs = iter(traced.jaxpr.jaxpr.invars)
    variables, names = {}, []
    paths = argument_paths(fun, arguments.paths)
    for path, name, leaf in zip(arguments.paths, paths, arguments.leaves, strict=True):
        is_variable = (path[0].idx, path[1]) == (0, jax.tree_util.SequenceKey(0))
        for _ in arrays_of(leaf):
            v = next(inputs)
            if is_variable:
                variables[v] = len(names)
        names += [name] * is_variable
    program = _Program(traced, find_normalizations(traced.jaxpr, variables), names)
    if program.found.by_batch:
        layer = program.name(program.found.by_batch[0])
        raise ValueError(
            f"fold_batch_norm: the result of {layer} is normalized by the statistics of the batch, which no "
            f"kernel can hold; {_NOT_INFERENCE}"
        )
    return program


def _nothing(program: _Program) -> str:
    reasons = "; ".join(f"{name}: {why}" for name, why in program.kept[:5])
    reasons = reasons or "it multiplies by no variables outside of loops, branches and jax.checkpoint"
    return (
        f"fold_batch_norm: there is nothing to fold in fun ({reasons}). Only normalizations by running "
        "statistics that directly follow a convolution or dot product can be folded; use fun and its "
        "variables as they are"
    )


def _folded_call(fun: Callable, layout: tuple, arguments: Arguments) -> Program:
    program = _program(fun, arguments)
    if program.layout != layout:
        found = "; ".join(kernel for kernel, _ in set(program.layout) ^ set(layout))
        raise ValueError(
            "fold_batch_norm: with these arguments the function has other normalizations than the one that "
            f"was folded ({found}); fold it with such arguments"
        )
    jaxpr = program.traced.jaxpr.replace(jaxpr=program.found.folded())
    return Program(traced=program.traced, jaxpr=jaxpr)


def _require_concrete(variables: Any) -> None:
    for leaf in jax.tree.leaves(variables, is_leaf=is_frozen):
        if is_frozen(leaf):
            raise TypeError(
                "fold_batch_norm: variables must be float32 arrays, got a frozen one; fold first, then freeze"
            )
        if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
            raise TypeError(
                f"fold_batch_norm: variables must have numbers, got {_checks.described(leaf)}; fold outside "
                "of jax.jit"
            )


def _folded_variables(program: _Program, variables: Any) -> Any:
    leaves, tree = jax.tree.flatten(variables)
    found = program.found
    known = found.known(program.traced.jaxpr.consts, dict(enumerate(leaves)))
    new = {
        index: np.full(leaves[index].shape, np.nan)
        for index in found.unread()
        if jnp.issubdtype(leaves[index].dtype, jnp.floating)
    }
    for normalization in found.normalizations:
        scale, shift = scale_and_shift(normalization, known)
        kernel = np.asarray(leaves[normalization.kernel]).astype(np.float64)
        axis = normalization.kernel_axis
        along = tuple(-1 if i == axis else 1 for i in range(kernel.ndim))
        new[normalization.kernel] = kernel * scale.reshape(along)
        new[normalization.carrier] = shift.reshape(leaves[normalization.carrier].shape)
    for index, values in new.items():
        leaves[index] = _like(leaves[index], values)
    return jax.tree.unflatten(tree, leaves)


def _like(leaf: Any, values: np.ndarray) -> Any:
    """The values in a leaf's dtype, and where it is."""
    values = values.astype(leaf.dtype)
    return jax.device_put(values, leaf.sharding) if isinstance(leaf, jax.Array) else values


def _error(found: Any, exact: Any) -> OutputError:
    def numbers(tree) -> np.ndarray:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
        floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return np.concatenate([np.zeros(0), *(leaf.astype(np.float64).ravel() for leaf in floats)])

    of_exact = numbers(exact)
    difference = np.abs(numbers(found) - of_exact)
    norm = float(np.linalg.norm(of_exact))
    error = float(np.linalg.norm(difference))
    return OutputError(
        largest=float(difference.max(initial=0)), relative=error / norm if norm else float(error > 0)
    )
