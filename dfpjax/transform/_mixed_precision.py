"""`mixed_precision`: the transformation of a function."""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, get_args, overload

import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.extend.source_info_util import new_name_stack

from dfpjax import _checks, _compat
from dfpjax.numbers.format.explicit import explicit_axes
from dfpjax.operations.primitives import Backend
from dfpjax.policy._layers import argument_paths
from dfpjax.policy._policy import Policy
from dfpjax.transform._cache import BoundedCache
from dfpjax.transform._decide import require_matches
from dfpjax.transform._rewrite import Rewriter
from dfpjax.transform._survey import Body, Scope, survey
from dfpjax.transform._trace import Arguments, Traced, is_array, trace

PROGRAMS_KEPT = 128
"""Traced programs that a transformed function keeps: one per combination of types and static arguments."""


@overload
def mixed_precision(
    fun: Callable, policy: Policy | None = None, *, backend: Backend = "auto"
) -> Callable: ...


@overload
def mixed_precision(
    fun: None = None, policy: Policy | None = None, *, backend: Backend = "auto"
) -> Callable[[Callable], Callable]: ...


def mixed_precision(fun=None, policy=None, *, backend="auto"):
    """Transform a function so that its convolutions and dot products run in dynamic fixed point.

    The result is called as `fun` is and gives what `fun` gives, from `fun`'s own arguments: nothing is added
    to a parameter tree, and what was float32 stays float32. It works under every JAX transformation, and
    `jax.grad` of it also computes the gradients with respect to operands and weights in dynamic fixed point.
    What becomes of each operation and why: `dfpjax.explain`.

    `fun` is traced as by `jax.jit`: arrays among its arguments are tracers inside of it, it should have no
    side effects, and arrays it closes over are constants from its first call on. Other than by `jax.jit`,
    everything that is no array (strings, None, functions, Python numbers and bools) reaches `fun` as it is,
    and is returned as it is. `fun` is traced again only for arguments of another structure, shape or dtype,
    or for other static values; pass a number that changes at every step as an array. Threads may share it.

    Primitives that cannot be entered stay as they are, and `dfpjax.explain` lists them as opaque: callbacks,
    Pallas, and those that keep functions among static data, such as Lineax's `linear_solve`.

    Usable as a decorator, `@dfpjax.mixed_precision` and `@dfpjax.mixed_precision(policy=...)`.

    Arguments:
        fun: a function of pytrees that JAX can trace, such as a Flax model's `apply`.
        policy: which operations run in dynamic fixed point, and how. By default every convolution and dot
            product of float32, bfloat16, float16 or float64 operands that sums at least two products and is
            expected to gain by it. That depends on shapes alone, as they stand in `fun`: under `vmap` of the
            transformed function those of one example. `OpConfig(force=True)` asks for no gain.
        backend: "auto" for the native kernels where the platform has them, "reference" for the same
            arithmetic in plain JAX: the same bits, but slow.

    Returns:
        The transformed function. Called, it raises what `fun` raises, and a `ValueError` if the policy is
        strict and one of its rules matches nothing, or if `fun` changes an object among its arguments (a
        `flax.nnx` module with batch statistics) and does not return the change, which would be lost.

    Raises:
        TypeError: if `fun` is not callable or `policy` is not a `Policy`.
        ValueError: if `backend` is none of those named above.
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

    def run(self, arrays: Sequence[Any]) -> Any:
        """What a call returns, given the arrays among its arguments."""
        evaluate = self._jitted if _are_on_unset_mesh(arrays) else self._evaluate
        return self.results(evaluate(*arrays))

    def results(self, arrays: Sequence[Any]) -> Any:
        """What a call returns, given the jaxpr's outputs."""
        return self.traced.results(arrays)

    def _evaluate(self, *arrays):
        return _compat.eval_jaxpr(self.jaxpr.jaxpr, self.jaxpr.consts, *arrays)

    @functools.cached_property
    def _jitted(self) -> Callable:
        return jax.jit(self._evaluate)

    def is_closed(self) -> bool:
        """Whether it may be used again: it closes over no tracer, which would be another one next time."""
        return not any(isinstance(const, Tracer) for const in self.jaxpr.consts)


