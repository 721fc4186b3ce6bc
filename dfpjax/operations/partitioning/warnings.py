"""What cannot be partitioned, for the log."""

import functools
import logging


@functools.lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Log a message that has not been logged yet."""
    logging.getLogger("dfpjax").warning(message)
