"""The processes of one run, on one machine or on several: how they start, agree and end.

JAX's distributed runtime connects them, and its CPU collectives (gloo) carry everything that they tell each
other, so nothing here needs a file system that all of them see. The first process alone reads and writes the
working directory, and `from_first` and `load_from_first` tell the others what it has read. In a run of one
process all of this does nothing.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .weights import CheckpointError

# Seconds after which a process that has become silent is missed; collectives notice a closed connection at
# once.
_HEARTBEAT = 45

_HOW = (
    "give --coordinator=HOST:PORT --processes=N --process_id=I to each of the N processes, or start them with"
    " SLURM, MPI or Kubernetes, where JAX finds the other processes itself"
)


def program_name() -> str:
    """The program's name at the front of its messages, such as `train.py`."""
    return Path(sys.argv[0]).name


class ProcessError(RuntimeError):
    """The processes of a run cannot work together; the message says why and what to do."""


class LostProcess(ProcessError):
    """Another process has ended, or cannot be reached any more."""


def start(
    *, coordinator: str | None, processes: int | None, process_id: int | None, timeout: float = 120
) -> None:
    """Connects this process with the others of its run. To be called before JAX computes anything.

    Arguments:

    - `coordinator`: address `HOST:PORT` at which the process 0 can be reached; None, as for the other two, if
      JAX is to find it in the environment of SLURM, MPI or Kubernetes.
    - `timeout`: seconds within which all processes must start. After that the program ends with a message.

    **Raises:** `ProcessError` if it is not known who the others are.
    """

    def give_up() -> None:
        # JAX's runtime would end the process with a stack trace.
        message = (
            f"not all processes were there within {timeout:.0f} s"
            f" (coordinator: {coordinator or 'found by JAX'}, processes: {processes or 'found by JAX'});"
            " start all of them at the same time, and see that they reach the coordinator's address"
        )
        _say(f"{program_name()}: {message}")
        os._exit(1)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    known = None not in (coordinator, processes, process_id)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            cluster_detection_method="deactivate" if known else None,
            initialization_timeout=int(timeout) + 60,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ProcessError(f"--distributed: {str(error).splitlines()[0]} {_HOW}") from error
    finally:
        timer.cancel()


def count() -> int:
    """Number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def leave(message: str) -> None:
    """Ends this process with a message, without waiting for others or for threads.

    The others lose the first process at once, so it gives them two seconds to say why they end, if they do.
    """
    _say(message)
    if is_first():
        time.sleep(2)
    os._exit(1)


def _say(message: str) -> None:
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)


def wait() -> None:
    """Waits until all processes are here."""
    any_of(False)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if count() == 1:
        return flag
    return bool(_sum(np.int32(flag)) > 0)


def agree(settings: Mapping[str, Any]) -> None:
    """**Raises:** `ProcessError`, in all processes, if the settings are not the same in all of them."""
    if count() == 1:
        return
    own = json.dumps(settings, sort_keys=True).encode()
    texts = [json.loads(text) for text in _from_each(own)]
    for process, theirs in enumerate(texts):
        differing = [
            f"{name} is {theirs.get(name)!r} in process {process} and {texts[0].get(name)!r} in process 0"
            for name in sorted({*theirs, *texts[0]})
            if theirs.get(name) != texts[0].get(name)
        ]
        if differing:
            raise ProcessError(
                f"the processes of this run differ: {', '.join(differing)}; give all of them the same"
                " command, and the same versions"
            )


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process, which alone calls it: a JSON value.

    **Raises:** in the first process what `make` raises; in the others then `CheckpointError`, with the same
    message.
    """
    if count() == 1:
        return make()
    error, result = None, {}
    if is_first():
        try:
            result = {"value": make()}
        except Exception as raised:
            error, result = raised, {"error": str(raised)}
    text = _from_each(json.dumps(result).encode() if is_first() else b"")[0]
    if error is not None:
        raise error
    result = json.loads(text)
    if "error" in result:
        raise CheckpointError(result["error"])
    return result["value"]


def _arrays_from_first(tree: Any) -> Any:
    """A tree of arrays with the bits that it has in the first process; shapes and dtypes are the same in
    all."""
    if count() == 1:
        return tree

    def bits(x: np.ndarray) -> np.ndarray:
        words = np.frombuffer(x.tobytes() + bytes(-x.nbytes % 4), np.uint32)
        words = _sum(words if is_first() else np.zeros_like(words))
        return np.frombuffer(words.tobytes()[: x.nbytes], x.dtype).reshape(x.shape)

    return jax.tree.map(lambda x: bits(np.asarray(x)), tree)


def load_from_first(load: Callable[[], tuple[Any, Any]], *, like: Any) -> tuple[Any, Any]:
    """The tree of arrays and the JSON value that `load` returns in the first process, which alone calls it.

    Arguments:

    - `like`: arrays as in the tree, or their shapes and dtypes.

    **Raises:** as `from_first`.
    """
    tree = None

    def value() -> Any:
        nonlocal tree
        tree, result = load()
        return result

    result = from_first(value)
    if tree is None:
        tree = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    return _arrays_from_first(tree), result


@contextlib.contextmanager
def losses_explained() -> Iterator[None]:
    """**Raises:** `LostProcess` in place of the error of a collective that fails because another process has
    ended."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if count() == 1 or "gloo" not in str(error).lower():
            raise
        raise LostProcess(
            "another process of this run has ended, or cannot be reached any more; what it printed says why"
            f" ({str(error).splitlines()[0]})"
        ) from error


def _from_each(text: bytes) -> list[bytes]:
    """The texts of all processes."""
    lengths = np.zeros(count(), np.int32)
    lengths[jax.process_index()] = len(text)
    lengths = _sum(lengths)
    texts = np.zeros((count(), max(lengths)), np.int32)
    texts[jax.process_index(), : len(text)] = np.frombuffer(text, np.uint8)
    texts = _sum(texts).astype(np.uint8)
    return [row[:length].tobytes() for row, length in zip(texts, lengths, strict=True)]


def _sum(x: np.ndarray) -> np.ndarray:
    """The sum of an array of integers over the processes."""
    mesh = _one_device_each()
    x = np.asarray(x)
    parts = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("process")), x[None])
    return np.asarray(_summed(mesh)(parts))


@functools.cache
def _one_device_each() -> Mesh:
    devices = [
        next(device for device in jax.devices() if device.process_index == process)
        for process in range(count())
    ]
    return Mesh(np.array(devices), ("process",), axis_types=(AxisType.Auto,))


@functools.cache
def _summed(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    def summed(parts: jax.Array) -> jax.Array:
        return jnp.sum(parts, axis=0, dtype=parts.dtype)

    return jax.jit(summed, out_shardings=NamedSharding(mesh, PartitionSpec()))
