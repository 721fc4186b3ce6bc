"""What `jax.export` needs to know of the native kernels."""

import jax.export

from dfpjax import _native

PER_SHARD = "dfpjax_per_shard_v1"
"""The target of the custom calls that XLA replaces by each device's part of a computation
(`dfpjax.operations.partitioning`)."""


def export_checks() -> list[jax.export.DisabledSafetyCheck]:
    """The checks to disable where a function with native kernels is exported.

        exported = jax.export.export(jax.jit(fun), disabled_checks=dfpjax.export_checks())(*shapes)

    `jax.export` refuses custom calls that nobody vouches for. The names of dfpjax's carry a version, which
    changes with what the call does, so a program runs with the dfpjax that exported it and with any later one
    that has kernels of these names. The process that calls it must have imported dfpjax, which registers
    them.

    To serialize the result, JAX needs flatbuffers: `pip install "dfpjax[export]"`.
    """
    names = (*_native.registrations(), PER_SHARD)
    return [jax.export.DisabledSafetyCheck.custom_call(name) for name in names]
