"""Lucene through Anserini: documents as integer impacts in files that Anserini indexes and searches."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from st_keytokens.checks import checked_int
from st_keytokens.engines.collection_settings import CollectionSettings
from st_keytokens.engines.engine import Engine
from st_keytokens.engines.filter_tree import Condition
from st_keytokens.engines.fused_search import Side
from st_keytokens.engines.lucene_impacts import ImpactScale, document_line, query_line, read_run_lines
from st_keytokens.engines.records import Records
from st_keytokens.index.documents import Hit, checked_strings
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

__all__ = ["LuceneExport"]

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
