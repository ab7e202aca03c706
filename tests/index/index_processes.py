"""Run a function in a process of its own."""

from __future__ import annotations

import multiprocessing
import traceback

# A forked child has everything imported already. It opens its own index and runs no code of other threads.
CONTEXT = multiprocessing.get_context("fork")


def in_process(function, *arguments):
    """The result of the function, called in another process."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    finally:
        process.join()
    if error is not None:
        raise RuntimeError(error)
    return result


def _call(sender, function, arguments):
    try:
        sender.send((function(*arguments), None))
    except BaseException:
        sender.send((None, traceback.format_exc()))
