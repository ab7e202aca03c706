"""Standard streams and Ctrl-C as they come: closed streams, readers that have gone, interrupts at any moment."""

from __future__ import annotations

import _thread
import atexit
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import IO, Any

INTERRUPTED = "st-keytokens: interrupted"


def open_closed_descriptors() -> None:
    """Puts nothing behind those of the descriptors 0, 1 and 2 that are closed.

    Else the next file that is opened, one of an index, gets such a number, and what a library writes to its stderr
    goes into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_WRONLY if descriptor else os.O_RDONLY)  # the lowest free one: this
            os.set_inheritable(opened, True)


def abandon(stream: IO[str] | None) -> None:
    """Lets all that is still written to a stream go nowhere, what is left in its buffer as well, without an error."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]  # None has no fileno, see above
        finally:
            os.close(nowhere)


@contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Makes ``sys.stderr`` one that takes everything, also where it is closed or nobody reads it: work goes on."""
    with redirect_stderr(_Unfailing(sys.stderr)):
        yield


class _Unfailing(io.TextIOBase):
    """Writes to a stream until that fails, and from then on nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # tqdm asks
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return bool(self._try("isatty"))

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._stream.fileno())

    def _try(self, name: str, *arguments: Any) -> Any:
        if self._stream is None:
            return None
        try:
            return getattr(self._stream, name)(*arguments)
        except (OSError, ValueError):
            abandon(self._stream)
            self._stream = None


class Interrupts:
    """Knows whether there was a Ctrl-C: some libraries make other errors of its KeyboardInterrupt.

    Args:
        is_last: Whether the process ends after the command.

    Attributes:
        happened: Whether there was one.
    """

    def __init__(self, is_last: bool) -> None:
        self.happened = False
        self._is_last, self._is_at_once = is_last, False

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Notices them within; a process that ignores them, or has a handler of its own, goes on to do so."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._notice)
        try:
            with _none_lost():
                yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN if self._is_last else signal.default_int_handler)

    @contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """Within, where nothing is open yet, they end the process at once; not where it is to live on."""
        self._is_at_once = self._is_last
        try:
            yield
        finally:
            self._is_at_once = False

    def settle(self) -> None:
        """Ignores them from now on: the command is about to end."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == self._notice:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end(self, code: int) -> None:
        """Ends the process with this code where Python, after a KeyboardInterrupt, might end it with another."""
        if self._is_last and self.happened:
            with suppress(Exception):
                atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(code)

    def _notice(self, number: int, frame: Any) -> None:
        self.happened = True
        if self._is_at_once:
            with suppress(OSError):
                os.write(2, f"{INTERRUPTED}\n".encode())
            os._exit(130)
        raise KeyboardInterrupt


@contextmanager
def _none_lost() -> Iterator[None]:
    """Repeats an interrupt that came within a destructor, out of which Python lets no error."""
    report = sys.unraisablehook

    def hook(lost: Any) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            again = threading.Timer(0.01, _thread.interrupt_main)
            again.daemon = True
            again.start()
        else:
            report(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = report
