"""PostgreSQL with pgvector: a table with a ``sparsevec`` column, searched exactly by inner product."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from st_keytokens.engines.engine import CollectionSettings, Engine
from st_keytokens.engines.records import Records
from st_keytokens.engines.retrying import Retry
from st_keytokens.index.documents import Hit
from st_keytokens.index.filters import AllOf, AnyOf, Compares, Condition, Exists, HasId, IsIn, Not, refused_condition
from st_keytokens.index.fusion import reciprocal_rank_fusion
from st_keytokens.index.search import SIDES, SearchPlan, Side
from st_keytokens.index.store import Encoder
from st_keytokens.shared.checks import check_choice
from st_keytokens.shared.imports import imported
from st_keytokens.sparse_embeddings import HybridEmbeddings

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.sql import Composed

__all__ = ["PgVectorEngine", "condition_sql"]


Sql = tuple[str, list[Any]]

_OPERATORS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def condition_sql(condition: Condition) -> Sql:
    """A condition that is true or false, never null, and its parameters for psycopg, in order.

    Keys and values are parameters all of them: none of what a user gave becomes a part of the statement.

    >>> condition_sql(IsIn("language", ("en",)))
    ('metadata @> %s::jsonb', ['{"language": "en"}'])
    >>> condition_sql(Not(Exists("year")))
    ('(NOT metadata ? %s)', ['year'])
    """
    if isinstance(condition, (AllOf, AnyOf)):
        parts = [condition_sql(part) for part in condition.parts]
        if not parts:
            return ("true" if isinstance(condition, AllOf) else "false"), []
        operator = " AND " if isinstance(condition, AllOf) else " OR "
        joined = operator.join(statement for statement, _ in parts)
        return f"({joined})", [parameter for _, parameters in parts for parameter in parameters]
    if isinstance(condition, Not):
        statement, parameters = condition_sql(condition.part)
        return f"(NOT {statement})", parameters
    if isinstance(condition, Exists):
        return "metadata ? %s", [condition.key]
    if isinstance(condition, HasId):
        return "id = ANY(%s::text[])", [list(condition.ids)]
    if isinstance(condition, IsIn):
        # containment finds a scalar under a key by type and value, and one value of it in an index
        held = [json.dumps({condition.key: value}, ensure_ascii=False) for value in condition.values]
        return ("metadata @> %s::jsonb", held) if len(held) == 1 else ("metadata @> ANY(%s::jsonb[])", [held])
    if isinstance(condition, Compares):
        return _comparison(condition)
    raise refused_condition(condition)


def _comparison(condition: Compares) -> Sql:
    """A number among numbers of any size, or a string among strings by code point, which is the order of its bytes."""
    if isinstance(condition.bound, str):
        kind, value, bound = "string", 'metadata ->> %s COLLATE "C"', "%s"
    else:
        kind, value, bound = "number", "(metadata ->> %s)::numeric", "%s::numeric"
    compared = f"{value} {_OPERATORS[condition.operator]} {bound}"
    statement = f"(CASE WHEN jsonb_typeof(metadata -> %s) = '{kind}' THEN {compared} ELSE false END)"
    return statement, [condition.key, condition.key, str(condition.bound)]


def _copied_rows(records: Records) -> Iterator[tuple[str | None, ...]]:
    """Rows for COPY, in text: id, sparse, dense, text, metadata."""
    hybrid = records.hybrid
    sparse = _vector_texts(hybrid, "sparse")
    dense = [None] * len(records) if hybrid.dense is None else _vector_texts(hybrid, "dense")
    for row, id in enumerate(records.ids):
        text = records.text(row)
        if text is not None and "\0" in text:
            raise ValueError(f"texts must not contain NUL, which PostgreSQL cannot keep, got one in {id!r:.60}.")
        yield id, sparse[row], dense[row], text, json.dumps(records.metadata_of(row), ensure_ascii=False)


def _vector_texts(embeddings: HybridEmbeddings, side: Side) -> list[str]:
    """Vectors in pgvector's notation, in which the indices of a sparsevec count from 1."""
    if side == "sparse":
        vocab_size = embeddings.sparse.vocab_size
        rows = (zip((indices + 1).tolist(), values.tolist(), strict=True) for indices, values in embeddings.sparse)
        return [f"{{{','.join(f'{index}:{value!r}' for index, value in row)}}}/{vocab_size}" for row in rows]
    return [json.dumps(row) for row in np.asarray(embeddings.dense, np.float32).tolist()]


