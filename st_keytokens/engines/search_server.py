"""What OpenSearch and Elasticsearch have in common: bulk requests, their partial failures, searches by the batch."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import numpy as np

from st_keytokens.engines.engine import CollectionSettings, Engine
from st_keytokens.engines.records import Records
from st_keytokens.index.dense import Similarity, checked_dense
from st_keytokens.index.documents import Hit
from st_keytokens.index.filters import AllOf, AnyOf, Compares, Condition, Exists, HasId, IsIn, Not, refused_condition
from st_keytokens.index.search import Side
from st_keytokens.sparse_embeddings import HybridEmbeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RELATIVE_ERROR", "SearchServerEngine", "document_id", "feature_weights"]


RELATIVE_ERROR = 2.0**-9
_CUT_BITS = 15
_SMALLEST, _LARGEST = 0x0080_0000, 0x7F7F_8000  # the bits of the smallest normal float32, and of the largest kept one


def feature_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round weights to what a feature field keeps exactly.

    Args:
        weights: Positive and finite, any shape.

    Returns:
        Weights of the same shape, each within ``RELATIVE_ERROR`` of its original, and so is any sum of their products
        with query weights. Weights below 2^-126, which no such field takes, become 2^-126; those above the largest
        that nine bits hold become that one.

    Source:
        Lucene, ``org.apache.lucene.document.FeatureField``: the float's bits, shifted right by 15, are the term
        frequency.

    >>> feature_weights(np.array([1.0, 1.0 + 2.0**-8, 1.0 + 2.0**-9, 0.3], np.float32)).tolist()
    [1.0, 1.00390625, 1.0, 0.2998046875]
    """
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    is_odd = bits >> _CUT_BITS & 1  # a weight in the middle goes to the even neighbour
    rounded = bits + (1 << _CUT_BITS - 1) - 1 + is_odd >> _CUT_BITS << _CUT_BITS
    kept: NDArray[np.uint32] = np.clip(rounded, _SMALLEST, _LARGEST).astype(np.uint32)
    return kept.view(np.float32)


_MAX_ID_BYTES = 512
_HASHED = "sha256:"


def document_id(id: str) -> str:
    """The ``_id`` of a document: its id, or a hash of it where the server would refuse it.

    ``_id`` has 1 to 512 bytes. The id itself is kept in the document as well, and is what hits have.

    >>> document_id("doc-7"), len(document_id("x" * 600))
    ('doc-7', 71)
    """
    encoded = id.encode()
    if 0 < len(encoded) <= _MAX_ID_BYTES and not id.startswith(_HASHED):
        return id
    return _HASHED + hashlib.sha256(encoded).hexdigest()


_STORED_FIELDS = ["id", "text", "metadata"]


def _document_source(
    records: Records, row: int, weights: Mapping[str, float], dense: NDArray[np.float32] | None
) -> dict[str, Any]:
    """A document, without the fields that it has nothing for; ``dense`` is what :func:`_dense_vectors` gave."""
    metadata = records.metadata_of(row)
    source: dict[str, Any] = {"id": records.ids[row], "sparse": weights}
    if dense is not None:
        source["dense"] = dense[row].tolist()
    if (text := records.text(row)) is not None:
        source["text"] = text
    if metadata:
        source |= {"metadata": metadata, **_filter_fields(metadata)}
    return source


def _dense_vectors(dense: NDArray[Any], similarity: Similarity) -> NDArray[np.float32]:
    """Vectors whose inner product is the similarity: of unit length for cosine, as the servers' own refuses zeros."""
    checked = checked_dense("embeddings", dense, "float32")
    rows = checked.rows / checked.norms[:, None] if similarity == "cosine" else checked.rows
    return np.asarray(rows, np.float32)


def _dense_score(score: float) -> float:
    """An inner product from a server's score of it: ``p + 1`` where ``p >= 0``, and ``1 / (1 - p)`` below."""
    return score - 1 if score >= 1 else 1 - 1 / score


def _as_hit(found: Mapping[str, Any], rank: int, side: str, score: float) -> Hit:
    """A hit from one in a server's answer."""
    source = found["_source"]
    return Hit(source["id"], score, rank, source.get("text"), source.get("metadata") or {}, {side: score})


_MAX_CHARACTERS = 8_191  # of four bytes each: what Lucene takes as a term
_PLAIN = {None: "null", True: "true", False: "false"}

