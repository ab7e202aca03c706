"""Lucene through Anserini: documents as integer impacts in files that Anserini indexes and searches."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from st_keytokens.engines.engine import CollectionSettings, Engine
from st_keytokens.engines.records import Records
from st_keytokens.index.documents import Hit, checked_strings
from st_keytokens.index.filters import Condition
from st_keytokens.index.search import Side
from st_keytokens.shared.checks import checked_float, checked_int
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ImpactScale",
    "LuceneExport",
    "document_line",
    "query_line",
    "read_impacts",
    "read_queries",
    "read_run_lines",
]


_RUN_LINE = re.compile(r"(\S+) Q0 (.*) (\d+) (\S+) (\S+)", re.DOTALL)
_QUERY_ID = re.compile(r"\S+")


@dataclass(frozen=True)
class ImpactScale:
    """How weights become integers: multiples of ``step``, to the nearest.

    Attributes:
        largest: The largest weight, which becomes the largest integer.
        bits: The largest integer is ``2 ** bits - 1``.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of range.

    >>> scale = ImpactScale(largest=5.1)
    >>> scale.impacts(np.array([5.1, 1.0, 0.005]))
    array([255,  50,   0])
    """

    largest: float
    bits: int = 8

    def __post_init__(self) -> None:
        checked_float("largest", self.largest, minimum=0)
        checked_int("bits", self.bits, minimum=1, maximum=12)

    @property
    def step(self) -> float:
        """The weight that an impact of 1 stands for. A weight changes by half of it at most."""
        return float(self.largest / (2**self.bits - 1))

    def impacts(self, weights: NDArray[np.floating]) -> NDArray[np.int64]:
        """Integers for weights; 0 for those below half a step, which are left out of the files."""
        if not self.largest:
            return np.zeros(len(weights), np.int64)
        scaled = np.asarray(weights, np.float64) / self.largest * (2**self.bits - 1)
        return np.asarray(np.rint(scaled), np.int64)

    def score_error(
        self, query_scale: ImpactScale, query: NDArray[np.floating], document: NDArray[np.floating]
    ) -> float:
        """The most that rounding can change an inner product by, times both steps as it is.

        With an error of at most ``e`` in a document's weight ``w``, and of ``f`` in a query's ``q``, the product
        changes by ``q * e + w * f + e * f`` at most.

        Args:
            query_scale: The query's own.
            query: The query's weights of the terms that both have.
            document: The document's weights of these terms, in the same order.

        >>> scale = ImpactScale(largest=2.55)
        >>> scale.score_error(ImpactScale(largest=5.1), np.array([1.0, 2.0]), np.array([1.0, 0.5]))
        0.0301
        """
        half, query_half = self.step / 2, query_scale.step / 2
        bound = half * np.sum(query) + query_half * np.sum(document) + len(query) * half * query_half
        return round(float(bound), 12)


def document_line(id: str, text: str | None, terms: NDArray[np.integer], impacts: NDArray[np.int64]) -> str:
    """A document for Anserini's ``JsonVectorCollection``. Terms are named by their numbers.

    >>> document_line("a", None, np.array([3, 7]), np.array([255, 0]))
    '{"id": "a", "contents": "", "vector": {"3": 255}}'
    """
    vector = {str(term): impact for term, impact in zip(terms.tolist(), impacts.tolist(), strict=True) if impact}
    return json.dumps({"id": id, "contents": text or "", "vector": vector}, ensure_ascii=False)


def query_line(id: str, terms: NDArray[np.integer], impacts: NDArray[np.int64]) -> str:
    r"""A query for the topic reader ``TsvString``, in which a term comes as often as its impact is.

    Raises:
        ValueError: If the id is empty or has blanks, which a run file could not keep.

    >>> query_line("q1", np.array([3, 7]), np.array([2, 1]))
    'q1\t3 3 7'
    """
    if not _QUERY_ID.fullmatch(id):
        raise ValueError(f"query_ids must have characters and no blanks, got {id!r:.60}.")
    repeated = np.repeat(terms, impacts).tolist()
    return f"{id}\t{' '.join(map(str, repeated))}"


def read_impacts(folder: str | PathLike[str]) -> Iterator[tuple[str, dict[int, int]]]:
    """Ids and impacts of the documents in all files of a collection.

    Raises:
        ValueError: If a line is no document with integer impacts.
    """
    for path in sorted(Path(folder).glob("*.jsonl")):
        for number, line in _lines(path):
            try:
                document = json.loads(line)
                vector = {int(term): impact for term, impact in document["vector"].items()}
                yield document["id"], _checked(vector)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
                raise ValueError(f"{path}, line {number}, must be a document with integer impacts.") from err


def read_queries(path: str | PathLike[str]) -> Iterator[tuple[str, dict[int, int]]]:
    """Ids and impacts of the queries in a file.

    Raises:
        ValueError: If a line is no query.
    """
    for number, line in _lines(Path(path)):
        id, _, terms = line.partition("\t")
        try:
            yield id, dict(Counter(map(int, terms.split())))
        except ValueError as err:
            raise ValueError(f"{path}, line {number}, must be an id, a tab and numbers of terms.") from err


def read_run_lines(path: str | PathLike[str]) -> Iterator[tuple[str, str, float]]:
    """Query ids, document ids and scores of a run in TREC's format, whose document ids may have blanks.

    Raises:
        ValueError: If a line is not of a run.
    """
    for number, line in _lines(Path(path)):
        found = _RUN_LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{path}, line {number}, must be of a run in TREC's format, got {line!r:.60}.")
        yield found[1], found[2], float(found[4])


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            yield number, line.removesuffix("\n")


def _checked(vector: Mapping[int, int]) -> dict[int, int]:
    if not all(type(impact) is int and impact > 0 for impact in vector.values()):
        raise ValueError("impacts must be positive integers")
    return dict(vector)


_MAX_ID_BYTES = 32_766
_ROWS_PER_FILE = 100_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY, terms BLOB NOT NULL, weights BLOB NOT NULL, largest REAL NOT NULL, text TEXT, metadata TEXT
);
"""