def _fused_hit(
    rank: int,
    id: str,
    text: str | None,
    metadata: dict[str, Any],
    fused: float,
    dense: float | None,
    sparse: float | None,
) -> Hit:
    """A hit; its score of a side is None where that side did not find it."""
    scores = {"dense": dense, "sparse": sparse}
    return Hit(id, fused, rank, text, metadata, {side: score for side, score in scores.items() if score is not None})


DenseType = Literal["vector", "halfvec"]

_MAX_TERMS, _MAX_INDEXED_TERMS = 16_000, 1_000
_MAX_DIMENSION, _MAX_INDEXED_DIMENSIONS = 16_000, {"vector": 2_000, "halfvec": 4_000}
_MAX_NAME_BYTES = 63
_POINTS = {
    "rrf": "1 / (60.0::float8 + rank)",
    "score": "CASE WHEN high > low THEN (score - low) / (high - low) ELSE 1 END",
}


class PgVectorEngine(Engine):
    """A table of PostgreSQL: columns ``id``, ``sparse``, ``dense``, ``text`` and ``metadata`` (jsonb, with an index).

    Weights are kept as float32. A search reads the whole table, or what a filter leaves of it, and is exact; with
    ``hnsw`` it goes through approximate indexes, which found much less in measurements of sparse vectors. Reciprocal
    ranks and min-max scores are fused in the database. A batch is one transaction: it is there in full, or not at all.

    Args:
        collection: Name of the table, at most 63 bytes.
        connection: A connection string, or a function that connects; used again where a connection is lost.
        schema: Schema of the table.
        hnsw: Whether ``create`` makes approximate indexes, and searches use them.
        dense_type: ``"vector"`` (float32), or ``"halfvec"`` (float16) for half the space.
        encoder: See :class:`Engine`.
        retry: See :class:`Engine`.

    Raises:
        ImportError: If psycopg is not installed.
        ValueError: If a name is too long, or the type unknown.

    Source:
        https://github.com/pgvector/pgvector (0.8): sparsevec has at most 16,000 terms, 1,000 with an HNSW index.
    """

    server_fusions: ClassVar[tuple[str, ...]] = ("rrf", "score")
    weighs_ranks: ClassVar[bool] = True

    def __init__(
        self,
        collection: str,
        connection: str | Callable[[], Connection[Any]],
        *,
        schema: str = "public",
        hnsw: bool = False,
        dense_type: DenseType = "vector",
        encoder: Encoder | None = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(collection, encoder=encoder, retry=retry)
        self._psycopg = imported("psycopg", '"st-keytokens[pgvector]"')
        for name in (collection, schema):
            if not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
                raise ValueError(f"collection and schema must be 1 to {_MAX_NAME_BYTES} bytes long, got {name!r}.")
        check_choice("dense_type", dense_type, _MAX_INDEXED_DIMENSIONS)
        self._table = self._psycopg.sql.Identifier(schema, collection)
        self._name = f"{schema}.{collection}"
        self._connect = connection if callable(connection) else lambda: self._psycopg.connect(connection)
        self._connection: Connection[Any] | None = None
        self.hnsw = hnsw
        self.dense_type = dense_type

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def smallest_wait(self, error: Exception) -> float | None:
        """Connections that fail or are lost, deadlocks, and a server without resources or shutting down are temporary.

        ``OperationalError`` is what psycopg raises for all of these; some of it lasts, such as a wrong password.
        """
        if not isinstance(error, (self._psycopg.OperationalError, self._psycopg.InterfaceError)):
            return None
        return 0.0 if (error.sqlstate or "08")[:2] in ("08", "40", "53", "55", "57") else None

    def _check_settings(self, settings: CollectionSettings) -> None:
        limit = _MAX_INDEXED_DIMENSIONS[self.dense_type] if self.hnsw else _MAX_DIMENSION
        if settings.embedding_dimension > limit:
            index = " with an HNSW index" if self.hnsw else ""
            raise ValueError(
                f"embedding_dimension must be at most {limit} for {self.dense_type}{index}, "
                f"got {settings.embedding_dimension}. Make the embeddings shorter."
            )

    def _read_settings(self) -> CollectionSettings | None:
        statement = "SELECT to_regclass(%s) IS NOT NULL, obj_description(to_regclass(%s), 'pg_class')"
        name = self._table.as_string(None)
        with self._transaction() as connection:
            ((is_there, comment),) = connection.execute(statement, [name, name]).fetchall()
        return CollectionSettings.from_json(comment, self._where) if is_there else None

    def _create(self, settings: CollectionSettings) -> None:
        columns = f"sparse sparsevec({settings.vocab_size}) NOT NULL"
        if settings.embedding_dimension:
            columns += f", dense {self.dense_type}({settings.embedding_dimension}) NOT NULL"
        indexes = ["USING gin (metadata jsonb_path_ops)"]
        if self.hnsw:
            indexes.append("USING hnsw (sparse sparsevec_ip_ops)")
            if settings.embedding_dimension:
                operators = "cosine" if settings.similarity == "cosine" else "ip"
                indexes.append(f"USING hnsw (dense {self.dense_type}_{operators}_ops)")
        with self._transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [self._name])
            found = connection.execute("SELECT to_regclass(%s)", [self._table.as_string(None)]).fetchone()
            if found != (None,):
                return
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            # C is the order of bytes: the same on every machine, and what a sort by id is fastest with
            connection.execute(
                self._sql(
                    f'CREATE TABLE {{table}} (id text COLLATE "C" PRIMARY KEY, {columns}, text text, '
                    "metadata jsonb NOT NULL)"
                )
            )
            for index in indexes:
                connection.execute(self._sql(f"CREATE INDEX ON {{table}} {index}"))
            comment = self._psycopg.sql.Literal(settings.to_json())
            connection.execute(self._sql("COMMENT ON TABLE {table} IS {comment}", comment=comment))

    def _upsert(self, records: Records) -> None:
        most = _MAX_INDEXED_TERMS if self.hnsw else _MAX_TERMS
        counts = records.hybrid.sparse.active_dims
        if counts.max(initial=0) > most:
            row = int(np.argmax(counts))
            index = " with an HNSW index" if self.hnsw else ""
            raise ValueError(
                f"embeddings must have at most {most} terms{index}, got {counts[row]} in {records.ids[row]!r:.60}. "
                "Use prune()."
            )
        try:
            self._copy(records)
        except self._psycopg.errors.ProgramLimitExceeded as err:
            longest = max(records.ids, key=lambda id: len(id.encode()))
            raise ValueError(
                "ids must fit into an index of PostgreSQL, about 2,700 bytes unless they repeat themselves, "
                f"got {longest!r:.60} of {len(longest.encode())}. Use shorter ones."
            ) from err

    def _copy(self, records: Records) -> None:
        """Copy a batch beside the table, and from there into it."""
        names = ["id", "sparse", *(["dense"] if records.hybrid.dense is not None else []), "text", "metadata"]
        casts = {"sparse": "sparse::sparsevec", "dense": f"dense::{self.dense_type}"}
        changes = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        with self._transaction() as connection, connection.cursor() as cursor:
            cursor.execute(
                "CREATE TEMPORARY TABLE IF NOT EXISTS keytokens_batch (id text, sparse text, dense text, text text, "
                "metadata jsonb) ON COMMIT DELETE ROWS"
            )
            with cursor.copy("COPY keytokens_batch FROM STDIN") as copy:
                for row in _copied_rows(records):
                    copy.write_row(row)
            cursor.execute(  # in one order, so that two writers never wait for each other in a circle
                self._sql(
                    f"INSERT INTO {{table}} ({', '.join(names)}) "
                    f"SELECT {', '.join(casts.get(name, name) for name in names)} FROM keytokens_batch "
                    f'ORDER BY id COLLATE "C" ON CONFLICT (id) DO UPDATE SET {changes}'
                )
            )

    def _delete(self, ids: list[str]) -> None:
        with self._transaction() as connection:
            connection.execute(self._sql("DELETE FROM {table} WHERE id = ANY(%s)"), [ids])

    def _count(self) -> int:
        with self._transaction() as connection:
            (count,) = connection.execute(self._sql("SELECT count(*) FROM {table}")).fetchone() or (0,)
        return int(count)

    def _search_side(
        self, queries: HybridEmbeddings, side: Side, limit: int, condition: Condition | None
    ) -> list[list[Hit]]:
        ranked, parameters = self._ranked_sql(side, condition)
        statement = f"SELECT id, text, metadata, score FROM ({ranked}) ranked JOIN {{table}} USING (id) ORDER BY rank"
        results = []
        with self._transaction(limit) as connection:
            for query in _vector_texts(queries, side):
                found = connection.execute(self._sql(statement), [query, *parameters, limit]).fetchall()
                results.append(
                    [
                        Hit(id, score, rank, text, metadata, {side: score})
                        for rank, (id, text, metadata, score) in enumerate(found, 1)
                    ]
                )
        return results

    def _search_fused(self, queries: HybridEmbeddings, plan: SearchPlan) -> list[list[Hit]]:
        reciprocal_rank_fusion({"dense": [], "sparse": []}, weights=plan.weights)  # their rules, and the errors
        factors = {"dense": 1.0, "sparse": 1.0, **(plan.weights or {})}
        sides = {side: self._ranked_sql(side, plan.condition) for side in SIDES}
        points = ", ".join(
            f"{side}_points AS (SELECT *, %s::float8 * ({_POINTS[str(plan.fusion)]}) AS points FROM (SELECT *, "
            f"min(score) OVER () AS low, max(score) OVER () AS high FROM ({statement}) ranked) bounded)"
            for side, (statement, _) in sides.items()
        )
        statement = (
            f"WITH {points} SELECT id, text, metadata, "
            "coalesce(d.points, 0) + coalesce(s.points, 0) AS fused, d.score, s.score "
            "FROM dense_points d FULL JOIN sparse_points s USING (id) JOIN {table} USING (id) "
            "ORDER BY fused DESC, d.rank, s.rank LIMIT %s"
        )
        results = []
        texts = {side: _vector_texts(queries, side) for side in sides}
        with self._transaction(plan.depth) as connection:
            for pair in zip(*texts.values(), strict=True):
                parameters: list[Any] = []
                for (side, (_, filtered)), query in zip(sides.items(), pair, strict=True):
                    parameters += [factors[side], query, *filtered, plan.depth]
                found = connection.execute(self._sql(statement), [*parameters, plan.top_k]).fetchall()
                results.append([_fused_hit(rank, *row) for rank, row in enumerate(found, 1)])
        return results

    def _ranked_sql(self, side: Side, condition: Condition | None) -> tuple[str, list[Any]]:
        """A query for ``id``, ``score`` and ``rank``; its parameters after the query and before the limit."""
        where, parameters = ("true", []) if condition is None else condition_sql(condition)
        if side == "sparse":
            distance, score, is_hit = "sparse <#> %s::sparsevec", "-distance", "distance < 0"
        else:
            is_cosine = self.settings.similarity == "cosine"
            distance = f"dense {'<=>' if is_cosine else '<#>'} %s::{self.dense_type}"
            score, is_hit = ("1 - distance" if is_cosine else "-distance"), "true"
            if is_cosine and not self.hnsw:  # a vector of zeros has no angle to any other; it counts as 0
                distance = f"coalesce(nullif({distance}, 'NaN'), 1)"
        order = "distance" if self.hnsw else "distance, id"
        # the operator is evaluated once for a row, and documents that share no term come last of all
        nearest = f"SELECT id, {distance} AS distance FROM {{table}} WHERE {where} ORDER BY {order} LIMIT %s"
        ranked = f"SELECT id, {score} AS score, row_number() OVER (ORDER BY {order}) AS rank"
        return f"{ranked} FROM ({nearest}) nearest WHERE {is_hit}", parameters

    @contextmanager
    def _transaction(self, depth: int | None = None) -> Iterator[Connection[Any]]:
        """A transaction, on a new connection where there is none or it is lost; of a search, with its depth."""
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            self._connection.autocommit = True
        with self._connection.transaction():
            if self.hnsw and depth is not None:
                self._connection.execute(f"SET LOCAL hnsw.ef_search = {min(max(depth, 40), 1000)}")
                self._connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
            yield self._connection

    def _sql(self, statement: str, **parts: Any) -> Composed:
        return self._psycopg.sql.SQL(statement).format(table=self._table, **parts)
