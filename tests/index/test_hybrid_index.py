from __future__ import annotations

import sqlite3
import tracemalloc

import numpy as np
import pytest
from index_samples import HashingEncoder, best, hybrid_rows, sparse_rows, sparse_score

import st_keytokens.index
from st_keytokens.index import Document, Hit, HybridIndex
from st_keytokens.index.fusion import adaptive_fusion, reciprocal_rank_fusion, score_fusion
from st_keytokens.index.snapshot import Snapshot
from st_keytokens.sparse_embeddings import HybridEmbeddings, SparseEmbeddings

KERNELS = ["numba", "torch", "scipy"]
TEXTS = [
    "genes and chromosomes",
    "stars and galaxies and stars",
    "genes of the mouse genome",
    "theorem about primes",
    "galaxies",
]


def pairs(hits):
    return [(hit.id, hit.score) for hit in hits]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def encoded():
    with HybridIndex(encoder=HashingEncoder()) as index:
        index.add(ids=list("abcde"), texts=TEXTS, metadata=[{"number": number} for number in range(5)])
        yield index


def test_public_names():
    assert st_keytokens.index.__all__ == ["Document", "Hit", "HybridIndex", "MatchedTerm"]


class TestAdd:
    def test_ids_are_returned_and_default_to_free_numbers(self, rng):
        with HybridIndex() as index:
            assert index.add(embeddings=hybrid_rows(2, rng)) == ["0", "1"]
            assert index.add(["3", "x"], embeddings=hybrid_rows(2, rng)) == ["3", "x"]
            assert index.add(embeddings=hybrid_rows(2, rng)) == ["4", "5"]
            index.add(["6", "8"], embeddings=hybrid_rows(2, rng))
            index.delete(["8"])
            assert index.add(embeddings=hybrid_rows(2, rng)) == ["8", "9"]
            assert index.add(["12"], embeddings=hybrid_rows(1, rng)) == ["12"]
            assert index.add(embeddings=hybrid_rows(3, rng)) == ["11", "13", "14"]
            assert len(index) == 13

    def test_nothing_to_add(self, encoded):
        assert encoded.add(texts=[]) == []
        assert encoded.add(ids=[], embeddings=SparseEmbeddings.empty(0, 512)) == []
        assert len(encoded) == 5

    @pytest.mark.parametrize(
        "text",
        ["", " \n\t", "a\0b\0", "\ud800 lone \udfff", "\ud83d\ude00", "😀👩‍👩‍👧", "مرحبا שלום", "x" * 1_500_000],
    )
    def test_texts_and_ids_come_back_exactly(self, text, rng):
        with HybridIndex() as index:
            index.add(
                [text], [text], embeddings=sparse_rows(1, rng), metadata=[{"text": "é😀", "n": [1, None, {"a": 0.5}]}]
            )
            assert text in index
            assert index.get([text]) == [Document(text, text, {"text": "é😀", "n": [1, None, {"a": 0.5}]})]
            assert index.delete([text]) == 1

    def test_text_and_metadata_may_be_missing(self, rng):
        with HybridIndex() as index:
            index.add(["a", "b"], embeddings=sparse_rows(2, rng), metadata=[None, {}])
            assert index.get(["a", "b"]) == [Document("a", None, {}), Document("b", None, {})]

    def test_replacing_is_one_step_and_makes_the_document_the_newest(self):
        row = SparseEmbeddings.from_dicts([{1: 1.0}], 3)
        with HybridIndex() as index:
            index.add(["a", "b"], ["old a", "old b"], embeddings=row[[0, 0]], metadata=[{"v": 1}, {"v": 1}])
            index.add(["a", "c"], ["new a", "c"], embeddings=row[[0, 0]], on_conflict="replace")
            (hits,) = index.search(row)
            assert [(hit.id, hit.text, hit.metadata) for hit in hits] == [
                ("b", "old b", {"v": 1}),
                ("a", "new a", {}),
                ("c", "c", {}),
            ]
            assert len(index) == 3

    def test_embeddings_are_not_modified_nor_held(self, rng):
        rows = hybrid_rows(5, rng)
        before = (rows.dense.copy(), rows.sparse.to_dicts())
        with HybridIndex() as index:
            index.add(embeddings=rows)
            (found,) = index.search(rows[:1], mode="dense", top_k=5)
            rows.dense[:] = 99
            assert pairs(
                index.search(HybridEmbeddings(before[0][:1], rows.sparse[:1]), mode="dense", top_k=5)[0]
            ) == pairs(found)
        assert rows.sparse.to_dicts() == before[1]


