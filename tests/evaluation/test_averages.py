from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from evaluation_samples import build_collection, build_encoder, tables_of

from st_keytokens.document_files import Record
from st_keytokens.evaluation.collections import Collection
from st_keytokens.evaluation.comparison import Evaluation, run_comparison
from st_keytokens.evaluation.measures import MEASURES
from st_keytokens.evaluation.significance import holm, randomization_test

METHODS = ["dense", "bm25-words", "key-tokens"]


@pytest.fixture(scope="module")
def comparisons(llama_embedder):
    """Of collections with five queries and with one, whose answer every method finds at once or never."""
    encoder = build_encoder(llama_embedder)
    documents = [Record("a", "Wolves hunt deer."), Record("b", "Bread of flour."), Record("c", "Stars of dust.")]
    single = Collection.build("single", documents, [Record("q", "wolves")], [("q", "a", 1)])
    return [
        run_comparison(collection, encoder, methods=METHODS, samples=2000)
        for collection in (build_collection(), single)
    ]


@pytest.fixture(scope="module")
def evaluation(comparisons):
    return Evaluation(comparisons)


class TestMacroAverage:
    def test_collections_count_alike(self, evaluation, comparisons):
        for name in METHODS:
            for measure in MEASURES:
                tiny, single = (comparison.methods[name].per_query[measure] for comparison in comparisons)
                expected = (tiny.sum() / 5 + single[0]) / 2
                assert evaluation.macro[name].means[measure] == pytest.approx(expected)

    def test_differences(self, evaluation, comparisons):
        assert evaluation.macro["dense"].differences == {}
        weights = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.5])
        for measure in MEASURES:
            values = {
                name: np.concatenate([comparison.methods[name].per_query[measure] for comparison in comparisons])
                for name in METHODS
            }
            tests = [
                randomization_test(values[name] * weights, values["dense"] * weights, samples=2000)
                for name in METHODS[1:]
            ]
            for name, p, p_holm in zip(METHODS[1:], tests, holm(tests), strict=True):
                found = evaluation.macro[name].differences[measure]
                assert found.mean == pytest.approx(((values[name] - values["dense"]) * weights).sum())
                means = evaluation.macro[name].means[measure], evaluation.macro["dense"].means[measure]
                assert found.mean == pytest.approx(means[0] - means[1])
                assert (found.p, found.p_holm) == (p, p_holm)
                assert found.low <= found.mean <= found.high

    def test_of_one_collection_is_its_own(self, comparisons):
        alone = Evaluation(comparisons[:1]).macro
        for name, result in comparisons[0].methods.items():
            assert alone[name].means == pytest.approx(result.means)
            for measure, difference in result.differences.items():
                found = alone[name].differences[measure]
                assert vars(found) == pytest.approx(vars(difference), abs=1e-12)


class TestValidation:
    def test_refuses(self, comparisons):
        with pytest.raises(ValueError, match=r"comparisons must be of one or more collections .* got \[\]"):
            Evaluation([])
        with pytest.raises(ValueError, match=r"of different names, got \['tiny', 'tiny'\]"):
            Evaluation([comparisons[0], comparisons[0]])
        other = dataclasses.replace(comparisons[1], baseline="bm25-words")
        with pytest.raises(ValueError, match="comparisons must have the same methods and baseline, got"):
            Evaluation([comparisons[0], other])


class TestWriting:
    def test_json(self, evaluation, comparisons):
        read = json.loads(evaluation.to_json())
        assert list(read) == ["environment", "baseline", "macro_average", "collections"]
        assert read["macro_average"]["key-tokens"]["means"] == evaluation.macro["key-tokens"].means
        for found, comparison in zip(read["collections"], comparisons, strict=True):
            expected = json.loads(comparison.to_json())
            assert expected.pop("environment")["packages"] == read["environment"]["packages"]
            assert found == expected

    def test_tables(self, evaluation, comparisons):
        macro, *others = tables_of(evaluation.to_markdown())
        assert len(others) == 4
        means = [evaluation.macro[name].means["nDCG@10"] for name in macro]
        assert means == sorted(means)
        for name, row in macro.items():
            assert row["macro average"] == f"{evaluation.macro[name].means['nDCG@10']:.3f}"
            assert row["macro MAP"] == f"{evaluation.macro[name].means['MAP']:.3f}"
            for comparison in comparisons:
                expected = f"{comparison.methods[name].means['nDCG@10']:.3f}"
                assert row[comparison.collection.name] == expected
        assert macro["dense"]["difference"] == "baseline"
        for comparison in comparisons:
            assert comparison.to_markdown() in evaluation.to_markdown()

    def test_one_collection_has_no_average(self, comparisons):
        text = Evaluation(comparisons[:1]).to_markdown()
        assert "Macro" not in text
        assert text.startswith(comparisons[0].to_markdown())
        assert text.splitlines()[-1].startswith(f"Measured {comparisons[0].environment['date']} on cpu (")

    def test_save(self, evaluation, tmp_path):
        evaluation.save(tmp_path / "a.json")
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
        evaluation.save(tmp_path / "a.json", tmp_path / "a.md")
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == evaluation.to_json()
        assert (tmp_path / "a.md").read_text(encoding="utf-8") == evaluation.to_markdown()
