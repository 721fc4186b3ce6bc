"""Functions in an equation's parameters that JAX traces later, such as the rules of custom derivatives.

JAX traces them when it differentiates, batches or rematerializes the program. They are wrapped here, and
rewritten when JAX traces them. Each entry of `DEFERRED` gives an equation's parameters with wrapped rules.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend import linear_util as lu
from jax.extend.core import Jaxpr

from dfpjax import _compat
from dfpjax.transform._trace import Arguments, trace

Origins = Sequence[Hashable]


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """Rewrites rules."""

    rewrite: Callable[[Jaxpr, Origins], Jaxpr]
    """Rewrites an open jaxpr, given what its inputs are."""

    def jaxpr(self, jaxpr: Jaxpr, inputs: Origins = (), consts: Sequence[Any] = ()) -> Jaxpr:
        """Rewrite a rule's jaxpr, which is to be evaluated with these constants.

        After the known inputs it may have others, such as tangents.
        """
        # From JAX 0.11 on, constants that are handed over apart from a jaxpr are its first inputs.
        first = [None] * (len(consts) - len(jaxpr.constvars))
        missing = len(jaxpr.invars) - len(first) - len(inputs)
        return self.rewrite(jaxpr, [*first, *inputs, *[None] * missing][: len(jaxpr.invars)])

    def function(self, fun: Callable) -> Callable:
        """Rewrite a rule that is a Python function."""

        def rewritten(*args):
            arguments = Arguments.of(args, {})
            traced = trace(fun, arguments)
            jaxpr = self.jaxpr(traced.jaxpr.jaxpr, consts=traced.jaxpr.consts)
            return traced.results(_compat.eval_jaxpr(jaxpr, traced.jaxpr.consts, *arguments.arrays))

        return rewritten


def _custom_jvp(params: dict, inputs: Origins, rewriting: Rewriting) -> dict:
    jvp = params["jvp_jaxpr_fun"]

    def rewritten(*zeros):
        jaxpr, consts, out_zeros = jvp.call_wrapped(*zeros)
        return rewriting.jaxpr(jaxpr, inputs[params["num_consts"] :], consts), consts, out_zeros

    return {"jvp_jaxpr_fun": lu.wrap_init(rewritten, debug_info=jvp.debug_info)}


def _custom_vjp(params: dict, inputs: Origins, rewriting: Rewriting) -> dict:
    fwd, bwd = params["fwd_jaxpr_thunk"], params["bwd"]

    def rewritten(*zeros):
        jaxpr, consts = fwd.call_wrapped(*zeros)
        return rewriting.jaxpr(jaxpr, inputs[params["num_consts"] :], consts), consts

    return {
        "fwd_jaxpr_thunk": lu.wrap_init(rewritten, debug_info=fwd.debug_info),
        "bwd": lu.wrap_init(rewriting.function(bwd.call_wrapped), debug_info=bwd.debug_info),
    }


def _custom_vmap(params: dict, inputs: Origins, rewriting: Rewriting) -> dict:
    rule = params["rule"]

    def rewritten(axis_size, in_batched, *args):
        return rewriting.function(lambda *args: rule(axis_size, in_batched, *args))(*args)

    return {"rule": rewritten}


def _linear_call(params: dict, inputs: Origins, rewriting: Rewriting) -> dict:
    thunk = params["transpose_thunk"]

    def rewritten():
        closed, consts = thunk()
        return closed.replace(jaxpr=rewriting.jaxpr(closed.jaxpr)), consts

    return {"transpose_thunk": rewritten}


def _remat_opt(params: dict, inputs: Origins, rewriting: Rewriting) -> dict:
    thunk = params["fun_jaxpr_thunk"]

    def rewritten():
        jaxpr, consts = thunk()
        return rewriting.jaxpr(jaxpr, inputs[params["num_consts"] :], consts), consts

    return {"fun_jaxpr_thunk": rewritten}


DEFERRED: dict[str, Callable[[dict, Origins, Rewriting], dict]] = {
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    "custom_vmap_call": _custom_vmap,
    "linear_call": _linear_call,
    "remat_opt": _remat_opt,
}
