"""The releases of JAX that dfpjax runs on, checked when it is imported.

pip respects the bounds in pyproject.toml, but `--no-deps` or a later upgrade of another package can install
any release.
"""

import re
import warnings

import jax
import jaxlib

SUPPORTED = "jax>=0.10,!=0.10.2,!=0.11.0,<0.13"
OLDEST, BEYOND = (0, 10), (0, 13)
FAULTY: dict[tuple[int, ...], str] = {
    (0, 10, 2): "reduces some float32 arrays wrongly on CPUs (jax#39103) and crashes on others (jax#40412)",
    (0, 11, 0): "crashes in some float32 reductions on CPUs (jax#39257)",
}
"""Faulty releases of jaxlib, which contains the compiler, and their faults."""


def check(jax_version: str, jaxlib_version: str) -> None:
    """Refuse a JAX that is too old; warn about one that is faulty or newer than the tested ones.

    Raises:
        ImportError: dfpjax cannot run on this JAX.
    """
    remedy = f"pip install '{SUPPORTED}'"
    if _release(jax_version) < OLDEST:
        raise ImportError(f"dfpjax needs JAX {_dotted(OLDEST)} or later, found {jax_version}: {remedy}")
    message = None
    if fault := FAULTY.get(_release(jaxlib_version)):
        message = f"jaxlib {jaxlib_version} {fault}, with dfpjax or without: {remedy}"
    elif _release(jax_version) >= BEYOND:
        message = (
            f"dfpjax is not tested with JAX {jax_version}, only with releases before {_dotted(BEYOND)}; "
            f"if something fails: {remedy}"
        )
    if message is not None:
        warnings.warn(message, RuntimeWarning, stacklevel=4)  # of the statement that imports dfpjax


def _release(version: str) -> tuple[int, ...]:
    """The release in a version: three numbers or more, without suffixes such as `rc1` or `.dev0`."""
    (text,) = re.findall(r"^\d+(?:\.\d+)*", version)
    numbers = tuple(map(int, text.split(".")))
    return numbers + (0,) * (3 - len(numbers))


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


check(jax.__version__, jaxlib.__version__)
