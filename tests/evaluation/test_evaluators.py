from __future__ import annotations

import copy
import csv

import pytest
from evaluation_samples import build_collection, build_encoder, count_passes
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator, SequentialEvaluator

from st_keytokens.evaluation import HybridInformationRetrievalEvaluator
from st_keytokens.evaluation.encoded import encode_collection
from st_keytokens.evaluation.measures import measure_queries
from st_keytokens.evaluation.methods import run_methods
from st_keytokens.key_token_head import KeyTokenHead


@pytest.fixture(scope="module")
def data():
    collection = build_collection()
    return {
        "queries": dict(zip(collection.query_ids, collection.queries, strict=True)),
        "corpus": dict(zip(collection.doc_ids, collection.documents, strict=True)),
        "relevant_docs": {query: set(judged) - {"absent"} for query, judged in collection.qrels.items()},
    }


@pytest.fixture
def encoder(llama_embedder):
    return build_encoder(llama_embedder)


class TestMetrics:
    def test_dense_is_what_the_host_measures(self, encoder, data):
        data = {
            **data,
            "queries": {key: text for key, text in data["queries"].items() if key != "nothing"},
            "corpus": {key: text for key, text in data["corpus"].items() if text},
        }
        data["relevant_docs"] = {key: docs for key, docs in data["relevant_docs"].items() if key != "nothing"}
        ours = HybridInformationRetrievalEvaluator(**data)(encoder)
        theirs = InformationRetrievalEvaluator(**data)(encoder.model)
        assert len(theirs) == 15
        for name, value in theirs.items():
            assert ours[name.replace("cosine", "dense")] == pytest.approx(value), name

    def test_all_views_agree_with_the_comparison(self, encoder, data):
        found = HybridInformationRetrievalEvaluator(**data, precision_recall_at_k=[10, 100])(encoder)
        collection = build_collection()
        encoder.calibrate(collection.documents, show_progress_bar=False)
        encoder.cache.clear()
        encoded = encode_collection(collection, encoder)
        assert encoded.encoder is encoder
        calibrated = HybridInformationRetrievalEvaluator(**data, precision_recall_at_k=[10, 100])(encoder)
        runs = run_methods(encoded, ["dense", "key-tokens", "dense+key-tokens-lookup-adaptive"])
        binary = {query: dict.fromkeys(docs, 1) for query, docs in data["relevant_docs"].items()}
        for view, run in zip(("dense", "sparse", "hybrid"), runs.values(), strict=True):
            rankings = {
                query: [collection.doc_ids[row] for row in rows]
                for query, (rows, _) in zip(collection.query_ids, run.rankings, strict=True)
            }
            values = measure_queries(binary, rankings)
            for theirs, ours in (("nDCG@10", "ndcg@10"), ("R@100", "recall@100"), ("MRR@10", "mrr@10")):
                assert calibrated[f"{view}_{ours}"] == pytest.approx(values[theirs].mean()), (view, ours)
        assert calibrated["corpus_active_dims"] == runs["key-tokens"].document_active_dims
        assert calibrated["query_active_dims"] == runs["key-tokens"].query_active_dims
        assert calibrated["queries_without_terms"] == runs["key-tokens"].queries_without_terms
        assert found["dense_ndcg@10"] == pytest.approx(calibrated["dense_ndcg@10"])

    def test_single_pass(self, encoder, data):
        passes = count_passes(encoder.model)
        HybridInformationRetrievalEvaluator(**data, batch_size=7)(encoder)
        assert sum(passes) == sum(bool(text) for part in ("queries", "corpus") for text in data[part].values())

    def test_score_fusion_and_its_depth(self, encoder, data):
        by_depth = [
            HybridInformationRetrievalEvaluator(**data, fusion="score", fusion_depth=depth)(encoder)
            for depth in (1, 1000)
        ]
        assert by_depth[0]["sparse_ndcg@10"] == by_depth[1]["sparse_ndcg@10"]
        assert by_depth[0]["hybrid_recall@10"] <= by_depth[0]["dense_recall@1"] + by_depth[0]["sparse_recall@1"]
        assert by_depth[0]["hybrid_map@100"] != by_depth[1]["hybrid_map@100"]