_FILTER_MAPPING: dict[str, Any] = {
    "facts": {"type": "keyword"},
    "numbers": {"type": "object", "dynamic": True},
    "strings": {"type": "object", "dynamic": True},
}
_FILTER_TEMPLATES: list[dict[str, Any]] = [
    {"numbers": {"path_match": "numbers.*", "mapping": {"type": "double"}}},
    {"strings": {"path_match": "strings.*", "mapping": {"type": "keyword", "ignore_above": _MAX_CHARACTERS}}},
]


def _filter_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is written beside a document's metadata for filters; strings that none can ask for are left out."""
    facts: list[str] = []
    numbers: dict[str, float] = {}
    strings: dict[str, str] = {}
    for key, value in metadata.items():
        field = _field(key)
        facts.append(f"any:{field}")
        if value is None or isinstance(value, (bool, int, float)):
            facts.append(_fact(field, value))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[field] = _double(value)
        elif isinstance(value, str) and len(value) <= _MAX_CHARACTERS:
            strings[field] = value
    return {"facts": facts, "numbers": numbers, "strings": strings}


def _filter_query(condition: Condition) -> dict[str, Any]:
    """A query without scores; numbers are equal exactly, and greater or less as doubles."""
    if isinstance(condition, AllOf):
        parts = [_filter_query(part) for part in condition.parts]
        return {"bool": {"filter": parts}} if parts else {"match_all": {}}
    if isinstance(condition, AnyOf):
        return _any([_filter_query(part) for part in condition.parts])
    if isinstance(condition, Not):
        return {"bool": {"must_not": [_filter_query(condition.part)]}}
    if isinstance(condition, HasId):
        return {"ids": {"values": [document_id(id) for id in condition.ids]}}
    field = _field(condition.key)
    if isinstance(condition, Exists):
        return {"term": {"facts": f"any:{field}"}}
    if isinstance(condition, IsIn):
        facts = [_fact(field, value) for value in condition.values if not isinstance(value, str)]
        strings = [_checked_string(value) for value in condition.values if isinstance(value, str)]
        wanted = {"facts": facts, f"strings.{field}": strings}
        return _any([{"terms": {name: values}} for name, values in wanted.items() if values])
    if not isinstance(condition, Compares):
        raise refused_condition(condition)
    operator = condition.operator.removeprefix("$")
    if isinstance(condition.bound, str):
        return {"range": {f"strings.{field}": {operator: _checked_string(condition.bound)}}}
    return {"range": {f"numbers.{field}": {operator: _double(condition.bound)}}}


def _any(queries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"bool": {"should": queries, "minimum_should_match": 1}} if queries else {"match_none": {}}


def _field(key: str) -> str:
    """A key as a field's name, in which a dot would lead into objects, and a space or nothing be refused."""
    return quote(key, safe="").replace(".", "%2E") or "%"


def _fact(field: str, value: float | None) -> str:
    """A keyword for a value, the same for equal numbers and for no others."""
    if value is None or isinstance(value, bool):
        return f"{_PLAIN[value]}:{field}"
    return f"{int(value) if value == int(value) else value}:{field}"


def _double(value: float) -> float:
    """The nearest double, the largest one for integers beyond it."""
    try:
        return float(value)
    except OverflowError:
        return 1.7976931348623157e308 if value > 0 else -1.7976931348623157e308


def _checked_string(value: str) -> str:
    if len(value) > _MAX_CHARACTERS:
        raise ValueError(
            f"filter strings must have at most {_MAX_CHARACTERS} characters, got {len(value)} in {value!r:.40}. "
            "Keep something shorter in the metadata."
        )
    return value


Operations = list[tuple[str, list[dict[str, Any]]]]

_TEMPORARY = (429, 502, 503, 504)
_MAX_HITS = 10_000


class _TemporaryError(Exception):
    """Parts of a request were refused for the moment."""


