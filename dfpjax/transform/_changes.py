"""Finds the changes that a traced function makes to the objects among its arguments, which are copies."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey, KeyPath, SequenceKey


class Changes:
    """Watches the objects among a function's arguments while it runs.

    Objects are compared by their attributes. Only an argument with changed objects is flattened, to see
    whether the changes are part of the pytree, because flattening runs code of the objects' classes.
    """

    def __init__(self, args: tuple, kwargs: dict, leaves: Mapping[KeyPath, Any]):
        """Records the arguments and the leaves of `(args, kwargs)` before the function runs."""
        named = [((SequenceKey(0), SequenceKey(index)), argument) for index, argument in enumerate(args)]
        named += [((SequenceKey(1), DictKey(name)), argument) for name, argument in kwargs.items()]
        self._arguments = [(path, argument, _contents(argument)) for path, argument in named]
        self._leaves = leaves

    def found(self) -> dict[KeyPath, Any]:
        """The leaves of `(args, kwargs)` that are inside an object and have a new value.

        Call it after the function has run. Changes of a dict, a list or a tuple do not count.
        """
        before = {id(leaf) for path, leaf in self._leaves.items() if _is_in_object(path)}
        return {
            (*start, *inside): leaf
            for start, argument, contents in self._arguments
            if any(_has_changed(node, children) for node, children in contents)
            for inside, leaf in _leaves_of(argument)
            if _is_in_object((*start, *inside)) and id(leaf) not in before
        }


def _is_in_object(path: KeyPath) -> bool:
    """Whether a leaf is inside an object other than dicts, lists, tuples and `flax.nnx.Variable`s in them."""
    *inside, last = path
    keys = inside if last == GetAttrKey("value") else path
    return not all(isinstance(key, SequenceKey | DictKey) for key in keys)


def _leaves_of(argument: Any) -> list[tuple[KeyPath, Any]]:
    try:
        return jax.tree_util.tree_flatten_with_path(argument)[0]
    except Exception:  # an object that refuses because it has a successor, which the function returns
        return []


def _contents(argument: Any) -> list[tuple[Any, dict]]:
    """The containers and objects in an argument, each with its children."""
    found: dict[int, tuple[Any, dict]] = {}
    waiting = [argument]
    while waiting:
        node = waiting.pop()
        if id(node) not in found and not jax.tree_util.all_leaves([node]):
            children = _children(node)
            found[id(node)] = node, children
            waiting += children.values()
    return list(found.values())


def _has_changed(node: Any, before: dict) -> bool:
    after = _children(node)
    return after.keys() != before.keys() or any(after[key] is not child for key, child in before.items())


def _children(node: Any) -> dict:
    """The children of a container or an object: its items or attributes, not those of its pytree."""
    if isinstance(node, dict):
        return dict(node)
    if isinstance(node, list | tuple):
        return dict(enumerate(node))
    slots = [name for kind in type(node).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    children = dict(getattr(node, "__dict__", {}))
    for name in slots:
        try:
            children[name] = object.__getattribute__(node, name)
        except AttributeError:  # not set, or a private name, which Python mangles
            continue
    return children


def _names(slots: Any) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