class TestDelete:
    def test_deleted_documents_are_gone_and_unknown_ids_passed_over(self, encoded):
        assert encoded.delete(["a", "zz", "c"]) == 2
        assert encoded.delete({"a"}) == 0
        assert len(encoded) == 3
        assert "a" not in encoded
        assert "b" in encoded
        assert encoded.search("genes", mode="sparse") == []
        with pytest.raises(KeyError, match="ids must be in the index, got 'a'"):
            encoded.get(["b", "a"])

    def test_an_id_can_come_back(self, encoded):
        encoded.delete(["a"])
        encoded.add(["a"], ["primes"])
        assert [hit.id for hit in encoded.search("primes", mode="sparse")] == ["d", "a"]

    def test_all_may_go(self, encoded):
        assert encoded.delete(list("abcde")) == 5
        for _ in range(2):
            assert len(encoded) == 0
            for mode in ("sparse", "dense", "hybrid"):
                assert encoded.search("genes", mode=mode) == []
            encoded.compact()
        encoded.add(["a"], ["genes"])
        assert [hit.id for hit in encoded.search("genes")] == ["a"]


@pytest.mark.parametrize("kernel", KERNELS)
class TestSparse:
    def test_equals_brute_force_through_changes(self, kernel, rng):
        rows, queries = sparse_rows(300, rng), sparse_rows(10, rng)
        documents = {str(number): row for number, row in enumerate(rows.to_dicts())}

        def check(index):
            found = index.search(queries, top_k=20)
            for query, hits in zip(queries.to_dicts(), found, strict=True):
                scores = {name: sparse_score(query, row) for name, row in documents.items()}
                assert pairs(hits) == best(scores, 20)
                assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
                assert all(hit.scores == {"sparse": hit.score} for hit in hits)

        with HybridIndex(kernel=kernel) as index:
            for start in range(0, 300, 60):
                index.add(embeddings=rows[start : start + 60])
            check(index)
            gone = [str(number) for number in rng.choice(300, size=90, replace=False)]
            assert index.delete(gone) == 90
            for name in gone:
                del documents[name]
            check(index)
            index.compact()
            check(index)

    def test_filters(self, kernel, rng):
        rows = sparse_rows(100, rng)
        with HybridIndex(kernel=kernel) as index:
            index.add(embeddings=rows, metadata=[{"n": number} for number in range(100)])
            index.delete(["10"])
            scores = {
                str(n): sparse_score(rows.to_dicts()[0], row) for n, row in enumerate(rows.to_dicts()[:50]) if n != 10
            }
            (hits,) = index.search(rows[:1], filter={"n": {"$lt": 50}}, top_k=100)
            assert pairs(hits) == best(scores, 100)


