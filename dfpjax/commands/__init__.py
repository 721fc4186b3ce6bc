"""The commands of `dfpjax`, one module each, and `dfpjax-train`.

They stand on the public API, and nothing in `dfpjax` depends on them.
"""

from dfpjax.commands._errors import CommandError as CommandError
