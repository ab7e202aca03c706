from __future__ import annotations

import json
import logging
import sys

import numpy as np
import pytest
from evaluation_samples import build_collection, build_encoder

import st_keytokens.evaluation as evaluation
from st_keytokens.evaluation.comparison import Comparison, evaluate, run_comparison
from st_keytokens.evaluation.measures import MEASURES
from st_keytokens.evaluation.significance import bootstrap_interval, holm, randomization_test

METHODS = ["dense", "bm25-words", "key-tokens", "key-tokens-lookup", "dense+bm25-words-rrf"]


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return build_encoder(llama_embedder)


@pytest.fixture(scope="module")
def comparison(encoder) -> Comparison:
    return run_comparison(build_collection(), encoder, methods=METHODS)


class TestResults:
    def test_bm25_finds_what_shares_words(self, comparison):
        values = comparison.methods["bm25-words"].per_query
        assert comparison.collection.query_ids == ["wolves", "bread", "stars", "law", "nothing"]
        assert values["MRR@10"].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
        assert values["R@100"].tolist() == [0.5, 1.0, 0.5, 1.0, 0.0]
        assert comparison.methods["bm25-words"].means["MRR@10"] == pytest.approx(0.8)

    def test_differences_are_those_of_the_values(self, comparison):
        others = METHODS[1:]
        for measure in MEASURES:
            theirs = comparison.methods["dense"].per_query[measure]
            tests = [randomization_test(comparison.methods[name].per_query[measure], theirs) for name in others]
            for name, p, p_holm in zip(others, tests, holm(tests), strict=True):
                ours = comparison.methods[name].per_query[measure]
                found = comparison.methods[name].differences[measure]
                assert found.mean == pytest.approx(ours.mean() - theirs.mean())
                assert (found.p, found.p_holm) == (p, p_holm)
                assert (found.low, found.high) == bootstrap_interval(ours, theirs)
        assert comparison.methods["dense"].differences == {}

    def test_the_baseline_is_run_even_where_it_is_not_named(self, encoder):
        made = run_comparison(build_collection(), encoder, methods=["bm25-words"], baseline="bm25-tokens")
        assert list(made.methods) == ["bm25-tokens", "bm25-words"]
        assert made.baseline == "bm25-tokens"

    def test_same_again(self, comparison, encoder):
        again = run_comparison(build_collection(), encoder, methods=METHODS)
        for name, result in comparison.methods.items():
            assert again.methods[name].means == result.means
            assert again.methods[name].differences == result.differences

    def test_what_is_odd_is_logged(self, encoder, caplog):
        with caplog.at_level(logging.WARNING, logger="st_keytokens.evaluation.comparison"):
            run_comparison(build_collection(), encoder, methods=["dense"])
        assert "tiny: queries_empty: 1 (nothing)" in caplog.text
        assert "tiny: judgements_of_absent_documents: 1 (stars absent)" in caplog.text

    def test_refuses(self, encoder):
        with pytest.raises(ValueError, match="methods must be named once, got 'dense' twice"):
            run_comparison(build_collection(), encoder, methods=["dense", "dense"])
        with pytest.raises(ValueError, match=r"methods must be among dense, .*, got 'splade'"):
            run_comparison(build_collection(), encoder, methods=["splade"])
        with pytest.raises(ValueError, match=r"methods must be among dense, .*, got 'none'"):
            run_comparison(build_collection(), encoder, methods=["dense"], baseline="none")

    def test_without_bm25s_the_error_says_what_to_install(self, encoder, monkeypatch):
        monkeypatch.setitem(sys.modules, "bm25s", None)
        with pytest.raises(ImportError, match=r'pip install "st-keytokens\[evaluation\]"'):
            run_comparison(build_collection(), encoder, methods=["bm25-words"])


