"""PostgreSQL with pgvector, for real: the server of ST_KEYTOKENS_POSTGRES_URL, or one that is started here."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from conformance import DIMENSION, VOCAB_SIZE, EngineConformance, query, small_records
from postgres_server import running_postgres

pytest.importorskip("psycopg", reason="needs psycopg")

import psycopg

from st_keytokens import HybridEmbeddings, SparseEmbeddings
from st_keytokens.engines import Records, Retry
from st_keytokens.engines.pgvector import PgVectorEngine, condition_sql
from st_keytokens.index.filters import parse_filter

URL = "ST_KEYTOKENS_POSTGRES_URL"
QUICK = Retry(max_attempts=4, first_wait=0.001)


@pytest.fixture(scope="module", autouse=True)
def postgres():
    """The address, for other processes as well; tables of the tests are dropped at the end."""
    with running_postgres() as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv(URL, url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA IF NOT EXISTS keytokens_tests")
        yield url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA keytokens_tests CASCADE")


def table_name(directory, collection):
    """A name of the directory's own; opening a collection again by its name gives the same."""
    prefix = f"t{hashlib.sha1(directory.encode()).hexdigest()[:10]}_"
    return collection if collection.startswith(prefix) else prefix + collection


def open_pgvector(directory, collection, **arguments):
    return PgVectorEngine(
        table_name(directory, collection), os.environ[URL], schema="keytokens_tests", retry=QUICK, **arguments
    )


class TestPgVector(EngineConformance):
    opener = "test_pgvector:open_pgvector"

    def temporary_errors(self):
        errors = psycopg.errors
        return [errors.TooManyConnections("x"), errors.DeadlockDetected("x"), errors.AdminShutdown("x")]


@pytest.fixture
def opened(tmp_path):
    """Open collections, and close them at the end."""
    engines = []

    def open_one(name="one", **arguments):
        engines.append(open_pgvector(str(tmp_path), name, **arguments))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(opened):
    engine = opened()
    engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION)
    return engine


class TestLimits:
    def test_terms(self, opened):
        engine = opened()
        engine.create(vocab_size=20_000)
        most = SparseEmbeddings.from_dicts([dict.fromkeys(range(16_000), 1.0)], 20_000)
        engine.upsert(Records(["most"], most))
        (hits,) = engine.search(SparseEmbeddings.from_dicts([{0: 1.0, 15_999: 2.0, 16_000: 4.0}], 20_000))
        assert [(hit.id, hit.score) for hit in hits] == [("most", 3.0)]
        more = SparseEmbeddings.from_dicts([dict.fromkeys(range(16_001), 1.0)], 20_000)
        with pytest.raises(ValueError, match=r"at most 16000 terms, got 16001 in 'more'\. Use prune\(\)"):
            engine.upsert(Records(["more"], more))

    def test_terms_of_an_hnsw_index(self, opened):
        engine = opened(hnsw=True)
        engine.create(vocab_size=VOCAB_SIZE)
        engine.upsert(Records(["most"], query(dict.fromkeys(range(1000), 1.0)).sparse))
        with pytest.raises(ValueError, match="at most 1000 terms with an HNSW index, got 1001"):
            engine.upsert(Records(["more"], query(dict.fromkeys(range(1001), 1.0)).sparse))
        assert engine.count() == 1

    @pytest.mark.parametrize(
        ("arguments", "limit"),
        [
            ({}, 16_000),
            ({"hnsw": True}, 2_000),
            ({"hnsw": True, "dense_type": "halfvec"}, 4_000),
        ],
    )
    def test_dimensions(self, opened, arguments, limit):
        engine = opened(**arguments)
        with pytest.raises(ValueError, match=f"embedding_dimension must be at most {limit} for "):
            engine.create(vocab_size=9, embedding_dimension=limit + 1)
        engine.create(vocab_size=9, embedding_dimension=limit)

    def test_names(self):
        with pytest.raises(ValueError, match="collection and schema must be 1 to 63 bytes long"):
            PgVectorEngine("é" * 32, "")
        with pytest.raises(ValueError, match="dense_type must be one of 'vector', 'halfvec', got 'bit'"):
            PgVectorEngine("a", "", dense_type="bit")

    def test_a_name_is_no_statement(self, opened):
        engine = opened('"; drop table "x"; -- %s {}')
        engine.create(vocab_size=9)
        engine.upsert(Records(["a"], SparseEmbeddings.from_dicts([{1: 1.0}], 9)))
        assert engine.count() == 1

    def test_ids_that_no_index_takes(self, engine):
        long = "".join(map(chr, np.random.default_rng(0).integers(33, 0xD000, 3000)))
        with pytest.raises(ValueError, match="ids must fit into an index of PostgreSQL"):
            engine.upsert(small_records(["short", long]))
        assert engine.count() == 0  # a batch is there in full or not at all

    def test_nul(self, engine):
        records = small_records(["a"])
        with pytest.raises(ValueError, match="texts must not contain NUL, which PostgreSQL"):
            engine.upsert(Records(records.ids, records.embeddings, ["a\0b"]))


