"""Raises an error once, at an audit event or a line of the package with a number."""

from __future__ import annotations

import gc
import itertools
import linecache
import sys
from pathlib import Path

import numpy as np

import st_keytokens.index

PACKAGE = str(Path(st_keytokens.index.__file__).parent)
ERRORS = (KeyboardInterrupt, SystemExit, RuntimeError)


class Interrupter:
    """Counts events, and raises once, at the one of a number. Its hook stays, as Python cannot remove one."""

    def __init__(self):
        self.kind, self.left, self.count, self.is_on = "", None, 0, False
        self.has_hook = False
        self._errors = itertools.cycle(ERRORS)

    def event(self):
        if self.is_on:
            self.count += 1
            if self.left is not None and self.count > self.left:
                self.is_on = False
                raise next(self._errors)("interrupted by the test")

    def on_audit(self, name, arguments):
        if self.is_on and self.kind == "audit":  # not those of the tracing of lines, such as of linecache
            self.event()

    def on_line(self, frame, kind, argument):
        """Calls, lines, returns and exceptions, but for lines that begin a ``with``.

        Such a line comes again after its body, before ``__exit__`` is called. No signal is delivered between the two.
        """
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if kind != "line" or not line.lstrip().startswith("with "):
            self.event()
        return self.on_line

    def run(self, kind, number, operation):
        """Whether the operation was interrupted, and how many events there were."""
        if kind == "audit" and not self.has_hook:
            sys.addaudithook(self.on_audit)
            self.has_hook = True
        self.kind, self.left, self.count = kind, number, 0
        previous = sys.gettrace()
        gc.disable()
        if kind == "lines":
            sys.settrace(self.on_line)
        self.is_on = True
        try:
            operation()
        except BaseException as err:
            if not any("interrupted by the test" in str(e) for e in (err, err.__cause__, err.__context__) if e):
                raise
            return True, self.count
        finally:
            self.is_on = False
            sys.settrace(previous)
            gc.enable()
        return False, self.count


INTERRUPTER = Interrupter()


def evenly(count, most):
    """At most so many of so many numbers, evenly chosen."""
    return sorted(set(np.linspace(0, count - 1, min(most, count)).astype(int).tolist()))
