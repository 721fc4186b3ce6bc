"""The rewrite, jaxpr to jaxpr: chosen convolutions and dot products become operations of dfpjax.

An operation's float32 result is cast to the type that its equation had. So types and arities do not change,
every other equation stays the very same object, and a jaxpr in which nothing is replaced is returned itself.
"""

import functools
from collections.abc import Hashable
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.core.primitives import convert_element_type_p
from jax.extend.source_info_util import user_context
from jax.sharding import AxisType

from dfpjax import _compat, checkpoint_policies, operations
from dfpjax.policy._config import OpConfig
from dfpjax.policy._policy import BoundPolicy
from dfpjax.transform._decide import decide
from dfpjax.transform._deferred import DEFERRED, Rewriting
from dfpjax.transform._errors import layer_error
from dfpjax.transform._subjaxprs import with_sub_jaxprs
from dfpjax.transform._survey import Body, Call, Origins, Scope, Site, survey


class Rewriter:
    """Rewrites the jaxprs of one program by one policy.

    A jaxpr that is met again (a jitted function, called more than once or by a rule that is traced at every
    step) gives the very same result if the same becomes of it: JAX lowers and compiles by identity.
    """

    def __init__(self, policy: BoundPolicy):
        self._policy = policy
        self._done: WeakKeyDictionary[Jaxpr, dict[Hashable, Jaxpr]] = WeakKeyDictionary()
        self._closed: WeakKeyDictionary[ClosedJaxpr, dict[int, ClosedJaxpr]] = WeakKeyDictionary()

    def rewrite(self, body: Body) -> Jaxpr:
        """The jaxpr of a surveyed program, rewritten."""
        if self._policy.policy.keeps_float32:
            return body.jaxpr
        configs = tuple(decide(site, self._policy).config for site in body.sites())
        has_deferred = _has_deferred(body)
        if not has_deferred and not any(configs):
            return body.jaxpr
        if has_deferred and self._policy.policy.rules:
            # What a deferred rule will hold is not known yet, and a policy's rules may ask where it stands.
            return self._rewritten(body)
        done = self._done.setdefault(body.jaxpr, {})
        if configs not in done:
            done[configs] = self._rewritten(body)
        return done[configs]

    def _rewritten(self, body: Body) -> Jaxpr:
        eqns: list[JaxprEqn] = []
        effects = set(body.jaxpr.effects)
        for index, eqn in enumerate(body.jaxpr.eqns):
            match body.found.get(index):
                case Site() as site:
                    new, added = self._site(site)
                case Call() as call:
                    new, added = self._call(eqn, call)
                case None:
                    new, added = [eqn], set()
            eqns += new
            effects |= added
        return body.jaxpr.replace(eqns=eqns, effects=effects)

    def _site(self, site: Site) -> tuple[list[JaxprEqn], set]:
        config = decide(site, self._policy).config
        if config is None:
            return [site.eqn], set()
        new = _inlined(site, config)
        return new, set().union(*(eqn.effects for eqn in new))

    def _call(self, eqn: JaxprEqn, call: Call) -> tuple[list[JaxprEqn], set]:
        new: dict[tuple[str, int], Jaxpr | ClosedJaxpr] = {}
        added: set = set()
        for sub, body in call.inside:
            with sub.environment():
                rewritten = self.rewrite(body)
            if rewritten is not body.jaxpr:
                new[sub.parameter, sub.index] = self._like(sub.jaxpr, rewritten)
                effects = rewritten.effects - body.jaxpr.effects
                added |= _compat.without_named_axes(effects, sub.closed_over_axes)
        params = with_sub_jaxprs(eqn.params, new)
        if new and params.get("policy") is not None and eqn.primitive.name == "remat2":
            params["policy"] = checkpoint_policies.adapt(params["policy"])
        if deferred := DEFERRED.get(eqn.primitive.name):
            rewriting = Rewriting(rewrite=functools.partial(self._rule, scope=call.scope))
            params.update(deferred(params, call.inputs, rewriting))
        elif not new:
            return [eqn], set()
        return [eqn.replace(params=params, effects=eqn.effects | added)], added

    def _like(self, old: Jaxpr | ClosedJaxpr, new: Jaxpr) -> Jaxpr | ClosedJaxpr:
        """The new jaxpr, closed if the old one is; one object for each pair."""
        if not isinstance(old, ClosedJaxpr):
            return new
        return self._closed.setdefault(old, {}).setdefault(id(new), old.replace(jaxpr=new))

    def _rule(self, jaxpr: Jaxpr, inputs: Origins, *, scope: Scope) -> Jaxpr:
        """Rewrite the jaxpr of a rule, which JAX makes when the program is differentiated or batched."""
        inside = Scope(stack=scope.stack, count=scope.count, derived=True)
        return self.rewrite(survey(jaxpr, inputs, inside))


