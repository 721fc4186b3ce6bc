"""`mixed_precision`: the transformation of a function."""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar, get_args, overload

import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.extend.source_info_util import new_name_stack

from dfpjax import _checks, _compat
from dfpjax.numbers.format.explicit import explicit_axes
from dfpjax.numbers.format.frozen import is_frozen
from dfpjax.operations.primitives import Backend
from dfpjax.policy._layers import argument_paths
from dfpjax.policy._policy import Policy
from dfpjax.transform._cache import BoundedCache
from dfpjax.transform._decide import decide, require_matches, require_untrained
from dfpjax.transform._hoist import hoisted
from dfpjax.transform._rewrite import Rewriter
from dfpjax.transform._sink import sunk
from dfpjax.transform._survey import Body, Scope, survey
from dfpjax.transform._trace import Arguments, Traced, arrays_of, is_array, trace

P = ParamSpec("P")
R = TypeVar("R")

PROGRAMS_KEPT = 128
"""The most traced programs that a transformed function keeps, one per combination of types and static
arguments."""


@overload
def mixed_precision(
    fun: Callable[P, R], policy: Policy | None = None, *, backend: Backend = "auto"
) -> Callable[P, R]: ...


@overload
def mixed_precision(
    fun: None = None, policy: Policy | None = None, *, backend: Backend = "auto"
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def mixed_precision(
    fun: Callable | None = None, policy: Policy | None = None, *, backend: Backend = "auto"
) -> Callable:
    """Transform a function so that its convolutions and dot products run in dynamic fixed point.

    The transformed function takes `fun`'s arguments and returns `fun`'s results: nothing is added to a
    parameter tree, and float32 values stay float32. It works under every JAX transformation. `jax.grad` of it
    computes the gradients with respect to operands and weights in dynamic fixed point, too. `dfpjax.explain`
    says what happens to each operation, and why.

    `fun` is traced as by `jax.jit`: arrays among its arguments are tracers inside it, it should have no side
    effects, and arrays that it closes over are constants from its first call on. Unlike under `jax.jit`, all
    other arguments (strings, None, functions, Python numbers and bools) reach `fun` unchanged, and so do such
    results the caller. `fun` is traced again only for arguments of another structure, shape or dtype, or for
    other static values, so pass a number that changes at every step as an array. Threads may share the
    transformed function.

    Primitives that cannot be entered stay unchanged, and `dfpjax.explain` lists them as opaque: callbacks,
    Pallas, and primitives that keep functions among static data, such as Lineax's `linear_solve`.

    Usable as a decorator, `@dfpjax.mixed_precision` and `@dfpjax.mixed_precision(policy=...)`.

    Arguments:
        fun: a function of pytrees that JAX can trace, such as a Flax model's `apply`.
        policy: which operations run in dynamic fixed point, and how. The default takes every convolution and
            dot product of float32, bfloat16 or float16 operands that sums at least two products and that the
            cost rule expects to gain, unless its `precision`, or `jax.default_matmul_precision` in its place,
            is `HIGHEST` or as exact. What computes in float64 stays, too;
            `OpConfig(override_precision=True)` takes both. The cost rule looks at the shapes in `fun` alone;
            under `vmap` of the transformed function these are the shapes of one example. Symbolic extents
            (`jax.export`) count as large, each variable as 128.
            `OpConfig(force=True)` skips it.
        backend: "auto" for the native kernels where the platform has them, "reference" for the same
            arithmetic in plain JAX: the same bits, but slow.

    Returns:
        The transformed function. Called, it raises what `fun` raises, and a `ValueError` if the policy is
        strict and one of its rules matches nothing. Variables of a `flax.nnx` module among the arguments,
        such as batch statistics and counts of random numbers, change as `fun` changes them. Any other change
        of an object among the arguments would be lost, and is a `ValueError` unless `fun` returns it: a new
        attribute of a module, a variable that stands in the arguments twice, an object of another library.

    Raises:
        TypeError: if `fun` is not callable or `policy` is not a `Policy`.
        ValueError: if `backend` is not one of these names.
    """
    if isinstance(fun, Policy):
        raise TypeError("mixed_precision: the policy goes second, as in mixed_precision(fun, policy)")
    if policy is not None:
        _checks.instance("mixed_precision", "policy", policy, Policy, "a dfpjax.Policy")
    _checks.choice("mixed_precision", "backend", backend, get_args(Backend))
    if fun is None:
        return functools.partial(mixed_precision, policy=policy, backend=backend)
    _checks.function_of_arrays("mixed_precision", "fun", fun)
    policy = Policy() if policy is None else policy
    return running(fun, lambda arguments: rewritten_call(fun, arguments, policy, backend))


@dataclass(frozen=True, kw_only=True)
class Program:
    """A function traced for some arguments, and rewritten."""

    traced: Traced
    jaxpr: ClosedJaxpr

    def run(self, args: tuple, kwargs: dict, arrays: Sequence[Any]) -> Any:
        """The result of a call, given its arguments and the arrays among them. Changes the variables of
        `flax.nnx` modules among the arguments as the function does."""
        evaluate = self._jitted if _are_on_unset_mesh(arrays) else self._evaluate
        outputs = evaluate(*arrays)
        self.traced.update(args, kwargs, outputs)
        return self.results(outputs)

    def results(self, arrays: Sequence[Any]) -> Any:
        """The result of a call, given the jaxpr's outputs."""
        return self.traced.results(arrays)

    def _evaluate(self, *arrays):
        return _compat.eval_jaxpr(self.jaxpr.jaxpr, self.jaxpr.consts, *arrays)

    @functools.cached_property
    def _jitted(self) -> Callable:
        return jax.jit(self._evaluate)

    def is_closed(self) -> bool:
        """Whether it may be used again: it closes over no tracer, which would differ in the next call."""
        return not any(isinstance(const, Tracer) for const in self.jaxpr.consts)


def _are_on_unset_mesh(arrays: Sequence[Any]) -> bool:
    """Whether arrays are explicitly sharded over a mesh that is not set.

    The program must then run under `jit`. An equation without operands, such as one that makes zeros, has an
    explicit sharding too, and JAX does not know its devices when it evaluates equation by equation.
    """
    is_set = not jax.sharding.get_abstract_mesh().empty
    return not is_set and any(explicit_axes(jax.typeof(x).sharding.mesh) for x in arrays)


def running(fun: Callable, make: Callable[[Arguments], Program]) -> Callable:
    """The function with `fun`'s arguments that makes a program for them, or takes one made before, and runs
    it."""
    programs: BoundedCache[Program] = BoundedCache(PROGRAMS_KEPT)

    @functools.wraps(fun)
    def transformed(*args, **kwargs):
        arguments = Arguments.of(args, kwargs)
        key = _key(arguments.leaves, arguments.tree)
        if key is None:
            program = make(arguments)
        else:
            program = programs.get_or_make(key, lambda: make(arguments), Program.is_closed)
        return program.run(args, kwargs, arguments.arrays)

    return transformed


def survey_call(fun: Callable, arguments: Arguments) -> tuple[Traced, Body]:
    """Trace a call and find its convolutions and dot products."""
    traced = trace(fun, arguments)
    jaxpr = sunk(traced.jaxpr.jaxpr)
    if jaxpr is not traced.jaxpr.jaxpr:
        traced = replace(traced, jaxpr=traced.jaxpr.replace(jaxpr=jaxpr))
    return traced, survey_jaxpr(jaxpr, fun, arguments)


def prepared_call(fun: Callable, arguments: Arguments, policy: Policy) -> tuple[Traced, Body]:
    """Trace a call, move products out of its loops if the policy fuses, and find what is left where."""
    traced, body = survey_call(fun, arguments)
    if not policy.fuse or policy.keeps_float32:
        return traced, body
    bound = body.bind(policy)
    moving = {id(site.eqn) for site in body.sites() if decide(site, bound).treatment is not None}
    jaxpr = hoisted(traced.jaxpr.jaxpr, lambda eqn: id(eqn) in moving)
    if jaxpr is traced.jaxpr.jaxpr:
        return traced, body
    traced = replace(traced, jaxpr=traced.jaxpr.replace(jaxpr=jaxpr))
    return traced, survey_jaxpr(jaxpr, fun, arguments)


def survey_jaxpr(jaxpr: Jaxpr, fun: Callable, arguments: Arguments) -> Body:
    """Find the convolutions and dot products of a call that is given as a jaxpr."""
    named = zip(argument_paths(fun, arguments.paths), arguments.leaves, strict=True)
    return survey(
        jaxpr, [name for name, leaf in named for _ in arrays_of(leaf)], Scope(stack=new_name_stack())
    )


def rewritten_call(fun: Callable, arguments: Arguments, policy: Policy, backend: Backend) -> Program:
    """Trace a call and rewrite it."""
    return rewritten(fun, *prepared_call(fun, arguments, policy), policy, backend)


def rewritten(fun: Callable, traced: Traced, body: Body, policy: Policy, backend: Backend) -> Program:
    """Rewrite a call that has been traced and surveyed."""
    if traced.lost:
        raise ValueError(_lost_changes(fun, traced.lost))
    bound = body.bind(policy)
    require_matches(body.sites(), bound)
    require_untrained(body.sites(), bound)
    jaxpr = Rewriter(bound, backend).rewrite(body)
    return Program(traced=traced, jaxpr=traced.jaxpr.replace(jaxpr=jaxpr))


_LISTED = 5


def _lost_changes(fun: Callable, changed: Sequence[str]) -> str:
    name = getattr(fun, "__name__", type(fun).__name__)
    more = f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
    return (
        f"mixed_precision: {name} changes what an object among its arguments holds "
        f"({', '.join(changed[:_LISTED])}{more}). It works on a copy, as under jax.jit, and the change would "
        "be lost. Have it return what changes; for what is new in a flax.nnx module: nnx.split it, nnx.merge "
        "it inside of the function, and return its new nnx.state."
    )


def _key(leaves: Sequence[Any], in_tree) -> Hashable | None:
    """Everything that tracing depends on, or None if a static argument is not hashable: then every call
    traces `fun` anew."""
    key = (in_tree, tuple(map(_leaf_key, leaves)), _compat.trace_context())
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _leaf_key(leaf: Any) -> Hashable:
    if is_frozen(leaf):
        return leaf.form, tuple(map(jax.typeof, leaf.arrays))
    if is_array(leaf):
        return jax.typeof(leaf)
    # 1, 1.0 and True are equal, as are 0.0 and -0.0, and NaN differs from itself.
    return type(leaf), repr(leaf) if isinstance(leaf, float | complex) else leaf