class TestDense:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("similarity", ["dot", "cosine"])
    def test_equals_numpy(self, similarity, dtype, rng):
        rows, queries = hybrid_rows(50, rng), hybrid_rows(5, rng)
        with HybridIndex(similarity=similarity, dense_dtype=dtype) as index:
            for start in range(0, 50, 10):
                index.add(embeddings=rows[start : start + 10])
            index.delete(["7"])
            truth = queries.dense @ rows.dense.T
            if similarity == "cosine":
                lengths = np.linalg.norm(queries.dense, axis=1)[:, None] * np.linalg.norm(rows.dense, axis=1)
                truth = np.divide(truth, lengths, out=np.zeros_like(truth), where=lengths > 0)
            for number, hits in enumerate(index.search(queries, mode="dense", top_k=49)):
                assert sorted(hit.id for hit in hits) == sorted(str(n) for n in range(50) if n != 7)
                np.testing.assert_allclose(
                    [hit.score for hit in hits], [truth[number, int(hit.id)] for hit in hits], atol=1e-6
                )
                assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
                assert all(hit.scores == {"dense": hit.score} for hit in hits)

    def test_exactly_the_smaller_of_top_k_and_what_the_filter_leaves(self, encoded):
        assert len(encoded.search("genes", mode="dense", top_k=3)) == 3
        assert len(encoded.search("genes", mode="dense", top_k=99)) == 5
        assert len(encoded.search("genes", mode="dense", top_k=99, filter={"number": {"$gt": 2}})) == 2

    def test_half_precision_halves_the_file(self, rng):
        sizes = {}
        for dtype in ("float32", "float16"):
            with HybridIndex(dense_dtype=dtype) as index:
                index.add(embeddings=hybrid_rows(100, rng))
                (file,) = index.path.glob("segments/*/dense.npy")
                sizes[dtype] = file.stat().st_size - 128
        assert sizes == {"float32": 100 * 4 * 4, "float16": 100 * 4 * 2}


class TestHybrid:
    @pytest.mark.parametrize(
        ("fusion", "function"),
        [
            ("adaptive", adaptive_fusion),
            ("rrf", reciprocal_rank_fusion),
            ("score", score_fusion),
            (lambda rankings, *, weights: score_fusion(rankings, weights=weights, normalization="z-score"), None),
        ],
    )
    @pytest.mark.parametrize("weights", [None, {"dense": 0.3, "sparse": 2.0}])
    def test_fuses_what_the_two_sides_find(self, encoded, fusion, function, weights):
        sides = {mode: pairs(encoded.search("stars and genes", mode=mode, top_k=4)) for mode in ("dense", "sparse")}
        sides["sparse"] = [(id, 2 * score) for id, score in sides["sparse"]]  # as the encoder weighs them for a hybrid
        expected = (function or fusion)(sides, weights=weights or encoded.encoder.fusion_weights)
        hits = encoded.search("stars and genes", mode="hybrid", top_k=3, depth=4, fusion=fusion, weights=weights)
        assert pairs(hits) == [(hit.id, hit.score) for hit in expected][:3]
        assert [hit.scores for hit in hits] == [hit.components for hit in expected][:3]
        assert len({hit.id for hit in hits}) == 3

    def test_without_an_encoder_both_sides_count_alike(self, rng):
        rows = hybrid_rows(30, rng)
        with HybridIndex() as index:
            index.add(embeddings=rows)
            assert index.search(rows[:5]) == index.search(rows[:5], weights={"dense": 1.0, "sparse": 1.0})

    def test_depth_defaults_to_ten_times_top_k(self, rng):
        rows = hybrid_rows(300, rng)
        with HybridIndex() as index:
            index.add(embeddings=rows)
            (given,), (default,) = (index.search(rows[:1], top_k=12, depth=depth) for depth in (120, None))
            assert given == default
            (shallow,) = index.search(rows[:1], top_k=12, depth=1)
            assert len(shallow) <= 2

    def test_explains_the_terms_of_its_own_query(self, encoded):
        for hit in encoded.search("stars and genes"):
            assert hit.is_hybrid
            matched = encoded.explain("stars and genes", hit)
            assert sum(term.contribution for term in matched) == hit.scores.get("sparse", 0)
            assert [2 * term.contribution for term in encoded.explain("stars and genes", hit.id)] == [
                term.contribution for term in matched
            ]

    def test_is_the_default_where_both_sides_have_dense_rows(self, encoded):
        assert encoded.search("genes") == encoded.search("genes", mode="hybrid")
        lookup = encoded.encoder.encode_query(["genes"]).sparse
        assert encoded.search(lookup) == [encoded.search("genes", mode="sparse")]

    def test_filtered(self, encoded):
        hits = encoded.search("genes", filter=["b", "c"])
        assert {hit.id for hit in hits} == {"b", "c"}


