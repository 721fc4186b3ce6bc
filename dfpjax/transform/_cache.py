"""A bounded, thread-safe cache."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Keeps the `size` values that were used last.

    The lock is not held while a value is made, which may run any code, this cache included. Threads that ask
    for the same new key at once may each make the value; the first one stays.
    """

    def __init__(self, size: int):
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get_or_make(self, key: Hashable, make: Callable[[], Value], keep: Callable[[Value], bool]) -> Value:
        """The value of `key`, made by `make` if need be, and kept if `keep` says so.

        Raises:
            TypeError: if `key` is not hashable.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        if keep(value):
            with self._lock:
                value = self._values.setdefault(key, value)
                while len(self._values) > self._size:
                    self._values.popitem(last=False)
        return value
