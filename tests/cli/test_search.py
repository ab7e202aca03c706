from __future__ import annotations

import json
import shutil

import pytest
from cli_samples import WHEAT, set_stdin, write_jsonl

from st_keytokens import HybridIndex


class TestSearch:
    @pytest.mark.parametrize("mode", ["sparse", "dense", "hybrid"])
    def test_same_as_the_library(self, rows, index, calibrated, mode):
        found = rows("search", index, "distant galaxies", WHEAT, "--mode", mode, "--top-k", 3)
        with HybridIndex(index, encoder=calibrated, read_only=True) as opened:
            expected = opened.search(["distant galaxies", WHEAT], mode=mode, top_k=3)
        for row, query, hits in zip(found, ["distant galaxies", WHEAT], expected, strict=True):
            assert (row["query_id"], row["query"], len(row["hits"])) == (None, query, 3)
            for value, hit in zip(row["hits"], hits, strict=True):
                assert (value["id"], value["rank"], value["text"]) == (hit.id, hit.rank, hit.text)
                assert value["score"] == pytest.approx(hit.score, rel=1e-4)
                assert value["scores"] == pytest.approx(hit.scores, rel=1e-4)
                assert value["metadata"] == hit.metadata

    def test_hybrid_is_the_default(self, rows, index):
        assert rows("search", index, WHEAT) == rows("search", index, WHEAT, "--mode", "hybrid")

    def test_lookup_takes_the_words_of_the_query(self, rows, index, calibrated):
        (row,) = rows("search", index, WHEAT, "--lookup")
        with HybridIndex(index, encoder=calibrated, read_only=True) as opened:
            (hits,) = opened.search(calibrated.encode_query([WHEAT], query="lookup"))
        assert [(hit["id"], hit["score"]) for hit in row["hits"]] == [
            (hit.id, pytest.approx(hit.score)) for hit in hits
        ]
        assert row["hits"][0]["id"] == "s38"
        assert set(row["hits"][0]["scores"]) == {"sparse"}

    def test_filter(self, rows, index):
        (row,) = rows("search", index, "the", "--filter", '{"number": {"$lt": 3}}', "--top-k", 50)
        assert sorted(hit["id"] for hit in row["hits"]) == ["s0", "s1", "s2"]
        (row,) = rows("search", index, "the", "--filter", '{"number": 1000}')
        assert row["hits"] == []

    def test_explain_sums_to_the_score(self, rows, index):
        (row,) = rows("search", index, "the immune system", "--mode", "sparse", "--explain", "--top-k", 4)
        for hit in row["hits"]:
            assert sum(term["contribution"] for term in hit["matched_terms"]) == pytest.approx(hit["score"], rel=1e-4)
            for term in hit["matched_terms"]:
                assert term["contribution"] == pytest.approx(term["query_weight"] * term["document_weight"], rel=1e-5)

    def test_readable(self, run, rows, index):
        code, out, err = run(
            "search", index, "distant galaxies", "nothing", "--explain", "--top-k", 2, "--mode", "sparse"
        )
        (first, _) = rows(
            "search", index, "distant galaxies", "nothing", "--explain", "--top-k", 2, "--mode", "sparse"
        )
        lines = out.splitlines()
        assert (code, err, len(lines)) == (0, "", 12)
        assert (lines[0], lines[6]) == ("distant galaxies", "nothing")
        for position, hit in enumerate(first["hits"]):
            cells = lines[2 + 2 * position].split(maxsplit=3)
            assert cells == [str(position + 1), f"{hit['score']:.4f}", hit["id"], shown(hit["text"])]
            terms = [f"{term['token']} {term['contribution']:.2f}" for term in hit["matched_terms"]]
            told = lines[3 + 2 * position].strip().split(", ")
            assert 0 < len(told) <= 8
            assert [term for term in terms if term in told] == told  # by falling contribution, without common ones

    def test_readable_hybrid_has_both_scores(self, run, rows, index):
        _, out, _ = run("search", index, "distant galaxies", "--top-k", 1)
        ((row),) = rows("search", index, "distant galaxies", "--top-k", 1)
        scores = row["hits"][0]["scores"]
        assert out.splitlines()[1].split() == ["score", "sparse", "dense", "id", "text"]
        assert out.splitlines()[2].split()[2:4] == [f"{scores['sparse']:.4f}", f"{scores['dense']:.4f}"]

    def test_no_hits(self, run, index):
        assert run("search", index, "the", "--filter", '{"number": 1000}')[1] == "the\n  no hits\n"

    def test_filter_on_what_no_document_has(self, run, index):
        for condition in ({"nope": 1}, {"$or": [{"number": 1}, {"$not": {"nope": {"$exists": True}}}]}):
            code, _, err = run("search", index, "stars", "--filter", json.dumps(condition), "--top-k", 1)
            assert code == 0
            assert err == "--filter: no document has the metadata key 'nope'. The keys are: number.\n"
        assert run("search", index, "stars", "--filter", '{"nope": 1}', "--quiet")[2] == ""
        code, _, err = run("explain", index, "stars", "s1", "--filter", '{"nope": 1}')
        assert (code, err) == (0, "--filter: no document has the metadata key 'nope'. The keys are: number.\n")

    def test_filter_on_a_type_that_no_document_has(self, run, index):
        code, out, err = run("search", index, "stars", "--filter", '{"number": "1"}')
        assert (code, out) == (0, "stars\n  no hits\n")
        assert err == "--filter: 'number' is compared with a string, but is a number in every document that has it.\n"

    def test_queries_of_a_collection(self, rows, index, tmp_path):
        write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q1", "text": WHEAT}, {"_id": "q2", "text": "stars"}])
        found = rows("search", index, "--input", tmp_path, "--top-k", 1, "--batch-size", 1)
        assert [row["query_id"] for row in found] == ["q1", "q2"]

    def test_queries_of_standard_input(self, rows, monkeypatch, index):
        set_stdin(monkeypatch, b"wheat\nstars\n")
        assert [row["query"] for row in rows("search", index, "--top-k", 1)] == ["wheat", "stars"]

    def test_moved_model(self, rows, fails, model, corpus, tmp_path):
        folder = shutil.copytree(model, tmp_path / "model")
        rows("index", folder, corpus, tmp_path / "index", "--no-calibrate")
        before = rows("search", tmp_path / "index", WHEAT)
        folder.rename(tmp_path / "moved")
        message = fails("search", tmp_path / "index", WHEAT)
        assert message.endswith("If the model has moved, say where it is with --model.")
        assert rows("search", tmp_path / "index", WHEAT, "--model", tmp_path / "moved") == before

    def test_index_of_the_library(self, rows, fails, calibrated, sentences, tmp_path):
        calibrated.save_pretrained(tmp_path / "model")
        with HybridIndex(tmp_path / "index", encoder=calibrated) as opened:
            opened.add([f"s{i}" for i in range(50)], sentences)
        assert fails("search", tmp_path / "index", WHEAT).endswith("Say which it is with --model.")
        (row,) = rows("search", tmp_path / "index", WHEAT, "--model", tmp_path / "model", "--lookup")
        assert row["hits"][0]["id"] == "s38"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--filter", "{"], "--filter must be a JSON object such as"),
            (["--filter", "[1]"], "--filter must be a JSON object such as"),
            (["--filter", '{"number": {"$over": 1}}'], "--filter must be a JSON object such as"),
            (["--filter", '{"number": {"$lt": null}}'], "--filter must be a JSON object such as"),
            (["--lookup", "--mode", "dense"], "--mode must be sparse with --lookup"),
            (["--top-k", "0"], "argument --top-k: must be a whole number of at least 1, got 0"),
            (["--mode", "both"], "argument --mode: invalid choice: 'both'"),
            (["--input", "none.jsonl", "--top-k", "1"], "texts must be given as arguments or with --input, got both."),
        ],
    )
    def test_errors(self, fails, index, words, message):
        assert fails("search", index, WHEAT, *words).startswith(message)

    def test_wrong_model(self, fails, index, other_model):
        message = fails("search", index, WHEAT, "--model", other_model)
        assert message == (
            f"model must be the one that {index} was made with, got {str(other_model)!r} with other weights."
        )

    def test_damaged_folder(self, fails, index_copy):
        (index_copy / "encoder" / "model.json").write_text("{")
        assert "model.json must be as the command index wrote it" in fails("search", index_copy, WHEAT)

    def test_no_index(self, fails, model, tmp_path):
        for path in (model, tmp_path / "none"):
            assert fails("search", path, WHEAT).startswith(
                f"INDEX_DIR must be the directory of an index, got '{path}'"
            )


def shown(text):
    return text if len(text) <= 80 else text[:79] + "…"