class TestQueries:
    def test_a_text_gives_a_list_and_texts_give_lists(self, encoded):
        single = encoded.search("genes", mode="sparse")
        assert [hit.id for hit in single] == ["a", "c"]
        assert encoded.search(["genes", "primes"], mode="sparse") == [single, encoded.search("primes", mode="sparse")]
        assert encoded.search(encoded.encoder.encode_query(["genes"]), mode="sparse") == [single]
        assert encoded.search([]) == []

    def test_one_batch_is_one_call_of_the_encoder(self, encoded):
        before = encoded.encoder.num_calls
        encoded.search(["genes", "primes", "stars"])
        assert encoded.encoder.num_calls == before + 1

    def test_hits_carry_the_document(self, encoded):
        hit = encoded.search("theorem", mode="sparse")[0]
        assert hit == Hit("d", 1.0, 1, TEXTS[3], {"number": 3}, {"sparse": 1.0})

    def test_a_hit_that_is_altered_alters_no_other(self, encoded):
        first = encoded.search("theorem", mode="sparse")[0]
        first.metadata["number"] = first.text = first.scores["sparse"] = None
        assert encoded.search("theorem", mode="sparse") == [Hit("d", 1.0, 1, TEXTS[3], {"number": 3}, {"sparse": 1.0})]
        assert encoded.get(["d"]) == [Document("d", TEXTS[3], {"number": 3})]

    def test_documents_in_memory_are_bounded(self, rng):
        with HybridIndex() as index:
            ids = index.add(texts=[f"{number} " * 100_000 for number in range(100)], embeddings=sparse_rows(100, rng))
            tracemalloc.start()
            for _ in range(2):
                for name in ids:
                    (document,) = index.get([name])
                    assert document.text == f"{name} " * 100_000
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert held < 6_000_000

    @pytest.mark.parametrize("mode", ["sparse", "dense", "hybrid"])
    def test_an_empty_index_finds_nothing(self, mode, rng):
        with HybridIndex(encoder=HashingEncoder()) as index:
            assert index.search("genes", mode=mode) == []
            assert index.search(["genes", ""], mode=mode) == [[], []]
        with HybridIndex() as index:
            assert index.search(hybrid_rows(2, rng), mode=mode) == [[], []]

    def test_an_empty_text_shares_no_term(self, encoded):
        assert encoded.search("  ", mode="sparse") == []

    def test_batch_and_single_are_the_same(self, rng):
        rows = hybrid_rows(80, rng)
        with HybridIndex(similarity="dot") as index:
            index.add(embeddings=rows)
            for mode in ("sparse", "dense", "hybrid"):
                batch = index.search(rows[:6], mode=mode)
                assert batch == [index.search(rows[number], mode=mode)[0] for number in range(6)]


