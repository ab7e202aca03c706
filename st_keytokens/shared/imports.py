"""Imports on first use: names of our own packages, and packages that are optional."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
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


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported with their first use.

    torch, transformers and sentence-transformers take seconds to import; a name brings only what it needs.

    Args:
        package: The package's ``__name__``.
        modules: In which module of the package each name is.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names
