"""Parameters that a run does not train: fine-tuning of a part of a network.

In a run, those that the precision reads in DFP16 are kept in it (`dfpjax.freeze`). Checkpoints have their
float32 values, which give the same bits when they are frozen again.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import traverse_util

import dfpjax

from .precision import POLICIES

Params = dict[str, Any]


class PatternError(ValueError):
    """A pattern of the parameters to train matches none; the message has the model's modules."""


def split(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """The parameters whose paths, such as `Block_3/Dense_0/kernel`, match a pattern, and all others.

    Patterns are regular expressions that match anywhere in a path, as those of a `dfpjax.Rule`. Without
    patterns all parameters match.

    **Raises:** `PatternError` if a pattern matches nothing.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in flat):
            modules = dict.fromkeys(path.split("/")[0] for path in flat)
            raise PatternError(
                f"trained has the pattern {pattern!r}, which matches no parameter; the model has"
                f" {', '.join(modules)}"
            )
    chosen = {path for path in flat if not patterns or any(re.search(p, path) for p in patterns)}
    trained = {path: leaf for path, leaf in flat.items() if path in chosen}
    kept = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return traverse_util.unflatten_dict(trained, sep="/"), traverse_util.unflatten_dict(kept, sep="/")


def merged(trained: Params, kept: Params) -> Params:
    """All parameters, those that are trained and those that are kept."""
    if not kept:
        return trained
    flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(kept)
    return traverse_util.unflatten_dict(flat)


def frozen(
    trained: Params, kept: Params, batch_stats: Any, apply: Callable, images: jax.Array, precision: str
) -> Params:
    """`kept`, with each kernel that `apply` reads in DFP16 brought to it."""
    if not kept or precision not in POLICIES:
        return kept
    variables = {"params": merged(trained, kept), "batch_stats": batch_stats}
    all_frozen = dfpjax.freeze(
        variables, POLICIES[precision], fun=apply, args=(images,), kwargs={"train": False}
    )
    flat = traverse_util.flatten_dict(all_frozen["params"])
    return traverse_util.unflatten_dict({path: flat[path] for path in traverse_util.flatten_dict(kept)})
