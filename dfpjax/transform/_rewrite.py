"""The rewrite, jaxpr to jaxpr: chosen convolutions and dot products become operations of dfpjax.

An operation's float32 result is cast to the type that its equation had, so types and arities do not change.
Every other equation stays the very same object, and so does a jaxpr in which nothing is replaced.
"""

import functools
from collections.abc import Hashable
from dataclasses import replace
from weakref import WeakKeyDictionary

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from dfpjax import _compat, checkpoint_policies
from dfpjax.numbers import Quantizer
from dfpjax.operations.partitioning.warnings import warn_once
from dfpjax.operations.primitives import Backend
from dfpjax.policy._policy import BoundPolicy
from dfpjax.transform._decide import Verdict, decide
from dfpjax.transform._deferred import DEFERRED, Rewriting
from dfpjax.transform._errors import described
from dfpjax.transform._fuse import Fusions, Least, find_fusions
from dfpjax.transform._replace import Fusing, inlined
from dfpjax.transform._subjaxprs import with_sub_jaxprs
from dfpjax.transform._survey import Body, Call, Origins, Scope, Site, survey
from dfpjax.transform._symbolic import has_symbolic_extents


class Rewriter:
    """Rewrites the jaxprs of one program by one policy.

    JAX lowers and compiles by identity. So the same jaxpr with the same decisions gives the very same result
    each time, such as for a jitted function that is called twice or by a rule that is traced at every step.
    """

    def __init__(self, policy: BoundPolicy, backend: Backend, least: Least = Least()):  # noqa: B008 (frozen)
        self._policy = policy
        self._backend = backend
        self._least = least
        self._done: WeakKeyDictionary[Jaxpr, dict[Hashable, Jaxpr]] = WeakKeyDictionary()
        self._closed: WeakKeyDictionary[ClosedJaxpr, dict[int, ClosedJaxpr]] = WeakKeyDictionary()

    def rewrite(self, body: Body) -> Jaxpr:
        """The jaxpr of a surveyed program, rewritten."""
        if self._policy.policy.keeps_float32:
            return body.jaxpr
        treatments = tuple(self._decide(site).treatment for site in body.sites())
        has_deferred = _has_deferred(body)
        if not has_deferred and not any(treatments):
            return body.jaxpr
        fusions = fusions_of(body, self._policy, self._least) if self._backend == "auto" else Fusions()
        if has_deferred and self._policy.policy.rules:
            # The contents of a deferred rule are unknown yet, and the policy's rules may depend on its place.
            return self._rewritten(body, fusions)
        done = self._done.setdefault(body.jaxpr, {})
        if treatments not in done:
            done[treatments] = self._rewritten(body, fusions)
        return done[treatments]

    def _decide(self, site: Site) -> Verdict:
        """The decision about one operation. What symbolic extents keep in float32 is logged."""
        verdict = decide(site, self._policy)
        if verdict.treatment is not None and self._backend == "reference" and has_symbolic_extents(site.eqn):
            why = 'backend="reference" takes no symbolic extents'
            verdict = replace(verdict, treatment=None, symbolic=why)
        if verdict.symbolic is not None:
            which = "" if verdict.treatment is None else "the gradients of "
            warn_once(f"float32 for {which}{described(site)}: {verdict.symbolic}.")
        return verdict

    def _rewritten(self, body: Body, fusions: Fusions) -> Jaxpr:
        fusing = Fusing(fusions)
        eqns: list[JaxprEqn] = []
        effects = set(body.jaxpr.effects)
        for index, eqn in enumerate(body.jaxpr.eqns):
            match body.found.get(index):
                case _ if index in fusions.dropped:
                    new, added = [], set()
                case _ if index in fusions.passes:
                    new, added = fusing.equations(index), set()
                case Site() as site:
                    new, added = self._site(site, fusing)
                case Call() as call:
                    new, added = self._call(eqn, call)
                case None:
                    new, added = [eqn], set()
            eqns += new
            effects |= added
        return body.jaxpr.replace(eqns=eqns, effects=effects)

    def _site(self, site: Site, fusing: Fusing) -> tuple[list[JaxprEqn], set]:
        verdict = self._decide(site)
        if verdict.treatment is None:
            return [site.eqn], set()
        before, witness = fusing.witness(site, verdict.treatment)
        new = [*before, *inlined(site, verdict, self._backend, witness)]
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


def fusions_of(body: Body, policy: BoundPolicy, least: Least = Least()) -> Fusions:  # noqa: B008 (frozen)
    """The fusions of a jaxpr: none if no operation in it or inside it runs in dynamic fixed point."""
    if not policy.policy.fuse or all(decide(site, policy).treatment is None for site in body.sites()):
        return Fusions()
    here = (entry for entry in body.found.values() if isinstance(entry, Site))
    operands: dict[Var, list[Quantizer]] = {}
    for site in here:
        lhs, treatment = site.eqn.invars[0], decide(site, policy).treatment
        if isinstance(lhs, Var) and treatment is not None and treatment.lhs_in_blocks:
            operands.setdefault(lhs, []).append(treatment.quantizers.lhs)
    return find_fusions(body.jaxpr, least, operands)


def _has_deferred(body: Body) -> bool:
    return any(
        body.jaxpr.eqns[index].primitive.name in DEFERRED
        or any(_has_deferred(inner) for _, inner in entry.inside)
        for index, entry in body.found.items()
        if isinstance(entry, Call)
    )
