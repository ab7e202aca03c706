"""Documents and queries read from files: JSON Lines, CSV, TSV, text, BEIR directories, directories of text files."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, get_args

from st_keytokens.shared.checks import check_choice
from st_keytokens.shared.text_lines import COMPRESSED_ENDINGS, decoded_lines

__all__ = ["FileFormat", "Part", "Record", "read_documents", "standard_input"]

FileFormat = Literal["jsonl", "csv", "tsv", "text"]
Part = Literal["corpus", "queries"]

_FORMATS: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_ID_FIELDS = ("_id", "id")
_FIELD_LIMIT = 2**31 - 1  # the csv module's own limit is 131,072 characters a field; this fits a C long everywhere


@dataclass(frozen=True)
class Record:
    """One document, or query, as it was read.

    Attributes:
        id: Its id, or None where the source has none.
        text: Its text; may be empty.
        metadata: All other fields.
    """

    id: str | None
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


def read_documents(
    source: str | Path,
    *,
    file_format: FileFormat | None = None,
    text_field: str | None = None,
    id_field: str | None = None,
    part: Part = "corpus",
    name: str | None = None,
) -> Iterator[Record]:
    r"""Reads documents one by one; nothing but the current one is held.

    Args:
        source: A file, a directory, or ``"-"`` for standard input. A directory is either a BEIR collection (with
            ``corpus.jsonl``) or holds text files (``.txt``, ``.md``, at any depth), each of which is one document with
            its path as id; hidden files and directories are left out. What is compressed with gzip, bzip2, xz or
            Zstandard is known by its first bytes, whatever its name, as are UTF-8 and UTF-16 byte order marks; without
            one it must be UTF-8. Lines end in LF, CR LF or CR.
        file_format: ``"jsonl"``: an object a line. ``"csv"``, ``"tsv"``: the first row names the fields, and all
            values are strings. ``"text"``: one document a line, without ids. None: by the file's name; standard input
            and names without an ending are JSON Lines if they begin with ``{``, and plain text otherwise.
        text_field: Field of the text. None: ``text``, after ``title`` and a space where there is a title.
        id_field: Field of the id, a string or a number. None: ``_id`` or ``id``, where there is one.
        part: What is read of a BEIR directory: its documents or its queries.
        name: What errors call a file. None: its path.

    Returns:
        An iterator of records in the order of the source. Blank lines are left out, documents with an empty text not.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: While reading, if a file is compressed with Zstandard and nothing that reads it is installed.
        OSError: While reading, if a file or a directory in a directory cannot be read.
        ValueError: If standard input is closed, or an argument is not one of its choices; while reading, if a line
            cannot be read, or a field is missing or of a wrong type: the message begins with file and line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "corpus.jsonl")
        ...     _ = path.write_text('{"_id": 7, "title": "Mice", "text": "and men", "year": 1937}\n')
        ...     list(read_documents(path))
        [Record(id='7', text='Mice and men', metadata={'year': 1937})]
    """
    if file_format is not None:
        check_choice("file_format", file_format, get_args(FileFormat))
    check_choice("part", part, get_args(Part))
    if str(source) == "-":
        return _read_lines(standard_input(), name or "standard input", file_format, text_field, id_field)
    path = Path(source)
    if path.is_dir():
        beir = [file for ending in ("", *COMPRESSED_ENDINGS) if (file := path / f"{part}.jsonl{ending}").is_file()]
        if not beir and part == "corpus":
            return _read_folder(path)
        if not beir:
            raise FileNotFoundError(f"{path} must hold {part}.jsonl to be read as a directory, got none.")
        path, file_format = beir[0], "jsonl"
    if not path.exists():
        raise FileNotFoundError(f"input must be a file or directory that exists, got {str(source)!r}.")
    return _read_file(path, name or str(path), file_format or _format_of(path), text_field, id_field)


def _format_of(path: Path) -> FileFormat | None:
    ending = _ending(path)
    if not ending:
        return None
    if ending not in _FORMATS:
        raise ValueError(
            f"{path} must have a name that ends in {', '.join(_FORMATS)} (and maybe .gz, .bz2, .xz or .zst), got "
            f"{ending}. Name its format with file_format: {', '.join(get_args(FileFormat))}."
        )
    return _FORMATS[ending]


def _ending(path: Path) -> str:
    """The end of a file's name that tells its format, in lower case: that before one that tells a compression."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED_ENDINGS else path).suffix.lower()


def _read_folder(folder: Path) -> Iterator[Record]:
    paths = sorted(path for path in _files(folder) if _ending(path) in (".txt", ".md"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} must hold corpus.jsonl (BEIR) or text files (.txt, .md) that are not hidden, got neither."
        )
    for path in paths:
        with path.open("rb") as file:
            text = "".join(text for _, text in decoded_lines(file, str(path)))
        name = path.relative_to(folder).as_posix()
        yield Record(os.fsencode(name).decode("utf-8", "backslashreplace"), text.strip())


