"""Files: replaced atomically, held by one writer, and read so that any bytes give a value or a ValueError."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import threading
import tokenize
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

_LONGEST_NAME = 255  # bytes, of most file systems
_BLOCK = 1 << 20  # bytes of a file to be hashed that are read at a time


def parse_json(content: str | bytes, where: object) -> dict[str, Any]:
    """A JSON object.

    Args:
        content: What is to be one; bytes are UTF-8.
        where: What errors call it.

    Raises:
        ValueError: If it is anything else, whatever it is: no UTF-8, nested too deep, a number of too many digits.
    """
    try:
        value = json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{where} must be JSON, got an error: {err}.") from err
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(value).__name__}.")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; see :func:`parse_json`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds anything else.
    """
    return parse_json(path.read_bytes(), path)


def json_checksum(content: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, of everything that a JSON object says but its ``checksum``.

    Args:
        content: As JSON gives it back: no tuples, no keys but strings.

    >>> json_checksum({"a": [1]}) == json_checksum({"a": [1], "checksum": "of it"})
    True
    """
    said = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def is_path(name: str) -> bool:
    """Whether the system can have a file of that name."""
    try:
        parts = os.fsencode(name).split(b"/")
        return bool(name) and not any(b"\0" in part or len(part) > _LONGEST_NAME for part in parts)
    except UnicodeEncodeError:
        return False


def read_npy(path: Path) -> NDArray[Any]:
    """The one array of numbers of a ``.npy`` file, memory-mapped, read-only.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is anything else, or its size is not what its header says.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _NPY_HEADERS:
                raise ValueError(f"its version is {version}")
            shape, is_fortran, dtype = _NPY_HEADERS[version](file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as err:
        raise ValueError(f"{path} must be a .npy file of numbers, got an error: {err}.") from err
    if not _is_sound(shape, dtype):
        raise ValueError(f"{path} must be a .npy file of numbers, got {dtype!s:.60} of shape {shape!s:.60}.")
    if size - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{path} must have the bytes of one array of {dtype} of shape {shape!s:.60}, got {size - start}."
        )
    order: Any = "F" if is_fortran else "C"
    if size == start:
        return np.zeros(shape, dtype, order)
    return np.memmap(path, dtype, "r", start, shape, order)


_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_DIMENSIONS, _MAX_BYTES = 32, 1 << 62  # numpy's own limits are higher, and a length of 0 does not lift them


def _is_sound(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether numpy takes a shape of numbers, however many elements it has."""
    is_shape = len(shape) <= _MAX_DIMENSIONS and not any(type(length) is not int or length < 0 for length in shape)
    return dtype.kind in "biuf" and is_shape and math.prod(max(1, part) for part in shape) < _MAX_BYTES // 16


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If the file is truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, RuntimeError, KeyError, AttributeError, TypeError, ValueError, OverflowError) as err:
        raise ValueError(f"{path} must be a whole safetensors file, got an error: {err}. Delete it.") from err


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file atomically: a reader finds the old content or the new, whenever the process dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process that died, or a link
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class WriterLock:
    """A lock file that one writer of all threads and processes holds; it is free when its process is dead.

    It is ``flock`` on POSIX, which a forked child does not keep, and a locked byte on Windows. Where a file system
    has no locks, everybody gets it.

    Args:
        path: The file, made where it is missing, and removed by :meth:`release`.

    Raises:
        BlockingIOError: If another holds it.
        OSError: If the file cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = WriterLock(Path(folder, ".lock"))
    ...     try:
    ...         WriterLock(Path(folder, ".lock"))
    ...     except BlockingIOError:
    ...         print("held")
    ...     lock.release()
    held
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                _lock(descriptor)
                is_current = _is_file(descriptor, path)
            except BaseException:
                os.close(descriptor)
                raise
            if is_current:  # its last holder may have removed it meanwhile
                break
            os.close(descriptor)
        self._close = weakref.finalize(self, _let_go, descriptor)
        _held.add(self)
        _register_fork()

    def release(self) -> None:
        """Frees it; once is enough."""
        if self._close.alive:
            if os.name != "nt":  # there, an open file cannot be removed, nor one that another has opened since
                self.path.unlink(missing_ok=True)
            self._close()
            _held.discard(self)
            if os.name == "nt":
                _unlink_if_free(self.path)

    def _forget(self) -> None:
        """In a forked child: the parent's lock is not the child's to keep."""
        self._close()


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()
_is_registered = False


def _register_fork() -> None:
    global _is_registered
    if not _is_registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_all)
    _is_registered = True


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()
    _held.clear()


def _unlink_if_free(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def _lock(descriptor: int) -> None:
    """Lock an open file, or raise BlockingIOError at once."""
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # of Windows
        except OSError as err:
            if err.errno in (errno.EACCES, errno.EDEADLK):
                raise BlockingIOError(err.errno, "another holds the lock") from err
            if err.errno not in (*_NO_LOCKS, errno.EINVAL):
                raise
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno not in _NO_LOCKS:
            raise


def _let_go(descriptor: int) -> None:
    """Unlock and close an open file; closing alone would let Windows unlock it when it likes."""
    if os.name == "nt":
        import msvcrt

        with suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]  # of Windows
    os.close(descriptor)
