"""Optional packages, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def imported(module: str, package: str | None = None) -> Any:
    """A module of an optional package.

    Args:
        module: Its dotted name, as ``"pyarrow.parquet"``.
        package: What pip installs it by, such as an extra. None: the extra ``bulk``, which brings pyarrow.

    Raises:
        ImportError: If it is not installed.

    >>> imported("json").__name__
    'json'
    """
    try:
        return import_module(module)
    except ImportError as err:
        name, wanted = module.partition(".")[0], package or '"st-keytokens[bulk]"'
        raise ImportError(f"{name} must be installed for this, got none. Run pip install {wanted}.") from err