class SearchServerEngine(Engine):
    """An index of a search server. Terms are fields named by their numbers, as tokens may have dots or be blank.

    What was written is found by searches after :meth:`flush`, or when the server refreshes the index on its own. An
    answer has at most 10,000 hits, which is the servers' default.

    Attributes:
        server: Its name, for errors.
        max_dimension: Largest dimension of a dense vector.
    """

    server: ClassVar[str]
    max_dimension: ClassVar[int]
    _client: Any  # what both clients name alike is called here
    _opened: Any  # the client, where it was opened here, else None
    _package: Any  # the client's package

    @abstractmethod
    def _status(self, error: Exception) -> int | None:
        """The HTTP status behind an error of the client, 0 for connections that fail, None for anything else."""

    @abstractmethod
    def _bulk(self, lines: list[dict[str, Any]]) -> Mapping[str, Any]:
        """Send actions and documents, and give the answer."""

    @abstractmethod
    def _msearch(self, lines: list[dict[str, Any]]) -> Mapping[str, Any]:
        """Send searches, each after an empty header, and give the answer."""

    @abstractmethod
    def _make_index(self, settings: dict[str, Any], mappings: dict[str, Any]) -> None:
        """Make the index. Somebody else may have made it just before."""

    @abstractmethod
    def _sparse_mapping(self) -> dict[str, Any]:
        """The mapping of the field ``sparse``."""

    @abstractmethod
    def _dense_mapping(self, dimension: int) -> dict[str, Any]:
        """The mapping of the field ``dense``, by inner product."""

    @abstractmethod
    def _document_weights(self, id: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is written for the weights of a document."""

    @abstractmethod
    def _sparse_query(
        self, terms: list[str], weights: NDArray[np.float32], limit: int, filter: dict[str, Any] | None
    ) -> tuple[dict[str, Any], float]:
        """The query of a sparse search, and what its scores are multiplied with to become inner products."""

    @abstractmethod
    def _dense_query(self, vector: list[float], limit: int, filter: dict[str, Any] | None) -> dict[str, Any]:
        """The body of a dense search."""

    def flush(self) -> None:
        """Make what was written visible to searches."""
        self._try(lambda: self._client.indices.refresh(index=self.collection))

    def close(self) -> None:
        """Close the client, where a URL was given."""
        if self._opened is not None:
            self._opened.close()

    def smallest_wait(self, error: Exception) -> float | None:
        """Connections that fail, too many requests, and a server that is not ready are temporary."""
        return 0.0 if isinstance(error, _TemporaryError) or self._status(error) in (0, *_TEMPORARY) else None

    def _check_settings(self, settings: CollectionSettings) -> None:
        if settings.embedding_dimension > self.max_dimension:
            raise ValueError(
                f"embedding_dimension must be at most {self.max_dimension} for {self.server}, "
                f"got {settings.embedding_dimension}. Make the embeddings shorter."
            )

    def _read_settings(self) -> CollectionSettings | None:
        try:
            (index,) = self._client.indices.get_mapping(index=self.collection).values()
        except self._package.NotFoundError:
            return None
        mappings = index["mappings"]
        settings = CollectionSettings.from_dict(mappings.get("_meta", {}).get("keytokens"), self._where)
        self._check_field(mappings.get("properties", {}).get("sparse", {}))
        return settings

    def _check_field(self, mapping: Mapping[str, Any]) -> None:
        """Refuse an index whose field ``sparse`` is of another kind, where there are several."""

    def _create(self, settings: CollectionSettings) -> None:
        unsearched = {"index": False, "doc_values": False}
        properties: dict[str, Any] = {
            "id": {"type": "keyword", **unsearched},
            "text": {"type": "text", "index": False},
            "metadata": {"type": "object", "enabled": False},
            "sparse": self._sparse_mapping(),
            **_FILTER_MAPPING,
        }
        if settings.embedding_dimension:
            properties["dense"] = self._dense_mapping(settings.embedding_dimension)
        mappings = {
            "dynamic": "strict",
            "_meta": {"keytokens": settings.to_dict()},
            "dynamic_templates": _FILTER_TEMPLATES,
            "properties": properties,
        }
        self._make_index(self._index_settings(settings), mappings)

    def _index_settings(self, settings: CollectionSettings) -> dict[str, Any]:
        """Settings of the index."""
        return {}

    def _upsert(self, records: Records) -> None:
        dense = records.hybrid.dense
        vectors = None if dense is None else _dense_vectors(dense, self.settings.similarity)
        operations: Operations = []
        for row, (indices, values) in enumerate(records.hybrid.sparse):
            id = records.ids[row]
            weights = self._document_weights(id, values).tolist()
            source = _document_source(
                records, row, dict(zip(map(str, indices.tolist()), weights, strict=True)), vectors
            )
            operations.append((id, [{"index": {"_id": document_id(id)}}, source]))
        self._write(operations)

    def _delete(self, ids: list[str]) -> None:
        self._write([(id, [{"delete": {"_id": document_id(id)}}]) for id in ids])

    def _write(self, operations: Operations) -> None:
        """Send operations, those that are refused for the moment again; a request that is too large is halved."""
        pending = operations

        def send() -> None:
            nonlocal pending
            answer = self._bulk([line for _, lines in pending for line in lines])
            refused = list(_refused(pending, answer))
            if refused:
                pending = [operation for operation, _ in refused]
                raise _TemporaryError(f"{len(pending)} of the documents: {refused[0][1]}")

        try:
            self._try(send)
        except Exception as err:
            if self._status(err) != 413:
                raise
            if len(pending) == 1:
                raise ValueError(
                    f"documents must fit into a request of {self.server}, got {pending[0][0]!r:.60}, which is too "
                    "large. Split its text."
                ) from err
            middle = len(pending) // 2
            self._write(pending[:middle])
            self._write(pending[middle:])

    def _count(self) -> int:
        self._client.indices.refresh(index=self.collection)  # or what a killed load wrote might not be counted
        return int(self._client.count(index=self.collection)["count"])

    def _search_side(
        self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None
    ) -> list[list[Hit]]:
        if limit > _MAX_HITS:
            raise ValueError(f"top_k and depth must be at most {_MAX_HITS} in {self.server}, got {limit}.")
        filter = None if condition is None else _filter_query(condition)
        bodies, factors = [], []
        if side == "sparse":
            for indices, values in queries.sparse:
                query, factor = self._sparse_query(list(map(str, indices.tolist())), values, limit, filter)
                bodies.append({"query": query})
                factors.append(factor)
        else:
            vectors = _dense_vectors(np.asarray(queries.dense), self.settings.similarity)
            bodies = [self._dense_query(vector, limit, filter) for vector in vectors.tolist()]
        results = []
        for number, found in enumerate(self._answers(bodies, limit)):
            scores = [hit["_score"] * factors[number] if factors else _dense_score(hit["_score"]) for hit in found]
            ranked = enumerate(zip(found, scores, strict=True), 1)
            results.append([_as_hit(hit, rank, side, score) for rank, (hit, score) in ranked])
        return results

    def _answers(self, bodies: Sequence[dict[str, Any]], limit: int) -> Iterator[list[dict[str, Any]]]:
        """The hits of each search."""
        common = {"size": limit, "_source": _STORED_FIELDS, "track_total_hits": False}
        answer = self._msearch([line for body in bodies for line in ({}, {**common, **body})])
        for response in answer["responses"]:
            if "error" in response:
                reason = f"status {response['status']}: {_reason(response['error'])}"
                if response["status"] in _TEMPORARY:
                    raise _TemporaryError(reason)
                raise ValueError(f"queries must be what {self.server} can answer, got {reason}")
            failed = response["_shards"]["failed"]
            if failed or response["timed_out"]:
                raise _TemporaryError(f"an answer without {failed} shards, timed out: {response['timed_out']}")
            yield response["hits"]["hits"]


def _refused(operations: Operations, answer: Mapping[str, Any]) -> Iterator[tuple[tuple[str, list[Any]], str]]:
    """Operations refused for the moment, with the reason; a ValueError if one was refused for good."""
    if not answer["errors"]:
        return
    lasting = []
    for operation, item in zip(operations, answer["items"], strict=True):
        (result,) = item.values()
        if result["status"] in _TEMPORARY:
            yield operation, _reason(result["error"])
        elif "error" in result:
            lasting.append((operation[0], _reason(result["error"])))
    if lasting:
        id, reason = lasting[0]
        raise ValueError(
            f"documents must be what the collection takes, got {len(lasting)} refused, first {id!r:.60}: {reason}"
        )


def _reason(error: Any) -> str:
    """An error with what caused it."""
    if not isinstance(error, Mapping):
        return str(error)
    causes = [error, *error.get("root_cause", [])[:1], error.get("caused_by") or {}]
    return " / ".join(dict.fromkeys(str(cause["reason"]) for cause in causes if cause.get("reason")))