class TestModels:
    def test_a_model_with_a_head_is_measured_with_it(self, llama_embedder, data):
        embedder = copy.deepcopy(llama_embedder)
        head = KeyTokenHead.for_model(embedder, max_active_dims=9, query_max_active_dims=3)
        model = SentenceTransformer(modules=[*embedder, head], device="cpu")
        found = HybridInformationRetrievalEvaluator(**data)(model)
        expected = build_encoder(llama_embedder, terms="tokens")
        expected.head = head
        literal = expected.literal_terms([*data["corpus"].values()])
        assert 9 <= found["corpus_active_dims"] <= 9 + sum(len(set(terms)) for terms in map(tuple, literal)) / 50
        assert found["hybrid_ndcg@10"] > 0

    def test_a_plain_model_is_left_as_it_is(self, llama_embedder, data):
        model = copy.deepcopy(llama_embedder)
        HybridInformationRetrievalEvaluator(**data)(model)
        assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]


class TestHostForm:
    def test_names_primary_metric_and_model_card(self, encoder, data):
        evaluator = HybridInformationRetrievalEvaluator(**data, name="tiny", main="sparse", ndcg_at_k=[3, 10])
        found = evaluator(encoder.model)
        assert evaluator.primary_metric == "tiny_sparse_ndcg@10"
        assert all(name.startswith("tiny_") and isinstance(value, float) for name, value in found.items())
        assert found[evaluator.primary_metric] > 0
        assert "tiny_hybrid_ndcg@3" in found and "tiny_query_active_dims" in found
        assert encoder.model.model_card_data.eval_results_dict[evaluator] == found
        again = evaluator(encoder.model)
        assert again == found and evaluator.primary_metric == "tiny_sparse_ndcg@10"

    def test_csv(self, encoder, data, tmp_path):
        evaluator = HybridInformationRetrievalEvaluator(**data, name="tiny")
        found = evaluator(encoder, str(tmp_path), epoch=1, steps=20)
        evaluator(encoder, str(tmp_path), epoch=2)
        with open(tmp_path / "Hybrid-Information-Retrieval_evaluation_tiny_results.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [(row["epoch"], row["steps"]) for row in rows] == [("1", "20"), ("2", "-1")]
        assert float(rows[0]["hybrid-NDCG@10"]) == found["tiny_hybrid_ndcg@10"]
        assert float(rows[0]["sparse-MAP@100"]) == found["tiny_sparse_map@100"]

    def test_no_csv_where_none_is_wanted(self, encoder, data, tmp_path):
        HybridInformationRetrievalEvaluator(**data, write_csv=False)(encoder, str(tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_among_others_in_a_sequence(self, encoder, data):
        evaluator = SequentialEvaluator(
            [HybridInformationRetrievalEvaluator(**data, name="a")], lambda scores: scores[0]
        )
        found = evaluator(encoder.model)
        assert found["sequential_score"] == found["a_hybrid_ndcg@10"]

    def test_refuses(self, data):
        with pytest.raises(ValueError, match="main must be 'dense', 'sparse' or 'hybrid', got 'both'"):
            HybridInformationRetrievalEvaluator(**data, main="both")
        with pytest.raises(ValueError, match="fusion must be one of 'adaptive', 'score', 'rrf', got 'sum'"):
            HybridInformationRetrievalEvaluator(**data, fusion="sum")
        with pytest.raises(ValueError, match="fusion_depth must be at least 1, got 0"):
            HybridInformationRetrievalEvaluator(**data, fusion_depth=0)
        with pytest.raises(ValueError, match="must name a document for at least one of the queries"):
            HybridInformationRetrievalEvaluator(**{**data, "relevant_docs": {}})
