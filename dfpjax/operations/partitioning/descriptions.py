"""Parameters of a computation as text, so that a program says how to partition it in any process."""

import dataclasses
import json
from typing import Any

import numpy as np

from dfpjax.numbers.contraction.accumulation import FixedChain
from dfpjax.numbers.contraction.contraction import Contraction, Window
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.quantizer import Quantizer

_CLASSES = {kind.__name__: kind for kind in (Blocks, Contraction, FixedChain, Quantizer, Window)}
_CLASS = "class"


def write(value: Any) -> str:
    """A value as JSON: None, numbers, strings, tuples, dictionaries, and dfpjax's configuration."""
    return json.dumps(_plain(value), separators=(",", ":"))


def read(text: str | bytes) -> Any:
    """The value that `write` wrote."""
    return _restored(json.loads(text))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_CLASS: _CLASSES[type(value).__name__].__name__, **fields}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_restored, value))
    if isinstance(value, dict):
        fields = {name: _restored(item) for name, item in value.items()}
        kind = fields.pop(_CLASS, None)
        return fields if kind is None else _CLASSES[kind](**fields)
    return value
