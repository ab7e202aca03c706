"""Test collections in the BEIR layout, with everything that is odd about them reported."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from st_keytokens.shared.document_files import Record, read_documents

__all__ = ["Collection", "Finding", "Judgement", "Report", "read_collection"]

Judgement = tuple[str, str, int]
"""Query id, document id, relevance: above 0 is relevant."""

_EXAMPLES = 10


@dataclass
class Finding:
    """How often something odd was found.

    Attributes:
        count: How often.
        examples: The first ten ids (or, where there is none, line-like positions ``#1``, ``#2``, ...).
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Counts one more."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


@dataclass
class Report:
    """What was read, and what was odd about it. Nothing is left out without being counted here.

    Attributes:
        documents: Documents that are searched.
        queries: Queries that are measured.
        judgements: Judgements of those queries, those to absent documents included.
        documents_without_id: Searched under a made-up id ``#n``; nothing can judge them.
        documents_twice: A later document with an id that was there already; left out.
        documents_empty: Documents without text; searched.
        queries_without_id: Left out: nothing can judge them.
        queries_twice: A later query with an id that was there already; left out.
        queries_empty: Queries without text; measured.
        queries_unjudged: Queries that no judgement names, as those of other splits; left out.
        queries_without_relevant: Queries with judgements, none of them above 0; left out.
        queries_unanswerable: Queries all of whose relevant documents are absent; measured, and always 0.
        judgements_twice: A later judgement of the same query and document; left out.
        judgements_of_absent_queries: Left out.
        judgements_of_absent_documents: Kept: a relevant document that is not there counts as not found.
    """

    documents: int = 0
    queries: int = 0
    judgements: int = 0
    documents_without_id: Finding = field(default_factory=Finding)
    documents_twice: Finding = field(default_factory=Finding)
    documents_empty: Finding = field(default_factory=Finding)
    queries_without_id: Finding = field(default_factory=Finding)
    queries_twice: Finding = field(default_factory=Finding)
    queries_empty: Finding = field(default_factory=Finding)
    queries_unjudged: Finding = field(default_factory=Finding)
    queries_without_relevant: Finding = field(default_factory=Finding)
    queries_unanswerable: Finding = field(default_factory=Finding)
    judgements_twice: Finding = field(default_factory=Finding)
    judgements_of_absent_queries: Finding = field(default_factory=Finding)
    judgements_of_absent_documents: Finding = field(default_factory=Finding)

    @property
    def findings(self) -> dict[str, Finding]:
        """What was odd, by name; only what was found at least once."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Finding) and value.count}

    def to_dict(self) -> dict[str, object]:
        """Counts and examples, zeros included."""
        return asdict(self)


@dataclass(frozen=True)
class Collection:
    """Documents, queries and judgements, checked.

    Attributes:
        name: What tables call it.
        doc_ids: Ids of the documents, unique.
        documents: Their texts, in the same order.
        query_ids: Ids of the queries that are measured: those with a relevant document.
        queries: Their texts, in the same order.
        qrels: For each of those queries the relevance of documents by id.
        report: What was odd.
    """

    name: str
    doc_ids: list[str]
    documents: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]
    report: Report

    @classmethod
    def build(
        cls, name: str, documents: Iterable[Record], queries: Iterable[Record], judgements: Iterable[Judgement]
    ) -> Collection:
        """Checks and counts what it is given.

        Args:
            name: What tables call it.
            documents: Documents with ids.
            queries: Queries with ids.
            judgements: Query id, document id, relevance.

        Returns:
            The collection; its report says what was kept and what was left out.

        Raises:
            ValueError: If there is no document, or no query with a relevant document.

        >>> documents = [Record("d1", "mice"), Record("d2", "")]
        >>> made = Collection.build("tiny", documents, [Record("q", "mouse")], [("q", "d1", 1), ("q", "d9", 1)])
        >>> {name: finding.count for name, finding in made.report.findings.items()}
        {'documents_empty': 1, 'judgements_of_absent_documents': 1}
        """
        report = Report()
        texts: dict[str, str] = {}
        for position, record in enumerate(documents, 1):
            identifier = record.id
            if identifier is None:
                identifier = f"#{position}"
                report.documents_without_id.add(identifier)
            if identifier in texts:
                report.documents_twice.add(identifier)
                continue
            texts[identifier] = record.text
            if not record.text.strip():
                report.documents_empty.add(identifier)
        if not texts:
            raise ValueError(f"collection must hold at least one document, got none in {name}.")
        questions = _queries(queries, report)
        qrels = _qrels(judgements, questions, texts, report)
        questions = {identifier: text for identifier, text in questions.items() if identifier in qrels}
        report.documents, report.queries = len(texts), len(questions)
        report.judgements = sum(map(len, qrels.values()))
        if not questions:
            raise ValueError(
                f"collection must hold a query with a relevant document, got none in {name}. "
                "Check that queries and judgements are of the same split."
            )
        return cls(
            name=name,
            doc_ids=list(texts),
            documents=list(texts.values()),
            query_ids=list(questions),
            queries=list(questions.values()),
            qrels={identifier: qrels[identifier] for identifier in questions},
            report=report,
        )


def _queries(queries: Iterable[Record], report: Report) -> dict[str, str]:
    texts: dict[str, str] = {}
    for position, record in enumerate(queries, 1):
        if record.id is None:
            report.queries_without_id.add(f"#{position}")
        elif record.id in texts:
            report.queries_twice.add(record.id)
        else:
            texts[record.id] = record.text
    return texts


def _qrels(
    judgements: Iterable[Judgement], queries: dict[str, str], documents: dict[str, str], report: Report
) -> dict[str, dict[str, int]]:
    """Judgements of the queries that have a relevant document."""
    qrels: dict[str, dict[str, int]] = {identifier: {} for identifier in queries}
    for query_id, doc_id, relevance in judgements:
        pair = f"{query_id} {doc_id}"
        if query_id not in qrels:
            report.judgements_of_absent_queries.add(pair)
        elif doc_id in qrels[query_id]:
            report.judgements_twice.add(pair)
        else:
            qrels[query_id][doc_id] = relevance
            if doc_id not in documents:
                report.judgements_of_absent_documents.add(pair)
    for query_id, judged in list(qrels.items()):
        relevant = [doc_id for doc_id, relevance in judged.items() if relevance > 0]
        if not relevant:
            (report.queries_without_relevant if judged else report.queries_unjudged).add(query_id)
            del qrels[query_id]
            continue
        if not any(doc_id in documents for doc_id in relevant):
            report.queries_unanswerable.add(query_id)
        if not queries[query_id].strip():
            report.queries_empty.add(query_id)
    return qrels


def read_collection(
    path: str | Path, *, split: str = "test", queries: str | None = None, name: str | None = None
) -> Collection:
    """Reads a collection in the BEIR layout: ``corpus.jsonl``, ``queries.jsonl``, ``qrels/<split>.tsv``, or ``.gz``.

    Args:
        path: The collection's directory.
        split: Which judgements.
        queries: File of the queries within the directory, where it is not ``queries.jsonl``.
        name: What tables call it. None: the directory's name.

    Returns:
        The collection. Title and text of a document are joined by a space.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a line cannot be read, or nothing can be measured; see :meth:`Collection.build`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"collection must be a directory that exists, got {str(path)!r}.")
    return Collection.build(
        name or folder.resolve().name,
        read_documents(_existing(folder, "corpus.jsonl")),
        read_documents(_existing(folder, queries or "queries.jsonl")),
        _judgements(_existing(folder, f"qrels/{split}.tsv")),
    )


def _existing(folder: Path, name: str) -> Path:
    for ending in ("", ".gz"):
        if (path := folder / f"{name}{ending}").is_file():
            return path
    there = ", ".join(sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()))
    raise FileNotFoundError(f"{folder} must hold {name} or {name}.gz, got {there or 'no file'}.")


def _judgements(path: Path) -> Iterator[Judgement]:
    """Judgements of a file of three columns, with or without a header."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            if not row or (number == 1 and row[-1].strip() in ("score", "relevance")):
                continue
            try:
                query_id, doc_id, relevance = row
                value = float(relevance)
                if value != int(value):
                    raise ValueError(f"{relevance} is not a whole number")
            except (ValueError, OverflowError) as err:
                raise ValueError(
                    f"{path}:{number}: must be query id, document id and a whole number, separated by tabs, "
                    f"got {row!r}."
                ) from err
            yield query_id, doc_id, int(value)
