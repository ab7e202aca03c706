"""Lines of a stream of bytes that may be compressed, and in UTF-8 or UTF-16, with any of the three line ends."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import IO, Any, NoReturn

__all__ = ["COMPRESSED_ENDINGS", "decoded_lines"]

COMPRESSED_ENDINGS = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")  # of names; the first bytes are what counts

_CHUNK = 1 << 16  # bytes, or characters
_BYTE_ORDER_MARKS = {  # that of UTF-32 begins as that of UTF-16
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF32_LE: "UTF-32-LE",
    codecs.BOM_UTF32_BE: "UTF-32-BE",
    codecs.BOM_UTF16_LE: "UTF-16-LE",
    codecs.BOM_UTF16_BE: "UTF-16-BE",
}
_NO_TEXTS = {b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"%PDF-": "a PDF"}
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def decoded_lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Lines with their ends, and their numbers from 1; a line is given as soon as it has been written.

    Args:
        file: What to read. Need not be seekable.
        name: What errors call it.

    Raises:
        ImportError: If it is compressed with Zstandard and nothing that reads it is installed.
        OSError: If it cannot be read.
        ValueError: If it is no text, is not in the encoding of its byte order mark (without one: UTF-8), or is
            compressed and damaged.
    """
    stream = _decompressed(file, name)
    head = _head(stream, _BYTE_ORDER_MARKS, name)
    mark = next((mark for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), b"")
    encoding = _BYTE_ORDER_MARKS.get(mark, "UTF-8")
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(None, translate=False)  # holds back a CR that an LF may follow
    number, position, begun = 0, len(mark), list[str]()
    chunk = head[len(mark) :] or _read(stream, name)
    while True:
        held = len(decoder.getstate()[0])
        failed: UnicodeDecodeError | None = None
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as err:
            failed, text = err, err.object[: err.start].decode(encoding)
            position += err.start - held
        is_last = not chunk or failed is not None
        for line in io.StringIO(newlines.decode(text, final=is_last), newline=""):
            begun.append(line)
            if line[-1] in "\r\n":
                number += 1
                yield number, "".join(begun)
                begun.clear()
        if failed is not None:
            raise ValueError(
                f"{name}:{number + 1}: must be {encoding}, got the byte 0x{failed.object[failed.start]:02x} at "
                f"position {position} of the file. {_advice(encoding)}"
            ) from failed
        if is_last:
            break
        position += len(chunk)
        chunk = _read(stream, name)
    if begun:
        yield number + 1, "".join(begun)


def _advice(encoding: str) -> str:
    return "Convert it to UTF-8." if encoding == "UTF-8" else "Copy it again, or convert it to UTF-8."


def _decompressed(file: IO[bytes], name: str) -> IO[bytes]:
    """The stream, decompressed as often as it is compressed."""
    frames = [b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i, 0x2A, 0x4D, 0x18]) for i in range(16))]  # with skippable ones
    openers: dict[bytes, Callable[[Any], Any]] = {
        b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
        b"BZh": bz2.BZ2File,
        b"\xfd7zXZ\x00": lzma.LZMAFile,
        **dict.fromkeys(frames, lambda raw: io.BufferedReader(_Zstandard(raw, name), _CHUNK)),
    }
    while True:
        head = _head(file, [*openers, *_NO_TEXTS, *_BYTE_ORDER_MARKS], name)
        for magic, what in _NO_TEXTS.items():
            if head.startswith(magic):
                raise ValueError(f"{name} must be text, got {what}. Unpack or convert it first.")
        opener = next((opener for magic, opener in openers.items() if head.startswith(magic)), None)
        file = io.BufferedReader(_Rejoined(head, file), _CHUNK)
        if opener is None or (head.startswith(b"BZh") and not _is_bzip2(head)):
            return file
        file = opener(file)


def _is_bzip2(head: bytes) -> bool:
    """Whether what follows ``BZh``, as a text may begin, is a level and the start or the end of a stream."""
    return head[3:4].isdigit() and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")


def _head(file: IO[bytes], magics: Any, name: str) -> bytes:
    """The first bytes: some, and so many that it is clear which of the magics they begin with."""
    longer = [magic + b"0" * 7 if magic == b"BZh" else magic for magic in magics]
    head = _read(file, name)
    while True:
        is_open = any(len(head) < len(long) and head == long[: len(head)] for long in longer)
        is_open |= head.startswith(b"BZh") and len(head) < 10 and not head[3:].strip(b"0123456789")
        more = _read(file, name) if head and is_open else b""
        if not more:
            return head
        head += more


def _read(file: IO[bytes], name: str) -> bytes:
    """What there is next, at least a byte unless it is the end."""
    try:
        data: bytes = file.read1(_CHUNK)  # type: ignore[attr-defined]  # buffered readers have it
        return data
    except _BROKEN as err:
        raise _damaged(name, err) from err
    except OSError as err:
        if err.errno is None:  # what bz2 says of damage
            raise _damaged(name, err) from err
        raise OSError(err.errno, f"{name} must be readable, got an error: {err.strerror}") from err


def _damaged(name: str, err: Exception) -> ValueError:
    return ValueError(f"{name} must be a whole compressed file, got an error: {err}. Copy it again.")


class _Rejoined(io.RawIOBase):
    """A stream whose head has been read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._rest.read1(len(buffer))  # type: ignore[attr-defined]
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


class _Zstandard(io.RawIOBase):
    """A stream of Zstandard frames, decompressed; one that is cut short is an error."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._new = file, _zstandard_decompressor(name)
        self._frame: Any = None
        self._data, self._rest = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            packed = self._rest or self._file.read(1 << 13)
            self._rest = b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("it ends before its last frame does")
                return 0
            self._frame = self._new() if self._frame is None else self._frame
            try:
                self._data = self._frame.decompress(packed)
            except MemoryError:
                raise
            except Exception as err:  # each package has its own
                raise EOFError(str(err)) from err
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        part, self._data = self._data[: len(buffer)], self._data[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _zstandard_decompressor(name: str) -> Callable[[], Any]:
    """What makes a decompressor of one frame: Python's own from 3.14 on, else that of the package zstandard."""
    try:
        return import_module("compression.zstd").ZstdDecompressor  # type: ignore[no-any-return]
    except ImportError:
        pass
    try:
        package = import_module("zstandard")
    except ImportError as err:
        _refuse_zstandard(name, err)
    return lambda: package.ZstdDecompressor().decompressobj()


def _refuse_zstandard(name: str, err: ImportError) -> NoReturn:
    raise ImportError(
        f"{name} is compressed with Zstandard, which needs Python 3.14 or the package zstandard. Run pip install "
        "'st-keytokens[zstandard]', or decompress it first."
    ) from err
