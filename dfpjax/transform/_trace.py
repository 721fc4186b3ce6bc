"""Tracing of functions whose arguments and results mix arrays with other values."""

import inspect
import keyword
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, valid_jaxtype
from jax.interpreters.ad import Zero
from jax.tree_util import KeyPath, PyTreeDef

from dfpjax.numbers.format.frozen import FrozenArray, is_frozen
from dfpjax.policy._layers import argument_paths
from dfpjax.transform._changes import Changes
from dfpjax.transform._variables import update, variables


def is_array(leaf: Any) -> bool:
    """Whether a leaf is traced. Any other leaf is static: it reaches the function, or the caller, unchanged.

    Unlike under `jax.jit`, Python numbers are static: a function may branch on them (`train=True`) or use
    them in a shape.
    """
    if isinstance(leaf, bool | int | float | complex | str) and not hasattr(leaf, "dtype"):
        return False
    if isinstance(leaf, SymbolicZero | Zero):  # in the rules of custom derivatives
        return False
    return isinstance(leaf, jax.ShapeDtypeStruct) or valid_jaxtype(leaf)


def arrays_of(leaf: Any) -> tuple[Any, ...]:
    """The arrays that are traced for a leaf: those of a frozen array, the leaf itself if it is an array, or
    none."""
    if is_frozen(leaf):
        return leaf.arrays
    return (leaf,) if is_array(leaf) else ()


def _arrays_of(leaves: Sequence[Any]) -> list[Any]:
    """The arrays among leaves."""
    return [array for leaf in leaves for array in arrays_of(leaf)]


class _Array:
    """Stands for an array among static leaves."""

    def __repr__(self) -> str:
        return "<array>"


_ARRAY = _Array()


def _without_arrays(leaves: Sequence[Any]) -> tuple[Any, ...]:
    def without(leaf):
        if is_frozen(leaf):
            return FrozenArray([_ARRAY] * len(leaf.arrays), leaf.form)
        return _ARRAY if is_array(leaf) else leaf

    return tuple(map(without, leaves))


def _with_arrays(leaves: Sequence[Any], arrays: Iterable[Any]) -> list[Any]:
    """Leaves with arrays in their places. Of a frozen one they make the float32 array that it stands for."""
    remaining = iter(arrays)

    def with_own(leaf):
        if is_frozen(leaf):
            return FrozenArray([next(remaining) for _ in leaf.arrays], leaf.form).dequantize()
        return next(remaining) if leaf is _ARRAY else leaf

    return list(map(with_own, leaves))


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flattened arguments of a call.

    They are flattened only once, because a class among them may count flattenings or refuse a second one:
    Equinox's `State` refuses it once a newer object exists.
    """

    leaves: Sequence[Any]
    """Frozen arrays count as leaves."""
    paths: Sequence[KeyPath]
    """The path of each leaf in `(args, kwargs)`."""
    tree: PyTreeDef
    """The structure of `(args, kwargs)`."""

    @classmethod
    def of(cls, args: tuple, kwargs: dict) -> "Arguments":
        """Flatten the arguments."""
        leaves, tree = jax.tree_util.tree_flatten_with_path((args, kwargs), is_frozen)
        return cls(leaves=[leaf for _, leaf in leaves], paths=[path for path, _ in leaves], tree=tree)

    @property
    def arrays(self) -> list[Any]:
        """The arrays among the leaves."""
        return _arrays_of(self.leaves)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A traced function."""

    jaxpr: ClosedJaxpr
    """From the arrays among the arguments' leaves to the arrays among the results' leaves."""

    out_tree: PyTreeDef
    out_leaves: tuple[Any, ...]

    updated: tuple[KeyPath, ...]
    """The paths in `(args, kwargs)` of the `flax.nnx.Variable`s that the function changes. Their new values
    follow the results among the jaxpr's outputs."""

    lost: tuple[str, ...]
    """The paths at which the function changes another object among its arguments, and does not return the new
    value. The change would be lost, since the function has a copy of the object. Changes of a dict or a list
    do not count."""

    def results(self, arrays: Sequence[Any]) -> Any:
        """The function's result, given the jaxpr's outputs."""
        return jax.tree.unflatten(self.out_tree, _with_arrays(self.out_leaves, map(_as_jax_array, arrays)))

    def update(self, args: tuple, kwargs: dict, arrays: Sequence[Any]) -> None:
        """Change the variables among the arguments of a call as the function does, given the jaxpr's outputs.

        Raises:
            ValueError: if one of these variables stands among the arguments twice.
        """
        results = sum(leaf is _ARRAY for leaf in self.out_leaves)
        values = map(_as_jax_array, arrays[results : results + len(self.updated)])
        update((args, kwargs), self.updated, list(values))


def _as_jax_array(x: Any) -> Any:
    """Convert a constant result, which a jaxpr gives as a literal, to an array; float0 stays as it is."""
    return x if isinstance(x, jax.Array) or x.dtype == jax.dtypes.float0 else jnp.asarray(x)


def trace(fun: Callable, arguments: Arguments) -> Traced:
    """Trace `fun(*args, **kwargs)`.

    Arrays may be concrete, tracers or `jax.ShapeDtypeStruct`. `fun` runs once, and none of the arrays is
    kept.
    """
    static, paths, in_tree = _without_arrays(arguments.leaves), arguments.paths, arguments.tree
    out: Any = None

    def of_arrays(*arrays):
        nonlocal out
        leaves = _with_arrays(static, arrays)
        args, kwargs = jax.tree.unflatten(in_tree, leaves)
        changes = Changes(args, kwargs, dict(zip(paths, leaves, strict=True)))
        out_leaves, out_tree = jax.tree.flatten(fun(*args, **kwargs))
        new = changes.found()
        known = variables((args, kwargs)) if new else {}
        # A new variable has no place among the caller's.
        updates = {path: leaf for path, leaf in new.items() if path in known and path in paths}
        returned = {id(leaf) for leaf in out_leaves}
        lost = [path for path, leaf in new.items() if path not in updates and id(leaf) not in returned]
        out = out_tree, _without_arrays(out_leaves), tuple(updates), tuple(map(_inside_argument, lost))
        return [*_arrays_of(out_leaves), *updates.values()]

    # JAX's messages then name `fun` and its arguments.
    of_arrays.__name__ = of_arrays.__qualname__ = getattr(fun, "__name__", type(fun).__name__)
    of_arrays.__signature__ = _signature(
        name
        for name, leaf in zip(argument_paths(fun, paths), arguments.leaves, strict=True)
        for _ in arrays_of(leaf)
    )
    of_arrays.__wrapped__ = fun
    jaxpr = jax.make_jaxpr(of_arrays)(*arguments.arrays)
    out_tree, out_leaves, updated, lost = out
    return Traced(jaxpr=jaxpr, out_tree=out_tree, out_leaves=out_leaves, updated=updated, lost=lost)


def _inside_argument(path: KeyPath) -> str:
    return jax.tree_util.keystr(path[2:], simple=True, separator="/")


def _signature(names: Iterable[str]) -> inspect.Signature:
    """A parameter for each array, with the array's name as far as Python allows: `params_Dense_0_kernel`."""
    parameters: dict[str, inspect.Parameter] = {}
    for name in names:
        name = re.sub(r"\W+", "_", name)
        if not name.isidentifier() or keyword.iskeyword(name):
            name = f"_{name}"
        while name in parameters:
            name += "_"
        parameters[name] = inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY)
    return inspect.Signature(list(parameters.values()))