class TestExplain:
    def test_contributions_sum_to_the_sparse_score(self, rng):
        rows = sparse_rows(100, rng)
        with HybridIndex(kernel="numba") as index:
            for start in range(0, 100, 25):
                index.add(embeddings=rows[start : start + 25])
            index.delete(["3"])
            for number in range(8):
                for hit in index.search(rows[number])[0]:
                    matched = index.explain(rows[number], hit)
                    assert sum(term.contribution for term in matched) == hit.score
                    query, document = rows.to_dicts()[number], rows.to_dicts()[int(hit.id)]
                    assert {term.term_id for term in matched} == query.keys() & document.keys()
                    for term in matched:
                        assert (term.query_weight, term.document_weight) == (
                            query[term.term_id],
                            document[term.term_id],
                        )
                        assert term.contribution == term.query_weight * term.document_weight

    def test_readable_by_falling_contribution(self, encoded):
        matched = encoded.explain("galaxies and stars", "b")
        terms = [HashingEncoder.term(word) for word in ("stars", "and", "galaxies")]
        assert {(term.term_id, term.contribution) for term in matched} == set(zip(terms, [2.0, 2.0, 1.0], strict=True))
        assert [term.contribution for term in matched] == [2.0, 2.0, 1.0]
        assert [term.token for term in matched] == [f"<{term.term_id}>" for term in matched]

    def test_nothing_shared(self, encoded):
        assert encoded.explain("theorem", "a") == []

    def test_without_an_encoder_tokens_have_no_name(self, rng):
        row = SparseEmbeddings.from_dicts([{1: 1.0}], 3)
        with HybridIndex() as index:
            index.add(["a"], embeddings=row)
            assert [term.token for term in index.explain(row, "a")] == [None]

    def test_one_query_and_a_known_document(self, encoded):
        with pytest.raises(KeyError, match="ids must be in the index, got 'zz'"):
            encoded.explain("genes", "zz")
        with pytest.raises(ValueError, match="query must be one query, got 2"):
            encoded.explain(["genes", "stars"], "a")
        with pytest.raises(TypeError, match="hit must be strings, got int 3"):
            encoded.explain("genes", 3)


class TestSegments:
    def counts(self, index):
        with index._store.read() as connection:
            snapshot = index._current(connection)
            return [len(segment) for segment in snapshot.segments]

    def test_many_small_adds_stay_few_segments(self, rng):
        rows = sparse_rows(100, rng)
        with HybridIndex() as index:
            for number in range(100):
                index.add(embeddings=rows[number])
                assert len(self.counts(index)) <= np.log2(number + 1) + 1
            assert self.counts(index) == [64, 32, 4]
            assert len(list(index.path.glob("segments/*"))) == 3
            index.verify()

    def test_large_segments_are_not_written_again(self, rng, monkeypatch):
        monkeypatch.setattr("st_keytokens.index.snapshot.MAX_MERGED_ROWS", 40)
        with HybridIndex() as index:
            for _ in range(9):
                index.add(embeddings=sparse_rows(10, rng))
            assert self.counts(index) == [40, 40, 10]
            index.compact()
            assert self.counts(index) == [40, 40, 10]
            index.delete([str(number) for number in range(15)])
            index.compact()
            assert self.counts(index) == [25, 40, 10]

    def test_compact_gives_back_the_space(self, rng):
        with HybridIndex() as index:
            for _ in range(3):
                index.add(embeddings=hybrid_rows(32, rng))
            index.delete([str(number) for number in range(0, 96, 2)])
            before = {name: index.get([name]) for name in ("1", "95")}
            index.compact()
            assert self.counts(index) == [48]
            assert len(list(index.path.glob("segments/*"))) == 1
            assert {name: index.get([name]) for name in ("1", "95")} == before
            with index._store.read() as connection:
                snapshot = index._current(connection)
                assert len(snapshot.dead) == 0
                assert connection.execute("SELECT count(*) FROM tombstones").fetchone() == (0,)
            index.verify()
            index.delete([str(number) for number in range(96)])
            index.compact()
            assert list(index.path.glob("segments/*")) == []

    def test_compact_commits_segment_by_segment(self, rng, monkeypatch):
        monkeypatch.setattr("st_keytokens.index.snapshot.MAX_MERGED_ROWS", 30)
        with HybridIndex() as index:
            for _ in range(6):
                index.add(embeddings=sparse_rows(20, rng))
            index.delete([str(number) for number in range(0, 120, 2)])
            assert self.counts(index) == [20] * 6
            sizes, replace = [], index._store.replace_segments

            def watched(*arguments):
                sizes.append(len(list(index.path.glob("segments/*"))))
                replace(*arguments)

            monkeypatch.setattr(index._store, "replace_segments", watched)
            index.compact()
            assert self.counts(index) == [30, 30]
            assert sizes == [7, 5]  # one more than before, then the rest and one more
            index.compact()
            assert len(sizes) == 2
            index.verify()

    def test_dense_rows_survive_merging(self, rng):
        rows = hybrid_rows(40, rng)
        with HybridIndex(similarity="dot") as index:
            for start in range(0, 40, 8):
                index.add(embeddings=rows[start : start + 8])
            index.delete(["0", "9", "39"])
            index.compact()
            for number in (5, 20, 38):
                truth = rows.dense @ rows.dense[number]
                (hits,) = index.search(rows[number], mode="dense", top_k=37)
                assert {hit.id: hit.score for hit in hits} == {
                    str(n): truth[n] for n in range(40) if n not in (0, 9, 39)
                }

    def test_half_of_a_hit_is_never_made_of_a_dead_row(self, rng):
        rows = sparse_rows(600, rng)
        with HybridIndex() as index:
            index.add(embeddings=rows)
            gone = {str(number) for number in range(600) if number % 7}
            index.delete(gone)
            for hits in index.search(rows[:50], top_k=600):
                assert not {hit.id for hit in hits} & gone