class TestWriting:
    def test_json_holds_everything_but_the_rankings(self, comparison):
        read = json.loads(comparison.to_json())
        assert list(read["methods"]) == METHODS
        lookup = read["methods"]["key-tokens-lookup"]
        assert lookup["per_query"]["MAP"] == comparison.methods["key-tokens-lookup"].per_query["MAP"].tolist()
        assert set(lookup["differences"]["nDCG@10"]) == {"mean", "low", "high", "p", "p_holm"}
        assert lookup["costs"]["forward_passes"] == 0
        assert "rankings" not in lookup["costs"]
        assert read["query_ids"] == comparison.collection.query_ids
        assert read["collection"]["report"]["documents_empty"] == {"count": 1, "examples": ["d49"]}
        assert read["settings"]["calibration"] == "collection"
        assert set(read["seconds"]) == {"encode_documents", "encode_queries", "calibrate"}
        environment = read["environment"]
        assert environment["packages"]["torch"] is not None
        assert environment["date"].endswith("+00:00")
        assert environment["device"] == "cpu"

    def test_table_puts_losses_first(self, comparison):
        lines = comparison.to_markdown().splitlines()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]
        assert {row[0] for row in rows} == set(METHODS)
        means = [comparison.methods[row[0]].means["nDCG@10"] for row in rows]
        assert means == sorted(means)
        for row in rows:
            assert row[1:5] == [f"{value:.3f}" for value in comparison.methods[row[0]].means.values()]
        cells = {row[0]: row for row in rows}
        assert cells["dense"][5:9] == ["baseline", "", "", ""]
        assert cells["bm25-words"][-3] == "0" and cells["dense"][-3] == "1"
        assert cells["bm25-words"][-1] == "1"

    def test_table_names_what_is_odd(self, comparison):
        text = comparison.to_markdown()
        assert "50 documents, 5 queries" in text
        assert "- judgements of absent documents: 1 (for instance stars absent)" in text
        assert "- documents empty: 1 (for instance d49)" in text

    def test_time_for_a_query_holds_the_pass_only_where_there_is_one(self, comparison):
        lines = [line.split("|") for line in comparison.to_markdown().splitlines() if line.startswith("|")]
        rows = {cells[1].strip(): cells for cells in lines}
        for name in ("key-tokens", "key-tokens-lookup"):
            run = comparison.methods[name].run
            spent = run.seconds["weigh_queries"] + run.seconds["score"]
            spent += comparison.seconds["encode_queries"] * run.forward_passes
            assert float(rows[name][-3]) == pytest.approx(1000 * spent / 5, abs=0.006)

    def test_evaluate_reads_and_writes(self, comparison, encoder, tmp_path):
        folder = tmp_path / "small"
        (folder / "qrels").mkdir(parents=True)
        source = comparison.collection
        for name, ids, texts in (
            ("corpus", source.doc_ids, source.documents),
            ("queries", source.query_ids, source.queries),
        ):
            lines = [json.dumps({"_id": i, "text": text}) for i, text in zip(ids, texts, strict=True)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        judged = [f"{q}\t{d}\t{grade}" for q, docs in source.qrels.items() for d, grade in docs.items()]
        (folder / "qrels/dev.tsv").write_text("\n".join(judged), encoding="utf-8")
        made = evaluate(folder, encoder, split="dev", methods=METHODS, samples=100, output=tmp_path / "out")
        assert {name: result.means for name, result in made.methods.items()} == {
            name: pytest.approx(result.means) for name, result in comparison.methods.items()
        }
        assert (tmp_path / "out/small.json").read_text(encoding="utf-8") == made.to_json()
        assert (tmp_path / "out/small.md").read_text(encoding="utf-8") == made.to_markdown()
        assert json.loads(made.to_json())["settings"]["samples"] == 100


class TestPackage:
    def test_public_names(self):
        assert len(evaluation.__all__) == 13
        assert all(hasattr(evaluation, name) for name in evaluation.__all__)

    def test_values_are_numpy(self, comparison):
        for values in comparison.methods["dense"].per_query.values():
            assert values.dtype == np.float64 and values.shape == (5,)