class TestStored:
    def test_indices_count_from_one_and_weights_are_float32(self, engine, postgres):
        weight = float(np.float32(0.1))
        engine.upsert(Records(["a"], query({0: weight, VOCAB_SIZE - 1: 3.0})))
        with psycopg.connect(postgres) as connection:
            statement = psycopg.sql.SQL(
                "SELECT sparse::text, sparse::text::sparsevec <#> {}::sparsevec FROM {}"
            ).format(f"{{1:1}}/{VOCAB_SIZE}", psycopg.sql.Identifier("keytokens_tests", engine.collection))
            ((stored, distance),) = connection.execute(statement).fetchall()
        assert stored == f"{{1:0.1,{VOCAB_SIZE}:3}}/{VOCAB_SIZE}"
        assert -distance == weight

    def test_halfvec(self, opened):
        engine = opened(dense_type="halfvec")
        engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION)
        engine.upsert(small_records(["a", "b", "c"]))
        (hits,) = engine.search(query({}), mode="dense")
        cosines = {"b": 1.0, "c": 6 / np.sqrt(4 * 10), "a": 2 / np.sqrt(4 * 2)}
        assert [hit.id for hit in hits] == list(cosines)
        assert [hit.score for hit in hits] == pytest.approx(list(cosines.values()), abs=1e-3)

    def test_zeros_have_no_angle(self, engine):
        dense = np.array([[0, 0, 0, 0], [-1, 0, 0, 0], [1, 1, 1, 1]], np.float32)
        engine.upsert(Records(["zeros", "away", "same"], HybridEmbeddings(dense, query({}, {}, {}).sparse)))
        (hits,) = engine.search(query({}), mode="dense")
        assert [(hit.id, hit.score) for hit in hits] == [("same", 1.0), ("zeros", 0.0), ("away", -0.5)]


class TestHnsw:
    def test_it_is_used_and_finds_what_is_near(self, opened, abstracts):
        engine = opened(hnsw=True)
        sparse = abstracts.embeddings.sparse
        engine.create(vocab_size=sparse.vocab_size, embedding_dimension=abstracts.embeddings.dense.shape[1])
        engine.upsert(Records(abstracts.ids, abstracts.embeddings))
        found = engine.search(abstracts.queries, mode="sparse", top_k=10)
        expected = abstracts.index.search(abstracts.queries, mode="sparse", top_k=10)
        pairs = [({a.id for a in hits}, {b.id for b in others}) for hits, others in zip(found, expected, strict=True)]
        assert sum(len(a & b) for a, b in pairs) / sum(len(b) for _, b in pairs) > 0.8
        scores = {(row, hit.id): hit.score for row, hits in enumerate(expected) for hit in hits}
        for row, hits in enumerate(found):
            for hit in hits:
                assert hit.score == pytest.approx(scores.get((row, hit.id), hit.score), rel=1e-5)
        with engine._transaction(10) as connection:
            connection.execute("SET LOCAL enable_seqscan = off")  # a small table is faster to read
            statement, _ = engine._ranked_sql("sparse", None)
            asked = [f"{{1:1}}/{sparse.vocab_size}", 10]
            plan = connection.execute(engine._sql("EXPLAIN " + statement), asked).fetchall()
        assert any("Index Scan using" in line and "sparse" in line for (line,) in plan)


class TestFilters:
    def test_values_are_parameters(self):
        hostile = "'); DROP TABLE x; --"
        filter = {hostile: {"$in": [hostile, 1]}, "b": {"$gt": hostile}, "$not": {hostile: {"$exists": True}}}
        statement, parameters = condition_sql(parse_filter(filter))
        assert hostile not in statement
        assert statement.count("%s") == len(parameters)

    def test_whole_numbers_of_any_size_compare_exactly(self, engine):
        numbers = [2**53, 2**53 + 1, 10**40, 10**40 + 1]
        engine.upsert(small_records([str(n) for n in numbers], [{"n": n} for n in numbers]))
        for number in numbers:
            (hits,) = engine.search(query({0: 1.0}), mode="sparse", filter={"n": number})
            assert [hit.id for hit in hits] == [str(number)]
            (hits,) = engine.search(query({0: 1.0}), mode="sparse", filter={"n": {"$gt": number}})
            assert {hit.id for hit in hits} == {str(n) for n in numbers if n > number}


class TestLostConnections:
    def test_reading_and_writing_go_on(self, engine, postgres):
        engine.upsert(small_records(["a"]))
        for use in (lambda: engine.upsert(small_records(["a", "b"])), engine.count, lambda: engine.delete(["a"])):
            process = engine._connection.info.backend_pid
            with psycopg.connect(postgres, autocommit=True) as connection:
                connection.execute("SELECT pg_terminate_backend(%s, 5000)", [process])
            use()
            assert engine._connection.info.backend_pid != process
        assert engine.count() == 1

    def test_a_server_that_stays_away(self):
        waits = []
        engine = PgVectorEngine("a", "host=127.0.0.1 port=1", retry=Retry(max_attempts=3, sleep=waits.append))
        with pytest.raises(RuntimeError, match=r"The engine must answer within 3 attempts, got OperationalError"):
            engine.count()
        assert len(waits) == 2

    def test_what_lasts_is_not_tried_again(self, opened):
        waits = []
        engine = opened()
        engine.retry = Retry(sleep=waits.append)
        wrong = engine._psycopg.errors
        for error in (wrong.SyntaxError("x"), wrong.InvalidPassword("x"), wrong.UndefinedTable("x"), ValueError("x")):
            assert engine.smallest_wait(error) is None
        for error in (wrong.DeadlockDetected("x"), wrong.AdminShutdown("x"), wrong.TooManyConnections("x")):
            assert engine.smallest_wait(error) == 0.0

    def test_a_function_that_connects(self, engine, postgres):
        again = PgVectorEngine(engine.collection, lambda: psycopg.connect(postgres), schema="keytokens_tests")
        assert again.settings == engine.settings
        again.close()