class LuceneExport(Engine):
    r"""A directory from which Anserini makes a Lucene index of integer impacts.

    Documents are kept with their weights as they are in an SQLite file, so that they can be replaced and deleted, and
    :meth:`flush` writes them to ``collection/*.jsonl`` as integers: the largest weight of all becomes the largest
    integer, and every other one is rounded to the nearest multiple of ``scale.step``.
    :meth:`ImpactScale.score_error` says what that makes of a score at most. Searching is Anserini's: write queries
    with :meth:`write_queries`, run it, and read its run with :meth:`read_run`. There are no dense rows and no filters.

    ::

        java -cp anserini-fatjar.jar io.anserini.index.IndexCollection -collection JsonVectorCollection \
            -generator DefaultLuceneDocumentGenerator -impact -pretokenized -optimize -threads 4 \
            -input DIRECTORY/collection -index INDEX
        java -cp anserini-fatjar.jar io.anserini.search.SearchCollection -topicReader TsvString \
            -impact -pretokenized -hits 1000 -index INDEX -topics queries.tsv -output run.txt

    Args:
        path: The directory, made by ``create``; its parent must be there.
        bits: Bits of an impact, from 1 to 12.

    Raises:
        TypeError: If ``bits`` is not an integer.
        ValueError: If it is out of range.

    Source:
        https://github.com/castorini/anserini (1.7): ``JsonVectorCollection``, ``TsvStringTopicReader``.
    """

    def __init__(self, path: str | PathLike[str], *, bits: int = 8) -> None:
        super().__init__(str(path))
        self.path = Path(path)
        self.bits = checked_int("bits", bits, minimum=1, maximum=12)
        self._database: sqlite3.Connection | None = None

    @property
    def scale(self) -> ImpactScale:
        """What the weights of the documents are rounded with, as they are now."""
        _ = self.settings
        ((largest,),) = self._opened().execute("SELECT max(largest) FROM documents")
        return ImpactScale(largest or 0.0, self.bits)

    def flush(self) -> None:
        """Write the collection anew, where documents have changed since."""
        scale = self.scale
        written = json.dumps({"largest": scale.largest, "bits": scale.bits})
        database, target = self._opened(), self.path / "collection"
        saved = database.execute("SELECT value FROM state WHERE name = 'written'").fetchone()
        if saved == (written,) and target.is_dir():
            return
        partial = self.path / "collection.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        lines = self._lines(scale)
        number = 0
        while part := list(islice(lines, _ROWS_PER_FILE)):
            with (partial / f"part-{number:05}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(line + "\n" for line in part)
            number += 1
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        with database:
            database.execute("INSERT OR REPLACE INTO state VALUES ('written', ?)", [written])

    def search(self, *arguments: Any, **settings: Any) -> NoReturn:
        """Not here: Anserini searches.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "LuceneExport must be searched with Anserini, got search(). Use write_queries(), Anserini and read_run()."
        )

    def write_queries(
        self, path: str | PathLike[str], queries: SparseEmbeddings, query_ids: Sequence[str] | None = None
    ) -> None:
        """Write queries for Anserini, each with a scale of its own, which changes no ranking.

        Args:
            path: The file.
            queries: Their weights. Queries without terms are left out: Anserini would stop at them.
            query_ids: Their ids, without blanks; by default ``"0"``, ``"1"`` and so on.

        Raises:
            ValueError: If lengths differ, or an id is twice, empty or has blanks.
        """
        ids = _query_ids(queries, query_ids)
        with Path(path).open("w", encoding="utf-8", newline="\n") as file:
            for id, (terms, weights) in zip(ids, queries, strict=True):
                if len(terms):
                    impacts = ImpactScale(float(weights.max()), self.bits).impacts(weights)
                    file.write(query_line(id, terms, impacts) + "\n")

    def read_run(
        self, path: str | PathLike[str], queries: SparseEmbeddings, query_ids: Sequence[str] | None = None
    ) -> list[list[Hit]]:
        """Read what Anserini found for the queries that were written.

        Returns:
            A list of hits for each query, best first, with scores on the scale of the weights.

        Raises:
            ValueError: If the file is no run, or has a query or a document that is not known.
        """
        ids, step, database = _query_ids(queries, query_ids), self.scale.step, self._opened()
        rows = {id: row for row, id in enumerate(ids)}
        results: list[list[Hit]] = [[] for _ in ids]
        for query_id, id, score in read_run_lines(path):
            known = database.execute("SELECT text, metadata FROM documents WHERE id = ?", [id]).fetchone()
            if query_id not in rows or known is None:
                raise ValueError(
                    f"{path} must be a run of these queries and documents, got query {query_id!r:.60} and document "
                    f"{id!r:.60}."
                )
            text, metadata = known
            row = rows[query_id]
            own = score * step * ImpactScale(float(queries.row(row)[1].max()), self.bits).step
            hits = results[row]
            hits.append(Hit(id, own, len(hits) + 1, text, json.loads(metadata or "{}"), {"sparse": own}))
        return results

    def close(self) -> None:
        """Close the SQLite file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def smallest_wait(self, error: Exception) -> float | None:
        """Another process that writes is temporary."""
        return 0.0 if isinstance(error, sqlite3.OperationalError) and "locked" in str(error) else None

    def _check_settings(self, settings: CollectionSettings) -> None:
        if settings.embedding_dimension:
            raise ValueError(
                f"embedding_dimension must be 0 for impacts, got {settings.embedding_dimension}. "
                "Keep dense rows in another engine."
            )

    def _read_settings(self) -> CollectionSettings | None:
        if not self._file.exists():
            return None
        try:
            saved = self._opened().execute("SELECT value FROM state WHERE name = 'settings'").fetchone()
        except sqlite3.DatabaseError as err:
            if self.smallest_wait(err) is not None:
                raise
            saved = None
        return CollectionSettings.from_json(None if saved is None else saved[0], self._where)

    def _create(self, settings: CollectionSettings) -> None:
        self.path.mkdir(exist_ok=True)
        with self._opened() as database:
            database.executescript(_SCHEMA)
            database.execute("INSERT OR IGNORE INTO state VALUES ('settings', ?)", [settings.to_json()])

    def _upsert(self, records: Records) -> None:
        rows = []
        for row, (terms, weights) in enumerate(records.hybrid.sparse):
            id, metadata = records.ids[row], records.metadata_of(row)
            if "\n" in id or len(id.encode()) > _MAX_ID_BYTES:
                raise ValueError(
                    f"ids must have no line breaks and at most {_MAX_ID_BYTES} bytes in a run file, got {id!r:.60}."
                )
            packed = json.dumps(metadata, ensure_ascii=False) if metadata else None
            largest = float(weights.max(initial=0.0))
            rows.append((id, terms.tobytes(), weights.tobytes(), largest, records.text(row), packed))
        with self._changing() as database:
            database.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _delete(self, ids: list[str]) -> None:
        with self._changing() as database:
            database.executemany("DELETE FROM documents WHERE id = ?", [(id,) for id in ids])

    def _search_side(
        self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None
    ) -> list[list[Hit]]:
        raise NotImplementedError

    def _count(self) -> int:
        ((count,),) = self._opened().execute("SELECT count(*) FROM documents")
        return int(count)

    def _lines(self, scale: ImpactScale) -> Iterator[str]:
        for id, text, terms, weights in self._opened().execute("SELECT id, text, terms, weights FROM documents"):
            yield document_line(
                id, text, np.frombuffer(terms, np.int32), scale.impacts(np.frombuffer(weights, np.float32))
            )

    @property
    def _file(self) -> Path:
        return self.path / "documents.sqlite"

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(self._file, timeout=30, check_same_thread=False)
        return self._database

    def _changing(self) -> sqlite3.Connection:
        """A transaction, after which the collection is to be written anew."""
        database = self._opened()
        database.execute("DELETE FROM state WHERE name = 'written'")
        return database


def _query_ids(queries: SparseEmbeddings, query_ids: Sequence[str] | None) -> list[str]:
    if query_ids is None:
        return [str(row) for row in range(len(queries))]
    ids = checked_strings("query_ids", query_ids, len(queries))
    if len(set(ids)) < len(ids):
        raise ValueError(f"query_ids must be unique, got {len(ids) - len(set(ids))} twice.")
    return ids
