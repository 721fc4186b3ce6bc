"""Configuration files: whether one can be used, and if not, which line of it is to blame."""

import runpy
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

import dfpjax


def _shipped() -> Path | None:
    """The folder `configs` of an installed package, or that of a checkout."""
    packages = [Path(folder) for folder in dfpjax.__path__]
    candidates = [package / "recipes" for package in packages] + [package.parent for package in packages]
    return next((c / "configs" for c in candidates if (c / "configs" / "default.py").is_file()), None)


def shipped_names() -> list[str]:
    """The configurations that come with the package."""
    folder = _shipped()
    return [] if folder is None else sorted(file.stem for file in folder.glob("*.py"))


def shipped_file(name: str) -> Path | None:
    """The file of a configuration that comes with the package, or None if there is none of that name.

    The folder's parent goes to the end of the module search path, since the files import each other from
    `configs`.
    """
    folder = _shipped()
    if folder is None or not (folder / f"{name}.py").is_file():
        return None
    if str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))
    return folder / f"{name}.py"


def check_config_file(argument: str) -> None:
    """Runs a configuration file's `get_config`.

    Arguments:

    - `argument`: the path of the file; after a colon may follow a text for `get_config`.

    **Raises:** `ValueError` if there is no such file, or it yields no configuration. The message is one line
    and names the file and, where there is one, the line.
    """
    name, *parameters = argument.split(":", 1)
    path = Path(name)
    if not name:
        raise ValueError("the path of the configuration file is empty; give a file such as configs/digits.py")
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give a configuration file such as configs/digits.py")
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; give a configuration file such as configs/digits.py, or one of"
            f" {', '.join(shipped_names())}"
        )
    try:
        get_config = runpy.run_path(name).get("get_config")
        config = get_config(*parameters) if callable(get_config) else None
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise ValueError(f"{_place(error, name)}: {_reason(error)}") from error
    if not callable(get_config):
        raise ValueError(f"{path} defines no function get_config(); see configs/digits.py for one that does")
    if not isinstance(config, ConfigDict | Mapping):
        raise ValueError(
            f"{path}: get_config() returned a value of type {type(config).__name__}; it must return an"
            " ml_collections.ConfigDict"
        )


def _place(error: Exception, name: str) -> str:
    """The file, and the last of its lines that was running."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    return f"{name}, line {lines[-1]}" if lines else name


def _reason(error: Exception) -> str:
    """The error's type and the first line of its message."""
    # `str` of a KeyError or AttributeError of `ml_collections` has quotes around the message.
    text = str(error.args[0]) if error.args else ""
    # `ml_collections` lists all fields with their values after the first sentence.
    text = text.split(". Other fields present")[0].split("\n")[0].removeprefix("'")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
