"""The message for a missing compiled extension."""

import sys
from pathlib import Path


def explanation() -> str:
    """Says that the extension is missing, for which Python, and which command builds it."""
    package = Path(__file__).parent
    others = ", ".join(sorted(file.name for file in package.glob("_native.*.so")))
    found = f" (there is {others}, which another Python loads)" if others else ""
    source = package.parent
    what = source if (source / "pyproject.toml").is_file() else "--force-reinstall dfpjax"
    version = ".".join(map(str, sys.version_info[:2]))
    return (
        f"dfpjax's compiled extension, dfpjax._native, is not built for this Python {version}{found}. "
        f"Build and install it, with g++ on Linux:\n    {sys.executable} -m pip install {what}"
    )
