"""Loading streams into a real collection (Qdrant's embedded engine) that refuses now and then."""

from __future__ import annotations

import json
import sys

import pytest
from conformance import DIMENSION, NUM_ROWS, ROWS_PER_BATCH, VOCAB_SIZE, batches, query, small_records

pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")

from st_keytokens import SparseEmbeddings
from st_keytokens.engines import (
    ElasticsearchEngine,
    MilvusEngine,
    OpenSearchEngine,
    PgVectorEngine,
    QdrantEdgeEngine,
    QdrantEngine,
    Records,
    Retry,
    load,
)


class Busy(Exception):
    """The engine has no time."""


class Refusing(QdrantEdgeEngine):
    """Raises the errors of a schedule, by the number of the call, before or after it has written."""

    def __init__(self, path, before=(), after=(), **arguments):
        super().__init__(path, **arguments)
        self.before, self.after = dict(before), dict(after)
        self.calls, self.written = 0, []

    def smallest_wait(self, error):
        return 0.0 if isinstance(error, Busy) else None

    def _upsert(self, records):
        self.calls += 1
        if self.calls in self.before:
            raise self.before[self.calls]
        super()._upsert(records)
        self.written.append(records.ids)
        if self.calls in self.after:
            raise self.after[self.calls]


@pytest.fixture
def open_engine(tmp_path):
    opened = []

    def open_engine(name="a", **arguments):
        for engine in opened:
            engine.close()
        engine = Refusing(tmp_path / name, **arguments)
        opened.append(engine)
        engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION, fingerprint=name)
        return engine

    yield open_engine
    for engine in opened:
        engine.close()


@pytest.fixture
def progress(tmp_path):
    return tmp_path / "progress.json"


def waits_of(**arguments):
    waits = []
    return waits, Retry(sleep=waits.append, **arguments)


class TestRefusals:
    def test_nothing_is_lost_when_the_engine_refuses_now_and_then(self, open_engine, progress):
        waits, retry = waits_of()
        refusals = {number: Busy() for number in range(1, 60, 3)}
        answers_lost = {number: Busy() for number in range(2, 60, 7) if number % 3 != 1}  # written, but not told
        engine = open_engine(before=refusals, after=answers_lost, retry=retry)
        report = load(engine, batches(), progress=progress)
        assert (report.num_loaded, report.num_skipped) == (NUM_ROWS, 0)
        assert engine.count() == NUM_ROWS
        assert len(waits) == engine.calls - NUM_ROWS / ROWS_PER_BATCH
        assert len(waits) > 15

    def test_the_source_waits_for_the_engine(self, open_engine):
        read, read_while_waiting = [], []
        retry = Retry(sleep=lambda seconds: read_while_waiting.append(len(read)))

        def source():
            for batch in batches():
                read.append(batch.ids)
                yield batch

        load(open_engine(before={3: Busy(), 4: Busy(), 9: Busy()}, retry=retry), source())
        assert read_while_waiting == [3, 3, 7]  # not one batch ahead of the one that is refused
        assert len(read) == NUM_ROWS / ROWS_PER_BATCH

    def test_an_engine_that_keeps_refusing(self, open_engine, progress):
        waits, retry = waits_of(max_attempts=4)
        engine = open_engine(before={number: Busy("full") for number in range(6, 99)}, retry=retry)
        with pytest.raises(RuntimeError, match="within 4 attempts, got Busy: full") as caught:
            load(engine, batches(), progress=progress)
        assert isinstance(caught.value.__cause__, Busy)
        assert len(waits) == 3
        engine = open_engine()
        report = load(engine, batches(), progress=progress)
        assert report.num_skipped == 5 * ROWS_PER_BATCH
        assert engine.count() == NUM_ROWS


class TestResume:
    @pytest.mark.parametrize("is_written", [False, True])
    @pytest.mark.parametrize("is_function", [False, True])
    def test_the_batch_in_flight_is_written_again(self, open_engine, progress, is_written, is_function):
        engine = open_engine(**{"after" if is_written else "before": {8: KeyError("crash")}})
        with pytest.raises(KeyError, match="crash"):
            load(engine, batches(), progress=progress)
        assert json.loads(progress.read_text())["num_rows"] == 7 * ROWS_PER_BATCH
        engine = open_engine()
        told = []
        source = batches if is_function else batches()
        report = load(engine, source, progress=progress, on_batch=told.append)
        assert (report.num_skipped, report.num_loaded) == (140, NUM_ROWS - 140)
        assert engine.written[0][0] == "row/140"
        assert engine.count() == NUM_ROWS
        first = 159 if is_function else 160  # a function is asked for the last one that is written, too
        assert told == [*range(first, NUM_ROWS, ROWS_PER_BATCH), NUM_ROWS][: len(told)]
        assert told[-1] == NUM_ROWS

    def test_batches_of_another_size(self, open_engine, progress):
        engine = open_engine(before={8: KeyError("crash")})
        with pytest.raises(KeyError, match="crash"):
            load(engine, batches(), progress=progress)
        whole = list(batches())
        sizes = (part for batch in whole for part in batch.split(max_rows=13, max_bytes=1 << 20))
        engine = open_engine()
        load(engine, sizes, progress=progress)
        assert [name for names in engine.written for name in names] == [f"row/{n}" for n in range(140, NUM_ROWS)]

    def test_a_load_that_is_done(self, open_engine, progress):
        load(open_engine(), batches(), progress=progress)
        engine = open_engine()
        for source in (batches, batches()):
            report = load(engine, source, progress=progress)
            assert (report.num_loaded, report.num_skipped) == (0, NUM_ROWS)
        assert engine.calls == 0

    def test_without_progress_everything_is_written_again(self, open_engine):
        engine = open_engine()
        for _ in range(2):
            assert load(engine, batches()).num_loaded == NUM_ROWS
        assert engine.count() == NUM_ROWS

    def test_no_batch_and_empty_batches(self, open_engine, progress):
        engine = open_engine()
        assert load(engine, [], progress=progress).num_loaded == 0
        empty = Records([], query())
        assert load(engine, [empty, *batches(580), empty], progress=progress).num_loaded == 20
        assert engine.count() == 20

    def test_an_id_that_comes_twice_has_what_came_last(self, open_engine):
        engine = open_engine()
        load(engine, [small_records(["a", "b"]), small_records(["a"], [{"last": True}])])
        (hits,) = engine.search(query({0: 1.0}), mode="sparse")
        assert {hit.id: hit.metadata for hit in hits} == {"a": {"last": True}, "b": {}}


