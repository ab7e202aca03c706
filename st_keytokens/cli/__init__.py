"""The command line: ``st-keytokens``, or ``python -m st_keytokens.cli``.

Each command stands in the module named after it, its options with what it does; ``index`` holds ``add`` too, and
``search`` holds ``explain``. What several commands share: ``command_line``, ``options``, ``inputs``, ``encoders``,
``console``, ``streams``. Help and errors in the arguments do not wait for torch: a command imports what is heavy when
it runs, and nothing is imported before Ctrl-C is seen to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from st_keytokens.cli.streams import Interrupts, open_closed_descriptors, unfailing_stderr

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words after the program's name; None: those of this process, which then ends.

    Returns:
        0 when it is done, also where what reads stdout has left before the end; 2 for an error that the user can put
        right, told in one line on stderr; 130 after Ctrl-C. Messages that stderr does not take are lost, and the work
        goes on.
    """
    open_closed_descriptors()
    interrupts = Interrupts(is_last=arguments is None)
    with unfailing_stderr(), interrupts.noticed():
        with interrupts.ending_at_once():
            from st_keytokens.cli.command_line import run_command

        code = run_command(list(sys.argv[1:] if arguments is None else arguments), interrupts)
    interrupts.end(code)
    return code
