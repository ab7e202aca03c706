"""What to do when memory runs out, told in one line."""

from __future__ import annotations

import errno
from argparse import Namespace

from st_keytokens.cli.console import one_line

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")  # torch's CPU allocators raise RuntimeError
_WIDTH = 160  # characters of the error that are shown; CUDA's goes on with advice to programmers


def is_out_of_memory(err: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of an accelerator, has run out.

    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")), is_out_of_memory(KeyError())
    (True, False)
    """
    if isinstance(err, RuntimeError):
        return any(sign in str(err).lower() for sign in _SIGNS)
    return isinstance(err, MemoryError) or (isinstance(err, OSError) and err.errno == errno.ENOMEM)


def memory_advice(err: BaseException, arguments: Namespace) -> str:
    """The error, and the options that help.

    Args:
        err: One of those of :func:`is_out_of_memory`.
        arguments: The command's.
    """
    found = one_line(str(err) or type(err).__name__, _WIDTH)
    size = getattr(arguments, "batch_size", None)
    if size is None:
        return f"memory must hold the model and a text, got: {found} Choose another --device."
    return (
        f"--batch-size must be small enough for the memory there is, got {size}: {found} Make it smaller, or choose "
        "another --device."
    )
