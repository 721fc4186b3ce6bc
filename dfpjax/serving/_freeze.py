"""`freeze` and `thaw`: weights in dynamic fixed point, and back."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import _checks
from dfpjax.numbers import Blocks, Quantizer
from dfpjax.numbers.format.conversion import quantize
from dfpjax.numbers.format.frozen import FrozenArray, Rows, is_frozen
from dfpjax.numbers.format.panels import Panels
from dfpjax.numbers.format.scaling import NONFINITE_THRESHOLD
from dfpjax.operations.exponents import blocks_of
from dfpjax.operations.panels import packed
from dfpjax.policy import OpConfig, Policy
from dfpjax.policy._layers import argument_paths
from dfpjax.policy._policy import BoundPolicy
from dfpjax.transform._contractions import QUANTIZED
from dfpjax.transform._held import mismatch
from dfpjax.transform._mixed_precision import survey_call
from dfpjax.transform._requests import request
from dfpjax.transform._survey import Site
from dfpjax.transform._trace import Arguments

LEAST_EXTENT = 32
"""Of both axes of a matrix in panels."""

_FIRST = (jax.tree_util.SequenceKey(0), jax.tree_util.SequenceKey(0))
"""The path of the first argument in `(args, kwargs)`."""

_NOT_CONTRACTED = re.compile(r"embed|^pos|bias|scale|norm|^mean$|^var$", re.IGNORECASE)


def freeze(
    variables: Any,
    policy: Policy | None = None,
    *,
    fun: Callable | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Bring the weights that a program multiplies by to dynamic fixed point, once, for inference.

    `dfpjax.mixed_precision(fun)` takes the result in place of `variables`, under `jit`, `vmap`, `scan`,
    `cond`, `jax.checkpoint` and `jax.export`. Its products read the frozen weights as they are: half the
    bytes, no quantization, and no cost rule, since float32 could gain nothing. They have the bits that they
    have with float32 weights, where they are in dynamic fixed point there (`OpConfig(force=True)`). Matrices
    are packed for the kernels. Everything else that the program does with a frozen weight sees its values;
    `dfpjax.explain` says which products cannot read one as it is. Frozen weights are integers: `jax.grad`
    with respect to them is a TypeError, and gradients with respect to other arguments flow through them.

    Arguments:
        variables: a pytree of arrays. `flax.nnx`: the state that `nnx.split` gives. Frozen arrays in it stay,
            but may be packed.
        policy: that of `mixed_precision`. Weights that its rules keep in float32 stay.
        fun: the function that `mixed_precision` is given, itself untransformed. With it, exactly those
            float32 leaves of two axes or more are frozen that `fun(variables, *args, **kwargs)` contracts in
            dynamic fixed point. Without it, all of two axes or more are, unless the last part of their path
            says that they are no kernel (embed, pos, bias, scale, norm, mean, var).
        args, kwargs: the other arguments of `fun`; a `jax.ShapeDtypeStruct` may replace an array.

    Returns:
        The pytree with a `FrozenArray` in place of each frozen leaf.

    Raises:
        TypeError: if `fun` is not callable or `policy` is not a `Policy`.
        ValueError: if a weight is not finite (not checked under a trace); if `fun` is transformed already, or
            calls such a function.
    """
    policy = Policy() if policy is None else policy
    _checks.instance("freeze", "policy", policy, Policy, "a dfpjax.Policy")
    if fun is None and (args or kwargs):
        raise TypeError("freeze: args and kwargs are those of fun, which is missing")
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables, is_frozen)
    if fun is None:
        forms = [_form_by_name(path, leaf, policy) for path, leaf in leaves]
    else:
        _checks.function_of_arrays("freeze", "fun", fun)
        forms = _forms_in_program(fun, variables, tuple(args), dict(kwargs or {}), policy)
    frozen = [
        leaf if form is None else _frozen(_name(path), leaf, form)
        for (path, leaf), form in zip(leaves, forms, strict=True)
    ]
    return jax.tree.unflatten(tree, frozen)


def thaw(variables: Any) -> Any:
    """Bring frozen weights back to float32.

    Arguments:
        variables: a pytree in which some leaves are `FrozenArray`s.

    Returns:
        The pytree with their float32 values. A program in dynamic fixed point has the same bits with these as
        with the frozen ones. They are the weights rounded to 16 bits, in blocks; those of matrices in panels
        have lost a few more, where exponents in a panel differed.
    """
    return jax.tree.map(
        lambda leaf: leaf.dequantize() if is_frozen(leaf) else leaf, variables, is_leaf=is_frozen
    )


def _name(path) -> str:
    """The path of a leaf, as rules match it; empty for a tree that is a leaf itself."""
    return argument_paths(None, [(*_FIRST, *path)])[0] if path else ""


def _is_candidate(leaf: Any) -> bool:
    if is_frozen(leaf):
        return isinstance(leaf.form, Rows)
    return getattr(leaf, "dtype", None) == jnp.float32 and len(leaf.shape) > 1 and leaf.size > 0


def _form_by_name(path, leaf: Any, policy: Policy) -> Rows | Panels | None:
    """What a leaf becomes where the program is not known."""
    name = _name(path)
    if not _is_candidate(leaf):
        return None
    if is_frozen(leaf):
        form = leaf.form
    else:
        if _NOT_CONTRACTED.search(name.rsplit("/", 1)[-1]):
            return None
        rules = (rule for rule in policy.rules if isinstance(rule.pattern, str))
        config = next((r.config for r in rules if re.search(r.pattern, name)), policy.default)
        form = None if config is None else _rows_of(config.quantizers().rhs)
    if form is None or len(leaf.shape) != 2:
        return form
    return _panels_of(form, leaf.shape, 0) or form


