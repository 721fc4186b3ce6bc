"""`export`: a function as a program that outlives the process."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.export

from dfpjax import _checks
from dfpjax.kernels import export_checks
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.frozen import FrozenArray, Rows
from dfpjax.numbers.format.panels import Panels


def export(
    fun: Callable, *args: Any, platforms: tuple[str, ...] | None = None, **kwargs: Any
) -> jax.export.Exported:
    """Export a function, such as one that `dfpjax.mixed_precision` has transformed.

        exported = dfpjax.export(apply, frozen, jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32))
        Path("model.bin").write_bytes(exported.serialize())

    The process that calls the program has to import dfpjax, whose kernels it contains:
    `jax.export.deserialize(Path("model.bin").read_bytes()).call(frozen, x)`. Their names carry a version, so
    the program runs with the dfpjax that exported it and with any later one that has kernels of these names.
    To serialize it, JAX needs flatbuffers: `pip install "dfpjax[export]"`.

    Extents may be symbolic (`jax.export.symbolic_shape`), as for all batch sizes. The program then takes
    arrays of any such size, with the bits that one for this size has, and the cost rule takes each variable
    as 128, or as the number nearest to it that its constraints allow. Symbolic extents need native code, so
    they take the platform "cpu" alone. An operation whose blocks depend on such an extent stays in float32;
    `dfpjax.explain` with the same arguments says so, and so does the log.

    Arguments:
        fun: a function of pytrees of arrays; it is jitted unless it is already.
        *args, **kwargs: its arguments; a `jax.ShapeDtypeStruct` may replace an array.
        platforms: as `jax.export.export` has it.

    Returns:
        The exported program.

    Raises:
        TypeError: if `fun` is not callable.
        NotImplementedError: if what runs in dynamic fixed point has symbolic extents and a platform is not
            "cpu".
    """
    _checks.function_of_arrays("export", "fun", fun)
    jitted = fun if hasattr(fun, "trace") and hasattr(fun, "lower") else jax.jit(fun)
    return jax.export.export(jitted, platforms=platforms, disabled_checks=export_checks())(*args, **kwargs)


def _blocks_to(blocks: Blocks | None) -> list | None:
    return None if blocks is None else [blocks.rows, blocks.columns]


def _blocks_from(stored: list | None) -> Blocks | None:
    return None if stored is None else Blocks(rows=stored[0], columns=stored[1])


def _form_to(form: Rows | Panels) -> bytes:
    fields: dict[str, Any] = {"blocks": _blocks_to(form.blocks), "bits": form.bits}
    if isinstance(form, Panels):
        fields |= {"shape": list(form.shape), "contracted": form.contracted}
    return json.dumps(fields).encode()


def _form_from(stored: bytes) -> Rows | Panels:
    fields = json.loads(stored)
    fields["blocks"] = _blocks_from(fields["blocks"])
    if "shape" not in fields:
        return Rows(**fields)
    return Panels(**{**fields, "shape": tuple(fields["shape"])})


jax.export.register_pytree_node_serialization(
    FrozenArray,
    serialized_name="dfpjax.FrozenArray",
    serialize_auxdata=_form_to,
    deserialize_auxdata=_form_from,
)
