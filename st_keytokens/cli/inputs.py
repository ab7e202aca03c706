"""What the commands read: a corpus that can be read several times, and texts as they come."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from st_keytokens.cli.console import Console, UserError, one_line
from st_keytokens.shared.document_files import Part, Record, read_documents, standard_input

if TYPE_CHECKING:
    from st_keytokens.index import Document

T = TypeVar("T")


class InputCorpus:
    """Documents of an input, read through once at the start, so that a wrong line is found before hours of work.

    A document without an id gets one made of its content, the same in every run.

    Args:
        source: Of :func:`~st_keytokens.shared.document_files.read_documents`; standard input is kept.
        arguments: The command's, with the options of reading.

    Attributes:
        name: What errors call the source.

    Raises:
        OSError: If the source cannot be opened.
        UserError: If metadata cannot be indexed.
        ValueError: If the source cannot be read as documents.
    """

    def __init__(self, source: str, arguments: Namespace) -> None:
        from st_keytokens.index.documents import packed_metadata

        self.name = "standard input" if source == "-" else source
        self._stack = ExitStack()
        self._read = self._stack.enter_context(kept_input(source, arguments))
        self._length = 0
        for document in self:
            self._length += 1
            try:
                packed_metadata([document.metadata], 1)
            except (TypeError, ValueError) as err:
                raise UserError(f"{self.name}: document {document.id!r}: {err}") from err

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Document]:
        from st_keytokens.index import Document

        for record in self._read():
            identifier = content_id(record) if record.id is None else record.id
            yield Document(identifier, record.text, record.metadata)

    def check_not_empty(self) -> None:
        """Refuses a corpus without documents."""
        if not self._length:
            raise UserError(f"{self.name} must hold at least one document, got none.")

    def __enter__(self) -> InputCorpus:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


@dataclass(frozen=True)
class CorpusTexts:
    """The texts of a corpus, as often as they are wanted."""

    corpus: InputCorpus

    def __len__(self) -> int:
        return len(self.corpus)

    def __iter__(self) -> Iterator[str]:
        return (document.text or "" for document in self.corpus)


@contextmanager
def kept_input(source: str, arguments: Namespace) -> Iterator[Callable[[], Iterator[Record]]]:
    """What reads an input as often as it is called; standard input is kept in a temporary file for so long."""
    options = _reading_options(arguments)
    if source != "-":
        yield partial(read_documents, source, **options)
        return
    with tempfile.TemporaryDirectory(prefix="keytokens-") as folder:
        path = Path(folder, "input")
        with path.open("wb") as file:
            shutil.copyfileobj(standard_input(), file)
        yield partial(read_documents, path, name="standard input", **options)


def read_texts(
    arguments: Namespace, part: Part, batch_size: int, console: Console | None = None
) -> Iterator[list[Record]]:
    """Batches of texts of the command line, of an input, or of standard input, which is answered line by line."""
    given, source = arguments.texts, arguments.input
    if given and given != ["-"]:
        return batches((Record(None, text) for text in given), batch_size)
    if source is None:
        if not given and (sys.stdin is None or sys.stdin.isatty()):
            raise UserError("texts must be given as arguments, with --input or on standard input, got none.")
        source = "-"
    records = read_documents(source, part=part, **_reading_options(arguments))
    name = "standard input" if source == "-" else source
    return _said_if_none(batches(records, 1 if source == "-" else batch_size), name, console)


def _said_if_none(found: Iterator[list[Record]], name: str, console: Console | None) -> Iterator[list[Record]]:
    is_empty = True
    for batch in found:
        is_empty = False
        yield batch
    if is_empty and console is not None:
        console.message(f"{one_line(name)} holds no text.")


def _reading_options(arguments: Namespace) -> dict[str, Any]:
    """The options of reading, for ``read_documents``."""
    return {name: getattr(arguments, name) for name in ("text_field", "id_field", "file_format")}


def content_id(record: Record) -> str:
    """An id made of text and metadata: 16 hexadecimal digits.

    >>> content_id(Record(None, "text"))
    '8489fd655aa3b7fd'
    """
    content = json.dumps([record.text, record.metadata], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of up to ``size`` items.

    >>> list(batches(iter("abc"), 2))
    [['a', 'b'], ['c']]
    """
    while batch := list(islice(items, size)):
        yield batch
