"""How rules identify an operation: by the layer names of the name stack and the paths of the arguments."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.tree_util import GetAttrKey, KeyPath

from dfpjax import _compat

_RECOMPUTED = "rematted_computation"

FLOAT32 = "dfpjax_float32"
"""Scope of the operations that a transform keeps in float32, so that an outer transform keeps them too."""

_NO_LAYERS = frozenset({"checkpoint", _RECOMPUTED, FLOAT32})
"""Scopes that belong to no layer's name: the one above and those that JAX adds (`ad_checkpoint.py`)."""

PATH_KEEPING = frozenset(
    {
        "all_gather", "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "dfp_quantize",
        "dfp_thaw", "dynamic_slice", "layout_constraint", "mesh_cast", "name", "pcast", "pvary",
        "reduce_precision", "reshape", "reshard", "rev", "sharding_constraint", "slice", "squeeze",
        "stop_gradient", "transpose",
    }
)  # fmt: skip
"""Primitives that only rearrange, slice or round their first operand: the result keeps its path."""


def layer_name(stack: Any) -> str:
    """The scopes of a name stack, without JAX's transformations: `ResNet/Bottleneck_3/Conv_1`."""
    names: list[str] = []
    transposed = again = 0
    for kind, name in _compat.name_entries(stack):
        if kind == "scope" and name not in _NO_LAYERS:
            names.append(name)
        elif (kind, name) == ("transform", "transpose"):
            transposed = again = len(names)
        elif (kind, name) == ("transform", "jvp") and in_backward_pass(stack):
            again = len(names)
    # A transposed remat has its scopes twice, as in transpose(jvp(Model))/jvp(Model)/…: drop the first copy.
    if names[again:][: again - transposed] == names[transposed:again]:
        del names[transposed:again]
    return "/".join(names)


def in_backward_pass(stack: Any) -> bool:
    """Whether a name stack says that JAX made the equation by transposition."""
    return ("transform", "transpose") in _compat.name_entries(stack)


def is_recomputation(stack: Any) -> bool:
    """Whether a name stack says that the equation repeats one of the forward pass in the backward pass."""
    entries = _compat.name_entries(stack)
    if ("scope", _RECOMPUTED) not in entries:
        return False
    since = entries[::-1].index(("scope", _RECOMPUTED))
    return ("transform", "transpose") not in entries[len(entries) - since :]


def is_kept_float32(stack: Any) -> bool:
    """Whether a name stack says that an inner transform keeps the equation in float32."""
    return ("scope", FLOAT32) in _compat.name_entries(stack)


def argument_paths(fun: Callable, paths: Sequence[KeyPath]) -> list[str]:
    """What the leaves of a function's `(args, kwargs)` are called, given their key paths.

    A leaf inside a container has its path in that container (`params/Conv_0/kernel`, whatever the argument's
    name). A leaf that is an argument itself has the argument's name.
    """
    names = _positional_names(fun, 1 + max((path[1].idx for path in paths if path[0].idx == 0), default=-1))
    return [_leaf_path(path, names) for path in paths]


def _leaf_path(path: KeyPath, names: Sequence[str]) -> str:
    (where, argument, *inside) = path
    if len(inside) > 1 and inside[-1] == GetAttrKey("value"):
        inside.pop()  # flax.nnx.Variable
    if inside:
        return jax.tree_util.keystr(tuple(inside), simple=True, separator="/")
    return str(names[argument.idx] if where.idx == 0 else argument.key)


def _positional_names(fun: Callable, count: int) -> list[str]:
    names = [f"args/{i}" for i in range(count)]
    try:
        parameters = inspect.signature(fun).parameters.values()
    except (TypeError, ValueError):  # built-in callables have no signature
        return names
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (positional + names[len(positional) :])[:count]