def _rows_of(quantizer: Quantizer) -> Rows | None:
    if quantizer.granularity == "channel":
        return None
    return Rows(blocks=blocks_of(quantizer), bits=quantizer.bits)


def _panels_of(form: Rows, shape, contracted: int) -> Panels | None:
    """The form in panels, if a matrix of that shape and form can have it."""
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu or form.blocks is None or min(shape) < LEAST_EXTENT:
        return None
    if form.blocks.size(shape) != (1, Blocks().columns):
        return None
    return Panels(shape=tuple(shape), contracted=contracted, blocks=form.blocks, bits=form.bits)


@dataclass(frozen=True, kw_only=True)
class _Use:
    """How a product contracts a leaf."""

    form: Rows
    panels: Panels | None


def _forms_in_program(fun, variables, args, kwargs, policy: Policy) -> list[Rows | Panels | None]:
    """What each leaf becomes, given the program."""
    blocks = Blocks()

    def standing_for(leaf):
        if not _is_candidate(leaf) or is_frozen(leaf):
            return leaf
        mantissa = jax.ShapeDtypeStruct(leaf.shape, jnp.int16)
        exponent = jax.ShapeDtypeStruct(blocks.counts(leaf.shape), jnp.int32)
        return FrozenArray((mantissa, exponent), Rows(blocks=blocks))

    given = jax.tree.map(standing_for, variables, is_leaf=is_frozen)
    arguments = Arguments.of((given, *args), kwargs)
    _, body = survey_call(fun, arguments)
    bound = body.bind(policy)
    sites = list(body.sites())
    _require_untransformed(sites)
    uses: dict[str, list[_Use]] = {}
    for site in sites:
        for operand, eqn in enumerate(site.thawed):
            use = _use(site, operand, bound) if eqn is not None else None
            if use is not None and isinstance(path := site.operation.operands[operand], str):
                uses.setdefault(path, []).append(use)
    names = argument_paths(fun, arguments.paths)
    names = [n for n, path in zip(names, arguments.paths, strict=True) if path[:2] == _FIRST]
    leaves = jax.tree.leaves(variables, is_leaf=is_frozen)
    return [_agreed(leaf, uses.get(name, [])) for leaf, name in zip(leaves, names, strict=True)]


def _require_untransformed(sites: Sequence[Site]) -> None:
    """What an inner `mixed_precision` has rewritten would read float32 values, made in each call."""
    if rewritten := [site for site in sites if site.eqn.primitive.name in QUANTIZED]:
        name = rewritten[0].operation.name or "an operation"
        raise ValueError(
            f"freeze: fun runs {name} in dynamic fixed point already; only what mixed_precision is given can"
            " read frozen weights: give the same function here, untransformed, and its policy"
        )


def _use(site: Site, operand: int, bound: BoundPolicy) -> _Use | None:
    """How a product contracts its frozen operand; None if it stays in float32."""
    if site.obstacle is not None or site.eqn.invars[operand].aval.dtype != jnp.float32:
        return None
    decision = bound.decide(site.operation)
    config: OpConfig | None = decision.config
    if config is None or decision.part.kind != "fprop":
        return None
    if not (config.fprop and config.dgrad and config.wgrad):
        return None  # such an operation computes its passes on float32 operands
    if request(site.eqn) is not None and not config.override_precision:
        return None
    quantizers = config.quantizers(*decision.part.roles)
    form = _rows_of((quantizers.lhs, quantizers.rhs)[operand])
    if form is None or mismatch(site.eqn, operand, form, (quantizers.lhs, quantizers.rhs)[operand], None):
        return None
    panels = None
    shape = site.eqn.invars[operand].aval.shape
    if site.eqn.primitive.name == "dot_general" and operand == 1 and config.accumulation == "certified":
        (_, contracting), (_, batch) = site.eqn.params["dimension_numbers"]
        if len(shape) == 2 and len(contracting) == 1 and not batch:
            panels = _panels_of(form, shape, contracting[0])
    return _Use(form=form, panels=panels)


def _agreed(leaf: Any, uses: Sequence[_Use]) -> Rows | Panels | None:
    """What a leaf becomes that is used so."""
    if not _is_candidate(leaf) or len({use.form for use in uses}) != 1:
        return None
    if is_frozen(leaf) and leaf.form != uses[0].form:
        return None
    panels = {use.panels for use in uses}
    if len(panels) == 1 and (found := panels.pop()) is not None and len(leaf.shape) in (2, 3):
        return found if leaf.shape[-2:] == found.shape else uses[0].form
    return uses[0].form


def _frozen(name: str, leaf: Any, form: Rows | Panels) -> FrozenArray:
    rows = leaf.arrays if is_frozen(leaf) else _quantized(jnp.asarray(leaf), form.bits, form.blocks)
    _require_finite(name, rows[1])
    if isinstance(form, Rows):
        return FrozenArray(rows, form)
    if len(leaf.shape) == 3:  # a stack of matrices
        mantissa, exponent = rows
        rows = mantissa, exponent[:, :, None, :]
        return FrozenArray(jax.lax.map(lambda of_one: packed(form, *of_one), rows), form)
    return FrozenArray(_packed(form, *rows), form)


_packed = jax.jit(packed, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantized(x: jax.Array, bits: int, blocks: Blocks | None) -> tuple[jax.Array, jax.Array]:
    found = quantize(x, bits, blocks=blocks)
    return found.mantissa, found.exponent if blocks is None else found.block_exponent


def _require_finite(name: str, exponent: jax.Array) -> None:
    if isinstance(exponent, jax.core.Tracer):
        return
    if exponent.size and int(np.max(np.asarray(exponent))) >= NONFINITE_THRESHOLD:
        raise ValueError(f"freeze: {name} holds a NaN or an infinity; only finite weights can be frozen")
