from __future__ import annotations

import copy
import csv

import pytest

from st_keytokens import KeyTokenEncoder, KeyTokenHead
from st_keytokens.analysis import KeyTokenAlignmentEvaluator, measure_alignment
from st_keytokens.analysis.alignment import BASELINE


class TestMetrics:
    @pytest.mark.parametrize("variant", ["raw", "corrected", "standardized"])
    def test_are_those_of_the_analysis(self, llama_embedder, sentences, variant):
        found = KeyTokenAlignmentEvaluator(sentences, variant=variant, k=5)(llama_embedder)
        rows = measure_alignment(sentences, llama_embedder, ks=[5]).rows
        for prefix, row in (("", rows[f"embedder, {variant}"]), ("frequency_", rows[BASELINE])):
            assert found[f"{prefix}hit@5"] == row.hits[5].value
            assert found[f"{prefix}share@5"] == row.shares[5].value
            assert found[f"{prefix}local_alignment_rate"] == row.local_alignment_rate.value
            assert found[f"{prefix}global_alignment_rate"] == row.global_alignment_rate.value
            assert found[f"{prefix}precision"] == row.precision.value
        assert len(found) == 10

    def test_a_head_in_the_model_is_used(self, llama_embedder, sentences):
        model = copy.deepcopy(llama_embedder)
        model.append(KeyTokenHead.for_model(model))
        evaluator = KeyTokenAlignmentEvaluator(sentences)
        assert evaluator(model) == evaluator(llama_embedder) == evaluator(KeyTokenEncoder(llama_embedder))


class TestHostForm:
    def test_evaluate_writes_csv_and_model_card(self, llama_embedder, sentences, tmp_path):
        model = copy.deepcopy(llama_embedder)
        evaluator = KeyTokenAlignmentEvaluator(sentences[:9], name="tiny", main="hit")
        found = model.evaluate(evaluator, str(tmp_path))
        evaluator(model, str(tmp_path), epoch=1, steps=20)
        assert evaluator.primary_metric == "tiny_hit@10"
        assert all(name.startswith("tiny_") and isinstance(value, float) for name, value in found.items())
        assert model.model_card_data.eval_results_dict[evaluator] == found
        with (tmp_path / "Key-Token-Alignment_evaluation_tiny_results.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [(row["epoch"], row["steps"]) for row in rows] == [("-1", "-1"), ("1", "20")]
        assert float(rows[0]["hit@10"]) == found["tiny_hit@10"]
        assert evaluator.get_config_dict() == {
            "variant": "raw",
            "k": 10,
            "definition": "clean",
            "max_document_share": 1.0,
        }

    def test_no_file_where_none_is_wanted(self, llama_embedder, sentences, tmp_path):
        KeyTokenAlignmentEvaluator(sentences[:9], write_csv=False)(llama_embedder, str(tmp_path))
        assert not list(tmp_path.iterdir())


class TestValidation:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"texts": []}, ValueError, "texts must hold at least one"),
            ({"texts": [1]}, TypeError, "texts must be"),
            ({"variant": "other"}, ValueError, "variant must be one of 'raw'"),
            ({"main": "other"}, ValueError, "main must be one of 'hit'"),
            ({"k": 0}, ValueError, "k must be >= 1"),
        ],
    )
    def test_arguments(self, changes, error, message):
        with pytest.raises(error, match=message):
            KeyTokenAlignmentEvaluator(**{"texts": ["a"], **changes})
