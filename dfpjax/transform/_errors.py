"""Error messages that name the layer, its source line and what to do."""

import re
import sysconfig
from pathlib import Path
from typing import Any

from jax.extend.core import JaxprEqn

from dfpjax import _compat
from dfpjax.transform._decide import Verdict
from dfpjax.transform._survey import Site

_OWN = str(Path(__file__).resolve().parent)
_LIBRARIES = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def source_line(eqn: JaxprEqn) -> str:
    """`file:line` of the innermost frame in the user's own code, not in JAX, dfpjax or an installed library.

    Falls back to a library's frame, then to "".
    """
    frames = [
        (file, line)
        for file, line in _compat.user_frames(eqn.source_info.traceback)
        if not file.startswith(_OWN)
    ]
    own = [(file, line) for file, line in frames if not file.startswith(_LIBRARIES)]
    for file, line in own[:1] or frames[:1]:
        return f"{file}:{line}"
    return ""


def _layer(site: Site) -> str:
    """The name of its layer, or the path of an operand."""
    return site.operation.name or next(iter(site.operation.paths), "")


def described(site: Site) -> str:
    """An operation, its layer, its source line and its operands."""
    name, line = _layer(site), source_line(site.eqn)
    of_layer = f" of layer {name!r}" if name else ""
    at_line = f" at {line}" if line else ""
    operands = " x ".join(v.aval.str_short(short_dtypes=True) for v in site.eqn.invars)
    return f"{site.operation.primitive}{of_layer}{at_line} ({operands})"


def layer_error(site: Site, verdict: Verdict, error: Exception) -> Exception:
    """The error to raise, of the same builtin type, when rewriting `site` by that verdict raised `error`."""
    name = _layer(site)
    if name:
        pattern = repr(re.escape(name))
        remedy = (
            f"mend that (dfpjax.Rule({pattern}, dfpjax.OpConfig(...)) as the first rule changes this layer "
            f"alone), or keep it in float32 with the rule dfpjax.Rule({pattern}, None)"
        )
    else:
        remedy = (
            "mend that, or give it a name with jax.named_scope and a rule dfpjax.Rule(name, None) that keeps "
            "it in float32"
        )
    message = (
        f"{described(site)} cannot be computed in dynamic fixed point as "
        f"{verdict.reason} says: {error}\nEither {remedy}."
    )
    kind: Any = type(error) if type(error) in (NotImplementedError, TypeError, ValueError) else RuntimeError
    return kind(message)