def _has_deferred(body: Body) -> bool:
    return any(
        body.jaxpr.eqns[index].primitive.name in DEFERRED
        or any(_has_deferred(inner) for _, inner in entry.inside)
        for index, entry in body.found.items()
        if isinstance(entry, Call)
    )


def _inlined(site: Site, config: OpConfig) -> list[JaxprEqn]:
    """The equations that compute a site's result in dynamic fixed point, under its own variables."""
    eqn = site.eqn
    source = eqn.source_info
    name = site.operation.name or eqn.primitive.name
    try:
        with user_context(source.traceback), eqn.ctx.manager:
            fun = _operation(eqn, config)
            jaxpr, consts = _compat.trace(fun, [v.aval for v in eqn.invars], name)
            if consts:  # not every jaxpr can hold constants, but a jitted call can
                jaxpr, _ = _compat.trace(jax.jit(fun), [v.aval for v in eqn.invars], name)
    except Exception as error:
        raise layer_error(site, error) from error
    (result,) = jaxpr.outvars
    rename = {**dict(zip(jaxpr.invars, eqn.invars, strict=True)), result: eqn.outvars[0]}
    return [
        inner.replace(
            invars=[v if isinstance(v, Literal) else rename.get(v, v) for v in inner.invars],
            outvars=[rename.get(v, v) for v in inner.outvars],
            source_info=inner.source_info.replace(
                traceback=source.traceback, name_stack=source.name_stack + inner.source_info.name_stack
            ),
        )
        for inner in jaxpr.eqns
    ]


def _operation(eqn: JaxprEqn, config: OpConfig):
    """What an equation computes, as a function of (lhs, rhs), in dynamic fixed point.

    To be traced in the equation's context.
    """
    params, out = eqn.params, eqn.outvars[0].aval
    if eqn.primitive.name == "dot_general":
        operation, names = operations.dot_general, ("dimension_numbers",)
    else:
        operation = operations.conv_general_dilated
        names = (
            "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers",
            "feature_group_count", "batch_group_count",
        )  # fmt: skip
    operation = functools.partial(
        operation, **{name: params[name] for name in names}, quantizers=config.quantizers
    )

    def computed(lhs, rhs):
        result = operation(
            lax.convert_element_type(lhs, jnp.float32), lax.convert_element_type(rhs, jnp.float32)
        )
        if (result.dtype, result.aval.weak_type) == (out.dtype, out.weak_type):
            return result
        return convert_element_type_p.bind(
            result, new_dtype=out.dtype, weak_type=out.weak_type, sharding=None
        )

    # Under explicit sharding the result's sharding is part of its type. The equation's own is right, and how
    # to get there is left to the partitioner.
    mesh = jax.sharding.get_abstract_mesh()
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(axis for axis, kind in types if kind == AxisType.Explicit)
    if explicit:
        return jax.sharding.auto_axes(computed, axes=explicit, out_sharding=out.sharding)
    return computed