class TestPersistence:
    def test_everything_is_there_again(self, tmp_path, rng):
        rows = hybrid_rows(30, rng)
        with HybridIndex(tmp_path / "index", similarity="dot", dense_dtype="float16", fingerprint="f") as index:
            index.add(
                embeddings=rows[:20], texts=[f"text {n}" for n in range(20)], metadata=[{"n": n} for n in range(20)]
            )
            index.add(embeddings=rows[20:25])
            index.delete(["4"])
            before = {mode: index.search(rows[:5], mode=mode) for mode in ("sparse", "dense", "hybrid")}
            settings = index.settings
        assert settings == {
            "vocab_size": 40,
            "embedding_dimension": 4,
            "fingerprint": "f",
            "similarity": "dot",
            "dense_dtype": "float16",
        }
        for read_only in (True, False):
            with HybridIndex(tmp_path / "index", read_only=read_only) as index:
                assert index.settings == settings
                assert len(index) == 24
                assert {mode: index.search(rows[:5], mode=mode) for mode in before} == before
                index.verify()
        with HybridIndex(tmp_path / "index") as index:
            assert index.add(embeddings=rows[25:27]) == ["25", "26"]

    def test_arrays_are_memory_mapped(self, tmp_path, rng):
        with HybridIndex(tmp_path / "index") as index:
            index.add(embeddings=hybrid_rows(10, rng))
            with index._store.read() as connection:
                snapshot = index._current(connection)
                (segment,) = snapshot.segments
                for array in (segment.keys, segment.postings.gaps, segment.postings.weights, segment.dense.rows):
                    assert isinstance(array.base, np.memmap)
                    assert not array.flags.writeable

    def test_opening_does_not_read_the_documents(self, tmp_path, rng, monkeypatch):
        with HybridIndex(tmp_path / "index") as index:
            index.add(embeddings=sparse_rows(50, rng), texts=["x"] * 50)
        statements = []
        connect = sqlite3.connect

        def traced(*arguments, **options):
            connection = connect(*arguments, **options)
            connection.set_trace_callback(statements.append)
            return connection

        monkeypatch.setattr(sqlite3, "connect", traced)
        HybridIndex(tmp_path / "index").close()
        assert statements
        assert not [statement for statement in statements if "documents" in statement or "texts" in statement]

    def test_a_temporary_index_is_removed(self, rng):
        index = HybridIndex()
        index.add(embeddings=sparse_rows(3, rng))
        assert index.path.is_dir()
        index.close()
        index.close()
        assert not index.path.exists()

    def test_a_failed_write_leaves_nothing_behind(self, rng, monkeypatch):
        with HybridIndex() as index:
            index.add(embeddings=sparse_rows(3, rng))
            files = sorted(index.path.glob("segments/*/*"))

            def interrupted(*arguments, **options):
                raise KeyboardInterrupt

            monkeypatch.setattr(Snapshot, "dead_keys", interrupted)  # after the segment was written
            with pytest.raises(KeyboardInterrupt):
                index.add(["x"], embeddings=sparse_rows(1, rng))
            monkeypatch.undo()
            assert sorted(index.path.glob("segments/*/*")) == files
            assert "x" not in index
            index.add(["x"], embeddings=sparse_rows(1, rng))
            assert len(index) == 4

    def test_leftovers_are_removed_by_the_next_writer_only(self, tmp_path, rng):
        path = tmp_path / "index"
        with HybridIndex(path) as index:
            index.add(embeddings=sparse_rows(3, rng))
        (live,) = (path / "segments").iterdir()
        leftover = live.with_name(f"{live.name[:16]}-{'0' * 32}")
        others = [live.with_name(name) for name in ("0123", "0" * 32, f"{'0' * 16}-{'0' * 32}", "notes")]
        for directory in (leftover, *others):
            directory.mkdir()
            (directory / "gaps.npy").write_bytes(b"half")
        with HybridIndex(path, read_only=True) as index:
            assert len(index) == 3
        assert leftover.exists()
        with HybridIndex(path) as index:
            index.delete(["0"])
            assert not leftover.exists()
            assert all(
                (other / "gaps.npy").read_bytes() == b"half" for other in others
            )  # the index made none of these
            index.verify()


