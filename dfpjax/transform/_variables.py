"""The variables of `flax.nnx` modules among a call's arguments, which keep what the call changes in them."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import GetAttrKey, KeyPath


def variables(tree: Any) -> dict[KeyPath, Any]:
    """The `flax.nnx.Variable`s in a pytree, each under the path of the leaf that is its value."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:  # so there is none
        return {}
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return {(*path, GetAttrKey("value")): node for path, node in nodes if isinstance(node, nnx.Variable)}


def update(tree: Any, paths: Sequence[KeyPath], values: Sequence[Any]) -> None:
    """Give the variables at these paths new values.

    Raises:
        ValueError: if one of them stands in the tree twice. The function had two copies of it, so neither
            copy has all changes.
    """
    if not paths:
        return
    found = variables(tree)
    _require_unshared(found, paths)
    for path, value in zip(paths, values, strict=True):
        found[path].set_raw_value(value)


def _require_unshared(found: Mapping[KeyPath, Any], paths: Sequence[KeyPath]) -> None:
    places: dict[int, list[KeyPath]] = {}
    for path, variable in found.items():
        places.setdefault(id(variable), []).append(path)
    for path in paths:
        if len(same := places[id(found[path])]) > 1:
            named = ", ".join(jax.tree_util.keystr(p[2:-1], simple=True, separator="/") for p in same)
            raise ValueError(
                f"mixed_precision: the function changes a variable that its arguments share: {named}. It has"
                " a copy for each of these, so the changes cannot be put together. nnx.split the module,"
                " nnx.merge it inside of the function, and return its new nnx.state"
            )
