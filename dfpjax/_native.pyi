"""The compiled extension, `cpp_ops/python/bindings.cc`; `dfpjax/kernels` is its typed side."""

from typing import Any

def __getattr__(name: str) -> Any: ...