def _are_on_unset_mesh(arrays: Sequence[Any]) -> bool:
    """Whether the mesh of explicitly sharded arrays is known from them alone.

    An equation without operands, such as one that makes zeros, is sharded explicitly too, and where a program
    is evaluated equation by equation, JAX does not know on which devices.
    """
    is_set = not jax.sharding.get_abstract_mesh().empty
    return not is_set and any(explicit_axes(jax.typeof(x).sharding.mesh) for x in arrays)


def running(fun: Callable, make: Callable[[Arguments], Program]) -> Callable:
    """The function, called as `fun` is, that makes a program of its arguments or takes one made before, and
    runs it."""
    programs: BoundedCache[Program] = BoundedCache(PROGRAMS_KEPT)

    @functools.wraps(fun)
    def transformed(*args, **kwargs):
        arguments = Arguments.of(args, kwargs)
        key = _key(arguments.leaves, arguments.tree)
        if key is None:
            program = make(arguments)
        else:
            program = programs.get_or_make(key, lambda: make(arguments), Program.is_closed)
        return program.run(arguments.arrays)

    return transformed


def survey_call(fun: Callable, arguments: Arguments) -> tuple[Traced, Body]:
    """Trace a call and find its convolutions and dot products."""
    traced = trace(fun, arguments)
    return traced, survey_jaxpr(traced.jaxpr.jaxpr, fun, arguments)


def survey_jaxpr(jaxpr: Jaxpr, fun: Callable, arguments: Arguments) -> Body:
    """Find the convolutions and dot products of a call, given as a jaxpr."""
    named = zip(argument_paths(fun, arguments.paths), arguments.leaves, strict=True)
    return survey(jaxpr, [name for name, leaf in named if is_array(leaf)], Scope(stack=new_name_stack()))


def rewritten_call(fun: Callable, arguments: Arguments, policy: Policy, backend: Backend) -> Program:
    """Trace a call and rewrite it."""
    return rewritten(fun, *survey_call(fun, arguments), policy, backend)


def rewritten(fun: Callable, traced: Traced, body: Body, policy: Policy, backend: Backend) -> Program:
    """Rewrite a call that has been traced and surveyed."""
    if traced.lost:
        raise ValueError(_lost_changes(fun, traced.lost))
    bound = body.bind(policy)
    require_matches(body.sites(), bound)
    jaxpr = Rewriter(bound, backend).rewrite(body)
    return Program(traced=traced, jaxpr=traced.jaxpr.replace(jaxpr=jaxpr))


_LISTED = 5


def _lost_changes(fun: Callable, changed: Sequence[str]) -> str:
    name = getattr(fun, "__name__", type(fun).__name__)
    more = f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
    return (
        f"mixed_precision: {name} changes what an object among its arguments holds "
        f"({', '.join(changed[:_LISTED])}{more}). It works on a copy, as under jax.jit, and the change would "
        "be lost. Have it return what changes; for a flax.nnx module: nnx.split it, nnx.merge it inside of "
        "the function, and return its new nnx.state."
    )


def _key(leaves: list[Any], in_tree) -> Hashable | None:
    """What tracing depends on; None if a static argument is not hashable, and `fun` has to be traced anew."""
    key = (in_tree, tuple(map(_leaf_key, leaves)), _compat.trace_context())
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _leaf_key(leaf: Any) -> Hashable:
    if is_array(leaf):
        return jax.typeof(leaf)
    # 1, 1.0 and True are equal, as are 0.0 and -0.0, and NaN differs from itself.
    return type(leaf), repr(leaf) if isinstance(leaf, float | complex) else leaf
