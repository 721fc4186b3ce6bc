"""`dfpjax explain module:function`: what becomes of a function's convolutions and dot products."""

import argparse
import ast
import importlib
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import dfpjax
from dfpjax.commands._errors import CommandError

_SHAPE = re.compile(r"(?:(?P<dtype>[a-z]+\d+|bool)?\[(?P<listed>[\d,\s]*)\])|(?P<crossed>\d+(?:x\d+)*)")
_DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "i8": "int8",
           "i16": "int16", "i32": "int32", "u8": "uint8", "u32": "uint32"}  # fmt: skip


def add_to(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
    parser = commands.add_parser(
        "explain",
        help="what becomes of every convolution and dot product of a function",
        description="Traces a function, without running it, and lists its convolutions and dot products.",
        epilog="Example: dfpjax explain mymodel:forward --shapes 32x224x224x3 'f32[2048,1000]'",
    )
    parser.add_argument("function", help="package.module:function, or file.py:function")
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="SHAPE",
        help="the arrays that it takes, such as 8x128, 'bf16[8,128]' or, without axes, '[]'; float32 if no"
        " dtype is given. Without --shapes the function is called without arguments and must return the"
        " function to explain and a tuple of its arguments, which may be any pytrees",
    )
    parser.add_argument(
        "--keyword",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a keyword argument of the function, such as train=False; may be repeated",
    )
    parser.add_argument(
        "--policy", help="package.module:NAME of a dfpjax.Policy; the default policy otherwise"
    )
    parser.add_argument("--grad", action="store_true", help="explain the gradient of the sum of its results")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints the table."""
    fun: Any = named(arguments.function)
    if not callable(fun):
        raise CommandError(f"{arguments.function} is not callable; name a function")
    if arguments.shapes is None:
        fun, values = _example(fun, arguments.function)
    else:
        values = tuple(map(shape, arguments.shapes))
    policy: Any = None if arguments.policy is None else named(arguments.policy)
    if policy is not None and not isinstance(policy, dfpjax.Policy):
        raise CommandError(f"--policy={arguments.policy} is {policy!r}, not a dfpjax.Policy")
    keywords = dict(map(keyword, arguments.keyword))
    if arguments.grad:
        fun = _gradient(fun)
    try:
        print(dfpjax.explain(fun, *values, policy=policy, **keywords))
    except Exception as error:
        shown = ", ".join(str(getattr(value, "shape", "…")) for value in values)
        raise CommandError(
            f"{arguments.function} cannot be traced with arguments of shapes {shown or '(none)'}:"
            f" {type(error).__name__}: {error}"
        ) from error


def named(text: str) -> object:
    """What `package.module:name` or `file.py:name` stands for.

    Raises:
        CommandError: if there is no such module, file or name, or importing it fails.
    """
    where, colon, name = text.rpartition(":")
    if not (colon and where and name):
        raise CommandError(f"{text!r} must be package.module:function or file.py:function")
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise CommandError(f"{text}: there is no file {where} here")
            found: Any = argparse.Namespace(**runpy.run_path(where, run_name="explained"))
        else:
            found = importlib.import_module(where)
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(f"{text}: {where} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    for part in name.split("."):
        if not hasattr(found, part):
            raise CommandError(f"{text}: {where} has no {name}")
        found = getattr(found, part)
    return found


def shape(text: str) -> jax.ShapeDtypeStruct:
    """An array's type, from `8x128`, `[8,128]` or `bf16[8,128]`.

    Raises:
        CommandError: if the text is none of these.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise CommandError(f"--shapes: {text!r} must be such as 8x128, f32[8,128] or []")
    dtype = match["dtype"] or "float32"
    try:
        jnp.dtype(_DTYPES.get(dtype, dtype))
    except TypeError:
        raise CommandError(
            f"--shapes: {text!r} has the dtype {dtype!r}; give such as f32, bf16 or i32"
        ) from None
    axes = match["crossed"].split("x") if match["crossed"] else (match["listed"] or "").split(",")
    extents = tuple(int(axis) for axis in axes if axis.strip())
    return jax.ShapeDtypeStruct(extents, _DTYPES.get(dtype, dtype))


def keyword(text: str) -> tuple[str, object]:
    """A name and a value, from `name=value`; a value that is no Python literal is a string.

    Raises:
        CommandError: if the text has another form.
    """
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise CommandError(f"--keyword: {text!r} must be NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _example(make: Callable, text: str) -> tuple[Callable, Sequence[Any]]:
    try:
        made = make()
    except TypeError as error:
        raise CommandError(
            f"{text} takes arguments ({error}); give their shapes, as in --shapes 8x128"
        ) from error
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0]) and isinstance(made[1], tuple)):
        raise CommandError(
            f"{text}() must return a function and a tuple of its arguments; or give --shapes to explain"
            f" {text} itself"
        )
    return made


def _gradient(fun: Callable) -> Callable:
    """The gradient by all floating-point arrays among the positional arguments."""

    def gradient(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        chosen = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]

        def total(values: list[jax.Array]) -> jax.Array:
            given = list(leaves)
            for i, value in zip(chosen, values, strict=True):
                given[i] = value
            results = jax.tree.leaves(fun(*jax.tree.unflatten(tree, given), **kwargs))
            return sum((jnp.sum(r) for r in results if jnp.issubdtype(r.dtype, jnp.floating)), jnp.zeros(()))

        return jax.grad(total)([leaves[i] for i in chosen])

    return gradient
