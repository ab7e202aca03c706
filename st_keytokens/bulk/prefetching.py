"""A generator that is run ahead, by a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_WAIT = 0.1  # seconds until a thread whose consumer is gone notices


def prefetched(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, made by another thread while the caller works on those before.

    Args:
        items: Read in the thread, which begins with the first item that is asked for and ends with the generator.
        depth: Items made ahead at the most, beyond the one that is being made.

    Returns:
        A generator; closing it ends the thread. What ``items`` raises, it raises in its place.

    >>> list(prefetched(range(3)))
    [0, 1, 2]
    """
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    is_wanted = threading.Event()
    is_wanted.set()

    def put(is_item: bool, value: Any) -> None:
        while is_wanted.is_set():
            try:
                return made.put((is_item, value), timeout=_WAIT)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(True, item)
                if not is_wanted.is_set():
                    return
            put(False, None)
        except BaseException as err:  # also those that are no Exception belong to the caller
            put(False, err)
        finally:
            if (close := getattr(items, "close", None)) is not None:
                close()

    thread = threading.Thread(target=make, name="st-keytokens-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = made.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        is_wanted.clear()
        thread.join()
