"""A process of its own that reads a FAISS index, whose damage may end it.

``FaissSource`` starts this file by its path. It takes orders on its standard input, a line of JSON each, and answers
on its standard output: first what the index is, then, where that is ordered, batches: a line of JSON, and the bytes of
ids and rows. An error is an answer too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, Any

_BYTES = 4 << 30  # that reading may take beside four times the file: what a damaged length asks for is more
_BYTES_OF_CORE = 256 << 20  # that its threads may reserve
_SECONDS, _BYTES_A_SECOND = 120, 4 << 20  # of the processor, for reading; no sound file takes that long


def main() -> None:
    """Answers until there are no more orders."""
    answers = _private_output()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a whole group; the other process ends this one
    try:
        order = json.loads(sys.stdin.buffer.readline())
        sys.path[:] = order["sys_path"]
        index = _Index(order["path"], order["name"])
        _answer(answers, index.description)
        if line := sys.stdin.buffer.readline():
            order = json.loads(line)
            for ids, rows in index.batches(order["row"], order["batch_size"]):
                _answer(answers, {"rows": len(rows)}, ids, rows)
    except BrokenPipeError:  # nobody waits any more
        os._exit(0)
    except Exception as err:
        fault = f"{type(err).__name__}: {_said(err)}"
        _answer(answers, {"refusal": str(err)} if isinstance(err, _RefusalError) else {"fault": fault})


class _RefusalError(Exception):
    """What is wrong with a file, in the words of the package's errors."""


class _Index:
    """An index, memory-mapped where FAISS can do so, and how its vectors come out."""

    def __init__(self, path: str, name: str) -> None:
        faiss: Any = import_module("faiss")
        self._faiss, self._name = faiss, name
        flags = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)
        try:
            with _limited(os.path.getsize(path)):
                self._index: Any = faiss.read_index(path, flags)
        except (RuntimeError, MemoryError, TypeError) as err:
            raise _RefusalError(f"{name} must be a FAISS index, got an error: {_said(err)}. Save it again.") from err
        self._outer: Any = self._index  # which owns it
        self._ids: Any = None
        if hasattr(self._index, "id_map"):
            self._ids = faiss.vector_to_array(self._index.id_map)
            self._index = faiss.downcast_index(self._outer.index)
        self._lists: Any = faiss.try_extract_index_ivf(self._index)
        self._rows: int = self._index.ntotal
        self._check_counts()
        self.description = {
            "type": type(self._index).__name__,
            "rows": self._rows,
            "dimension": self._index.d,
            "has_ids": self._ids is not None or self._lists is not None,
        }

    def _check_counts(self) -> None:
        """Refuse an index whose parts do not hold as many vectors as it says."""
        held = {} if self._ids is None else {"ids": len(self._ids)}
        if self._lists is not None:
            lists = self._lists.invlists
            held["vectors in its lists"] = sum(lists.list_size(number) for number in range(lists.nlist))
        for name, count in held.items():
            if count != self._rows:
                raise _RefusalError(
                    f"{self._name} is damaged: it must hold {self._rows} {name}, as it says, got {count}. "
                    "Save it again."
                )

    def batches(self, start: int, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """Ids, or none, and rows from a row on."""
        parts = self._by_number(start, batch_size) if self._lists is None else self._by_list(start, batch_size)
        for numbers, rows in parts:
            yield numbers if self._ids is None else self._ids[numbers], rows

    def _by_number(self, start: int, batch_size: int) -> Iterator[tuple[Any, Any]]:
        for first in range(start, self._rows, batch_size):
            count = min(batch_size, self._rows - first)
            try:
                rows = self._index.reconstruct_n(first, count)
            except RuntimeError as err:
                raise _RefusalError(
                    f"{self._name} must give its vectors back, but {type(self._index).__name__} cannot: "
                    f"{_said(err)}. Save the vectors themselves."
                ) from err
            yield None if self._ids is None else slice(first, first + count), rows

    def _by_list(self, start: int, batch_size: int) -> Iterator[tuple[Any, Any]]:
        import numpy as np

        faiss, lists = self._faiss, self._lists.invlists
        for number in range(lists.nlist):
            size = lists.list_size(number)
            first, start = min(start, size), max(0, start - size)
            if first == size:
                continue
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
            for begin in range(first, size, batch_size):
                rows = np.empty((min(batch_size, size - begin), self._lists.d), dtype=np.float32)
                for i, row in enumerate(rows):
                    self._lists.reconstruct_from_offset(number, begin + i, faiss.swig_ptr(row))
                yield ids[begin : begin + len(rows)], self._original(rows)

    def _original(self, rows: Any) -> Any:
        """Rows as they were before a transform that the index begins with, as far as it can be reversed."""
        if not hasattr(self._index, "reverse_chain"):
            return rows
        import numpy as np

        original = np.empty((len(rows), self._index.d), dtype=np.float32)
        self._index.reverse_chain(len(rows), self._faiss.swig_ptr(rows), self._faiss.swig_ptr(original))
        return original


@contextmanager
def _limited(size: int) -> Iterator[None]:
    """Bounds memory from now on, and time within, by the size of the file, where the system can; no core is dumped."""
    if sys.platform != "linux":
        yield
        return
    import resource

    def limit(kind: int, most: int) -> tuple[int, int]:
        soft, hard = resource.getrlimit(kind)
        if soft == resource.RLIM_INFINITY or soft > most:
            resource.setrlimit(kind, (most, hard))
        return soft, hard

    limit(resource.RLIMIT_CORE, 0)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limit(resource.RLIMIT_AS, used + 4 * size + _BYTES + (os.cpu_count() or 1) * _BYTES_OF_CORE)
    taken = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
    before = limit(resource.RLIMIT_CPU, taken + _SECONDS + size // _BYTES_A_SECOND)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)


def _private_output() -> IO[bytes]:
    """Standard output for answers alone: what FAISS prints goes to the errors."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _answer(answers: IO[bytes], what: dict[str, Any], *arrays: Any) -> None:
    answers.write(json.dumps(what).encode() + b"\n")
    for array in arrays:
        if array is not None:
            answers.write(array.tobytes())
    answers.flush()


def _said(err: Exception) -> str:
    """What an error says, without FAISS's own functions and files before it."""
    return str(err).strip().partition("\n")[0].rpartition("Error: ")[2].rstrip(".")


if __name__ == "__main__":
    main()