class TestEncoder:
    def test_sparse_only_encoders_and_indexes(self):
        with HybridIndex(encoder=HashingEncoder(has_dense=False)) as index:
            index.add(texts=TEXTS)
            assert index.settings["embedding_dimension"] == 0
            assert [hit.id for hit in index.search("genes")] == ["0", "2"]
        with HybridIndex(encoder=HashingEncoder(), embedding_dimension=0) as index:
            index.add(texts=TEXTS)
            assert not list(index.path.glob("segments/*/dense.npy"))
            assert [hit.id for hit in index.search("genes")] == ["0", "2"]

    def test_another_encoder_is_refused_and_both_are_named(self, tmp_path):
        path = tmp_path / "index"
        with HybridIndex(path, encoder=HashingEncoder("one")) as index:
            index.add(texts=TEXTS)
        message = r"fingerprint must be 'one', which the index .* has, got 'two'\. Use what it was made with"
        with pytest.raises(ValueError, match=message):
            HybridIndex(path, encoder=HashingEncoder("two"))
        with pytest.raises(ValueError, match=message):
            HybridIndex(path, fingerprint="two")
        with HybridIndex(path) as index:
            assert len(index) == 5
        with HybridIndex(path, encoder=HashingEncoder("one")) as index:
            assert index.search("genes")[0].id == "0"

    def test_the_fingerprint_of_the_first_documents_is_kept(self, tmp_path, rng):
        with HybridIndex(tmp_path / "index") as index:
            assert index.settings["fingerprint"] is None
        with HybridIndex(tmp_path / "index", encoder=HashingEncoder("one")) as index:
            index.add(texts=TEXTS)
            assert index.settings["fingerprint"] == "one"
        with HybridIndex() as index:
            index.add(embeddings=hybrid_rows(1, rng))
            assert index.settings["fingerprint"] is None

    def test_an_encoder_that_changes_meanwhile_is_refused(self, encoded):
        encoded.encoder.fingerprint = "recalibrated"
        message = r"fingerprint must be 'recalibrated', which the encoder has now, got 'hashing'"
        with pytest.raises(ValueError, match=message):
            encoded.search("genes")
        with pytest.raises(ValueError, match=message):
            encoded.add(texts=["genes"])

    def test_arguments_that_are_not_the_encoders(self):
        with pytest.raises(ValueError, match="vocab_size must be 512, which the encoder has, got 40"):
            HybridIndex(encoder=HashingEncoder(), vocab_size=40)

    def test_texts_without_an_encoder(self, rng):
        with HybridIndex() as index:
            with pytest.raises(TypeError, match=r"texts must be embeddings in an index without encoder.*encoder="):
                index.add(texts=["a"])
            with pytest.raises(TypeError, match="queries must be embeddings in an index without encoder"):
                index.search("a")
