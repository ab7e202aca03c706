"""Our index, Qdrant and dense search as scale.py asks them; SQLite and DuckDB are in scale_postings.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scale_tasks import LABELS, TOP_K, Found, Where, labels_of, text_of, wide_labels_of

from st_keytokens.index import HybridIndex
from st_keytokens.sparse_embeddings import SparseEmbeddings

LOADED = 100_000  # documents given to our index at a time
POINTS = 5_000  # points given to Qdrant at a time


class EmbeddedIndex:
    """Ours, as it is used: texts and metadata with the vectors; with more metadata where it is wide."""

    def __init__(self, path: Path, *, is_wide: bool = False) -> None:
        self.path, self.labels_of = path / "index", wide_labels_of if is_wide else labels_of

    def load(self, documents: SparseEmbeddings) -> None:
        self.open()
        for start in range(0, len(documents), LOADED):
            self.add(documents[start : start + LOADED], start)
        self.index.compact()
        self.index.close()

    def open(self) -> None:
        self.index = HybridIndex(self.path)

    def prepare(self, query: SparseEmbeddings) -> Any:
        return query

    def search(self, query: Any, where: Where) -> Found:
        filter = None if where is None else dict([where])
        hits = self.index.search(query, mode="sparse", top_k=TOP_K, filter=filter)[0]
        return [(int(hit.id), hit.score) for hit in hits]

    def add(self, documents: SparseEmbeddings, first: int) -> None:
        numbers = range(first, first + len(documents))
        self.index.add(
            [str(number) for number in numbers],
            [text_of(number) for number in numbers],
            embeddings=documents,
            metadata=[self.labels_of(number) for number in numbers],
        )

    def delete(self, numbers: list[int]) -> None:
        self.index.delete([str(number) for number in numbers])

    def compact(self) -> None:
        self.index.compact()


class QdrantEdge:
    """Qdrant's engine in the process, straight through its package; the labels are indexed."""

    def __init__(self, path: Path) -> None:
        import qdrant_edge

        self.edge, self.path = qdrant_edge, path / "qdrant"

    def load(self, documents: SparseEmbeddings) -> None:
        edge = self.edge
        self.path.mkdir()
        config = edge.EdgeConfig(sparse_vectors={"sparse": edge.EdgeSparseVectorParams()})
        self.shard = edge.EdgeShard.create(str(self.path), config)
        for name in LABELS:
            self.shard.update(edge.UpdateOperation.create_field_index(name, edge.PayloadSchemaType.Integer))
        self.add(documents, 0)
        self.compact()
        self.shard.close()

    def open(self) -> None:
        self.shard = self.edge.EdgeShard.load(str(self.path))

    def prepare(self, query: SparseEmbeddings) -> Any:
        terms, weights = query.row(0)
        vector = self.edge.SparseVector(indices=terms.tolist(), values=weights.tolist())
        return self.edge.Query.Nearest(query=vector, using="sparse")

    def search(self, query: Any, where: Where) -> Found:
        edge, filter = self.edge, None
        if where is not None:
            condition = edge.FieldCondition(key=where[0], match=edge.MatchValue(where[1]))
            filter = edge.Filter(must=[condition])
        request = edge.QueryRequest(limit=TOP_K, query=query, filter=filter, with_payload=True)
        return [(point.id, point.score) for point in self.shard.query(request)]

    def add(self, documents: SparseEmbeddings, first: int) -> None:
        edge = self.edge
        for start in range(0, len(documents), POINTS):
            points = []
            for number, (terms, weights) in enumerate(documents[start : start + POINTS], first + start):
                vector = {"sparse": edge.SparseVector(indices=terms.tolist(), values=weights.tolist())}
                payload = {"text": text_of(number), **labels_of(number)}
                points.append(edge.Point(id=number, vector=vector, payload=payload))
            self.shard.update(edge.UpdateOperation.upsert_points(points))
        self.shard.flush()

    def delete(self, numbers: list[int]) -> None:
        self.shard.update(self.edge.UpdateOperation.delete_points(numbers))
        self.shard.flush()

    def compact(self) -> None:
        while self.shard.optimize():
            pass
        self.shard.flush()


class Dense:
    """Exact dense search in numpy: the product of a mapped matrix with the query, and its best rows."""

    def __init__(self, path: Path, dimension: int) -> None:
        self.file, self.dimension = path / f"dense-{dimension}.npy", dimension

    def load(self, documents: SparseEmbeddings) -> None:
        shape, rng = (len(documents), self.dimension), np.random.default_rng(0)
        rows = np.lib.format.open_memmap(self.file, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, len(rows), POINTS):
            block = rows[start : start + POINTS]
            rng.standard_normal(out=(held := np.empty(block.shape, np.float32)), dtype=np.float32)
            block[:] = held
        rows.flush()

    def open(self) -> None:
        self.rows = np.load(self.file, mmap_mode="r")

    def prepare(self, query: SparseEmbeddings) -> Any:
        seed = int(query.indices[0]) if len(query.indices) else 0
        return np.random.default_rng(seed).standard_normal(self.dimension, dtype=np.float32)

    def search(self, query: Any, where: Where) -> Found:
        scores = self.rows @ query
        best = np.argpartition(scores, -TOP_K)[-TOP_K:]
        best = best[np.argsort(-scores[best])]
        return list(zip(best.tolist(), scores[best].tolist(), strict=True))
