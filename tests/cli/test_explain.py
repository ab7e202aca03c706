from __future__ import annotations

import pytest
from cli_samples import write_jsonl

from st_keytokens.cli import main

QUERY = "the immune system of a cell"
SEARCHES = [
    [],
    ["--mode", "hybrid", "--top-k", "3"],
    ["--mode", "sparse"],
    ["--mode", "dense"],
    ["--lookup"],
    ["--filter", '{"number": {"$lt": 20}}'],
    ["--top-k", "50", "--filter", '{"number": {"$gte": 3}}'],
]


class TestSameAsSearch:
    @pytest.mark.parametrize("options", SEARCHES, ids=" ".join)
    def test_rank_scores_and_terms(self, rows, index, options):
        (row,) = rows("search", index, QUERY, "--explain", *options)
        assert row["hits"]
        for hit in row["hits"][:3]:
            (found,) = rows("explain", index, QUERY, hit["id"], *options)
            assert found["hit"] == {"rank": hit["rank"], "score": hit["score"], "scores": hit["scores"]}
            assert found["matched_terms"] == hit["matched_terms"]
            assert found["score"] == hit["scores"].get("sparse", found["score"])
            assert found["score"] == pytest.approx(sum(term["contribution"] for term in hit["matched_terms"]))

    def test_numbers_that_people_see(self, run, index):
        line = run("search", index, QUERY, "--top-k", 1)[1].splitlines()[2].split()
        out = run("explain", index, QUERY, line[4])[1].splitlines()
        _, score, sparse, dense, _ = line[:5]
        assert (
            out[-2] == f"  The search finds it at rank 1 with the score {score}, of sparse {sparse} and dense {dense}."
        )
        assert out[-1] == f"  {sparse} is the sum, the sparse score."

    def test_document_that_the_search_does_not_find(self, run, rows, index):
        (row,) = rows("search", index, QUERY, "--top-k", 50, "--mode", "dense")
        last = row["hits"][-1]["id"]
        assert rows("explain", index, QUERY, last, "--mode", "dense")[0]["hit"] is None
        out = run("explain", index, QUERY, last, "--mode", "dense")[1].splitlines()
        assert out[-2].startswith("  The search does not find it among its first 10;")

    def test_options_are_checked_as_those_of_search(self, fails, index):
        assert fails("explain", index, "a", "s1", "--lookup", "--mode", "dense").startswith("--mode must be sparse")
        assert fails("explain", index, "a", "s1", "--filter", "{").startswith("--filter must be a JSON object")


class TestCommonTerms:
    @pytest.fixture
    def common(self, model, tmp_path, capsys):
        """An index of which all documents have "of" and "the", and one has "gas"."""
        texts = ["the stars of gas.", "the cells of the body.", "the wheat of the field.", "the law of the sea."]
        path = write_jsonl(tmp_path / "a.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(texts)])
        assert main(["index", str(model), str(path), str(tmp_path / "index"), "--no-calibrate", "--quiet"]) == 0
        return tmp_path / "index"

    def test_do_not_fill_explanations(self, run, rows, common):
        words = [common, "the stars of gas .", "--lookup", "--top-k", 1, "--explain"]
        _, out, _ = run("search", *words)
        (row,) = rows("search", *words)
        told = {term.split()[0] for term in out.splitlines()[3].strip().split(", ")}
        every = {term["token"] for term in row["hits"][0]["matched_terms"]}
        assert every - told >= {"the", "of"}
        assert told and told <= every

    def test_are_counted_in_one_line(self, run, rows, common):
        _, out, _ = run("explain", common, "the stars of gas .", "0", "--lookup")
        (found,) = rows("explain", common, "the stars of gas .", "0", "--lookup")
        lines = out.splitlines()
        assert lines[-3].endswith("common or small terms)")
        assert sum(float(line.split()[0]) for line in lines[2:-2]) == pytest.approx(found["score"], abs=1e-3)
        assert not any(line.split()[-1] in ("the", "of") for line in lines[2:-3])

    def test_are_shown_where_nothing_else_is(self, run, common):
        _, out, _ = run("explain", common, "the of .", "0", "--lookup")
        assert {line.split()[-1] for line in out.splitlines()[2:-2]} >= {"the", "of"}


class TestExplain:
    def test_contributions_sum_to_the_score(self, rows, index):
        (found,) = rows("explain", index, "the immune system", "s4", "--mode", "sparse")
        (row,) = rows("search", index, "the immune system", "--mode", "sparse", "--top-k", 50)
        score = {hit["id"]: hit["score"] for hit in row["hits"]}["s4"]
        assert found["score"] == pytest.approx(score, rel=1e-4)
        assert sum(term["contribution"] for term in found["matched_terms"]) == pytest.approx(score, rel=1e-4)
        assert found["document"]["text"].startswith("Vaccines teach the immune system")
        assert found["document"]["metadata"] == {"number": 4}

    def test_readable(self, run, rows, index):
        code, out, _ = run("explain", index, "immune", "s4", "--lookup")
        (found,) = rows("explain", index, "immune", "s4", "--lookup")
        lines = out.splitlines()
        assert code == 0 and lines[0].startswith("s4  Vaccines teach the immune system")
        assert lines[1].split() == ["contribution", "query", "document", "token"]
        terms = [
            [*(f"{term[name]:.4f}" for name in ("contribution", "query_weight", "document_weight")), term["token"]]
            for term in found["matched_terms"]
        ]
        assert lines[2].split() in terms
        assert lines[-1] == f"  {found['score']:.4f} is the sum, the sparse score."

    def test_unknown_document(self, fails, index):
        assert fails("explain", index, "immune", "s99") == "DOC_ID must be in the index, got 's99'."