def _files(folder: Path) -> Iterator[Path]:
    """All files at any depth but hidden ones and those in hidden directories."""
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = (Path(parent, name) for name in names if not name.startswith("."))
        yield from (path for path in found if path.is_file())


def _refuse_folder(err: OSError) -> NoReturn:
    raise err


def _read_file(
    path: Path, name: str, file_format: FileFormat | None, text_field: str | None, id_field: str | None
) -> Iterator[Record]:
    with path.open("rb") as file:
        yield from _read_lines(file, name, file_format, text_field, id_field)


def standard_input() -> IO[bytes]:
    """What standard input gives.

    Raises:
        ValueError: If it is closed.
    """
    if sys.stdin is None:
        raise ValueError("standard input must be open to be read, got a closed one. Name a file, or pipe one in.")
    return sys.stdin.buffer


def _read_lines(
    file: IO[bytes], name: str, file_format: FileFormat | None, text_field: str | None, id_field: str | None
) -> Iterator[Record]:
    lines = decoded_lines(file, name)
    if file_format is None:
        before = []
        for line in lines:
            before.append(line)
            if line[1].strip():
                file_format = "jsonl" if line[1].lstrip().startswith("{") else "text"
                break
        lines = chain(before, lines)
    if file_format in (None, "text"):
        return (Record(None, text.strip()) for _, text in lines if text.strip())
    delimiter = "," if file_format == "csv" else "\t"
    rows = _json_rows(lines, name) if file_format == "jsonl" else _csv_rows(lines, name, delimiter)
    return (_record(fields, f"{name}:{number}", text_field, id_field) for number, fields in rows)


def _json_rows(lines: Iterable[tuple[int, str]], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as err:
            reason = (
                f"{err.msg.removesuffix(' at')} at column {err.colno}"
                if isinstance(err, json.JSONDecodeError)
                else str(err)
            )
            raise ValueError(f"{name}:{number}: must be one JSON object a line, got an error: {reason}.") from err
        if not isinstance(row, dict):
            raise ValueError(f"{name}:{number}: must be one JSON object a line, got {_kind(row)}.")
        yield number, row


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _csv_rows(lines: Iterable[tuple[int, str]], name: str, delimiter: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        previous = csv.field_size_limit(_FIELD_LIMIT)
        try:
            row = next(reader, None)
        except csv.Error as err:
            raise ValueError(
                f"{name}:{number}: must be {'CSV' if delimiter == ',' else 'TSV'}, got an error: {err}. "
                "Put fields that hold quotes or line ends into quotes, and double the quotes in them."
            ) from err
        finally:
            csv.field_size_limit(previous)
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = _header(row, f"{name}:{number}")
        elif len(row) != len(header):
            raise ValueError(f"{name}:{number}: must have {len(header)} fields as the header has, got {len(row)}.")
        else:
            yield number, dict(zip(header, row, strict=True))


def _header(names: Sequence[str], place: str) -> list[str]:
    names = [name.strip() for name in names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{place}: must name each field once, got {name!r} twice.")
    return names


def _record(fields: Mapping[str, Any], place: str, text_field: str | None, id_field: str | None) -> Record:
    text_name = "text" if text_field is None else text_field
    text = _text(fields, text_name, place)
    used = {text_name}
    if text_field is None and "title" in fields:
        used.add("title")
        title = "" if fields["title"] is None else _text(fields, "title", place)
        text = f"{title} {text}".strip() if title else text
    id_name = next((name for name in _ID_FIELDS if name in fields), None) if id_field is None else id_field
    identifier = None
    if id_name is not None:
        used.add(id_name)
        identifier = _identifier(fields, id_name, place)
    return Record(identifier, text, {name: value for name, value in fields.items() if name not in used})


def _text(fields: Mapping[str, Any], name: str, place: str) -> str:
    if name not in fields:
        raise ValueError(
            f"{place}: must have the field {name!r}, got {_listed(fields)}. Name the field of the text: text_field."
        )
    if not isinstance(fields[name], str):
        raise ValueError(f"{place}: {name!r} must be a string, got {_kind(fields[name])}.")
    text: str = fields[name]
    return text


def _identifier(fields: Mapping[str, Any], name: str, place: str) -> str:
    if name not in fields:
        raise ValueError(f"{place}: must have the field {name!r}, got {_listed(fields)}.")
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        kind = "an empty string" if value == "" else _kind(value)
        raise ValueError(f"{place}: {name!r} must be a string or a number, got {kind}. Name the field: id_field.")
    return str(value)


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, fields)) or "no field"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
