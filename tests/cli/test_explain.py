from __future__ import annotations

import pytest


class TestExplain:
    def test_contributions_sum_to_the_score(self, rows, index):
        (found,) = rows("explain", index, "the immune system", "s4")
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
        best = found["matched_terms"][0]
        assert lines[2].split() == [
            *(f"{best[name]:.4f}" for name in ("contribution", "query_weight", "document_weight")),
            best["token"],
        ]
        assert lines[-1] == f"  {found['score']:.4f} is the sum, the sparse score."

    def test_unknown_document(self, fails, index):
        assert fails("explain", index, "immune", "s99") == "DOC_ID must be in the index, got 's99'."
