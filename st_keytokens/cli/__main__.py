"""Runs the command line: ``python -m st_keytokens.cli``."""

from __future__ import annotations

import sys

from st_keytokens.cli import main

if __name__ == "__main__":
    sys.exit(main())