class TestRefusedProgress:
    @pytest.fixture
    def half(self, open_engine, progress):
        with pytest.raises(KeyError, match="crash"):
            load(open_engine(before={8: KeyError("crash")}), batches(), progress=progress)

    def test_another_source(self, half, open_engine, progress):
        others = [small_records([f"other/{number}" for number in range(200)])]
        with pytest.raises(ValueError, match="whose document 140 was 'row/139', got 'other/139'"):
            load(open_engine(), others, progress=progress)
        with pytest.raises(ValueError, match="whose document 140 was 'row/139', got 'row/140'"):
            load(open_engine(), lambda start: batches(start + 1), progress=progress)

    def test_a_source_that_has_become_shorter(self, half, open_engine, progress):
        with pytest.raises(ValueError, match="must have the 140 documents that are written at least, got 40 fewer"):
            load(open_engine(), list(batches())[:5], progress=progress)

    def test_another_collection(self, half, open_engine, progress):
        with pytest.raises(ValueError, match=r"progress must be of \{'collection': .*b', 'fingerprint': 'b'\}"):
            load(open_engine("b"), batches(), progress=progress)

    def test_a_collection_that_was_emptied(self, half, open_engine, progress):
        engine = open_engine()
        engine.delete([f"row/{number}" for number in range(140)])
        with pytest.raises(ValueError, match="tells of 140 documents, but the collection is empty"):
            load(engine, batches(), progress=progress)

    @pytest.mark.parametrize("content", ["", "[]", '{"num_rows": 3}', "\udcff"])
    def test_a_file_that_is_none(self, open_engine, progress, content):
        progress.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match="progress must be a file that a load wrote"):
            load(open_engine(), batches(), progress=progress)

    def test_a_batch_that_is_none(self, open_engine):
        with pytest.raises(TypeError, match="records must be Records, got list"):
            load(open_engine(), [["a"]])


class TestRecords:
    def test_bad_records(self):
        rows = SparseEmbeddings.empty(2, 9)
        with pytest.raises(ValueError, match="ids must be unique, got 'a' twice"):
            Records(["a", "a"], rows)
        with pytest.raises(ValueError, match="ids must be valid Unicode without NUL"):
            Records(["a", "b\0"], rows)
        with pytest.raises(ValueError, match="texts must be valid Unicode, got"):
            Records(["a", "b"], rows, ["\ud800", None])
        with pytest.raises(ValueError, match="texts must be as many as there are documents, 2, got 1"):
            Records(["a", "b"], rows, ["x"])
        with pytest.raises(ValueError, match="metadata must be as many as there are documents, 2, got 1"):
            Records(["a", "b"], rows, metadata=[None])
        with pytest.raises(TypeError, match="embeddings must be HybridEmbeddings or SparseEmbeddings, got list"):
            Records(["a", "b"], [])
        with pytest.raises(ValueError, match="ids must be as many as there are documents, 2, got 1"):
            Records(["a"], rows)

    def test_parts_hold_what_fits(self):
        (batch,) = batches(580)
        parts = list(batch.split(max_rows=512, max_bytes=2000))
        assert [name for part in parts for name in part.ids] == list(batch.ids)
        assert len(parts) > 2
        for part in parts:
            sparse = part.hybrid.sparse
            bodies = [
                {"id": part.ids[row], "text": part.text(row), "metadata": part.metadata_of(row)}
                | {"sparse": sparse.to_dicts()[row], "dense": part.hybrid.dense[row].tolist()}
                for row in range(len(part))
            ]
            assert len(json.dumps(bodies)) < 2000


class TestMissingPackages:
    @pytest.mark.parametrize(
        ("package", "extra", "open_engine"),
        [
            ("qdrant_client", "qdrant", lambda: QdrantEngine("a", None)),
            ("qdrant_edge", "qdrant-edge", lambda: QdrantEdgeEngine("a")),
            ("pymilvus", "milvus", lambda: MilvusEngine("a", None)),
            ("psycopg", "pgvector", lambda: PgVectorEngine("a", "")),
            ("opensearchpy", "opensearch", lambda: OpenSearchEngine("a", "http://localhost:1")),
            ("elasticsearch", "elasticsearch", lambda: ElasticsearchEngine("a", "http://localhost:1")),
        ],
    )
    def test_the_extra_is_named(self, monkeypatch, package, extra, open_engine):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            ImportError, match=rf'{package} must be installed .* pip install "st-keytokens\[{extra}\]"'
        ):
            open_engine()
