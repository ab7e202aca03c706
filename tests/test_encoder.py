from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import build_sentence_transformer
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from st_keytokens.calibration import Calibration
from st_keytokens.encoder import KeyTokenEncoder
from st_keytokens.forward_pass import as_sparse
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.lm_head import LMHead
from st_keytokens.texts import check_texts
from st_keytokens.weighting import METHODS, Weighting

PROMPTS = {"query": "find wolves: ", "document": "about stars: "}


@pytest.fixture
def embedder(llama_embedder):
    return copy.deepcopy(llama_embedder)


@pytest.fixture
def encoder(embedder, sentences):
    encoder = KeyTokenEncoder(embedder, max_active_dims=20, query_max_active_dims=6)
    encoder.calibrate(sentences)
    return encoder


def count_passes(model: SentenceTransformer) -> list[int]:
    """Grows by the batch size of every forward pass of the language model."""
    batches: list[int] = []
    embeddings = model[0].auto_model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    return batches


def assert_same(ours, theirs, rtol=1e-5):
    np.testing.assert_allclose(ours.dense, theirs.dense, rtol=rtol, atol=1e-6)
    assert np.array_equal(ours.sparse.indptr, theirs.sparse.indptr)
    assert np.array_equal(ours.sparse.indices, theirs.sparse.indices)
    np.testing.assert_allclose(ours.sparse.values, theirs.sparse.values, rtol=1e-4)


class TestOnePass:
    def test_one_forward_pass_gives_both(self, encoder, sentences):
        batches = count_passes(encoder.model)
        encoded = encoder.encode(sentences, batch_size=50)
        assert batches == [50]
        assert encoded.dense.shape == (50, 32)
        assert encoded.sparse.shape == (50, 640)

    def test_dense_is_what_the_model_gives(self, encoder, sentences):
        np.testing.assert_allclose(
            encoder.encode(sentences).dense, encoder.model.encode(sentences), rtol=1e-5, atol=1e-6
        )

    def test_dense_of_a_normalising_and_truncating_model(self, embedder, sentences):
        embedder.append(Normalize())
        embedder.truncate_dim = 16
        encoded = KeyTokenEncoder(embedder).encode(sentences)
        np.testing.assert_allclose(encoded.dense, embedder.encode(sentences), rtol=1e-5, atol=1e-6)
        assert encoded.dense.shape == (50, 16)

    def test_sparse_holds_decoded_and_literal_terms(self, encoder, sentences):
        encoded = encoder.encode(sentences)
        ids, _ = encoder.head.decode(torch.from_numpy(encoded.dense))
        for i, literal in enumerate(encoder.literal_terms(sentences)):
            assert set(encoded.sparse.row(i)[0]) == set(literal) | set(ids[i].numpy()) - ({0} - set(literal))

    def test_weights_are_the_weightings(self, encoder, sentences):
        encoded = encoder.encode(sentences)
        ids, weights = encoder.head.decode(torch.from_numpy(encoded.dense))
        expected = encoder.weighting.document(
            encoder.literal_terms(sentences),
            as_sparse((ids, weights), encoder.vocabulary),
            640,
            np.mean([len(terms) for terms in encoder.literal_terms(sentences)]),
        )
        np.testing.assert_allclose(encoded.sparse.values, expected.values, rtol=1e-4)

    def test_model_is_left_as_it_was(self, embedder, sentences):
        before, state = list(embedder), set(embedder.state_dict())
        dense = embedder.encode(sentences)
        KeyTokenEncoder(embedder).encode(sentences)
        assert list(embedder) == before
        assert set(embedder.state_dict()) == state
        np.testing.assert_array_equal(embedder.encode(sentences), dense)

    def test_batches_and_order_do_not_matter(self, encoder, sentences):
        encoder.cache.size = 0
        whole = encoder.encode(sentences)
        assert_same(encoder.encode(sentences, batch_size=7), whole)
        assert_same(encoder.encode(sentences[::-1])[np.arange(50)[::-1]], whole)

    def test_odd_texts(self, encoder):
        odd = ["", " \n\t", "nul\0byte", "\ud800 lone", "😀 emoji", "שלום עולם", "中文文本", "wolf " * 20_000]
        encoded = encoder.encode(odd)
        assert np.isfinite(encoded.dense).all()
        assert len(encoded.sparse) == len(odd)
        assert encoded.dense[0].tolist() == [0] * 32
        assert encoded.sparse.active_dims[0] == 0
        encoder.cache.clear()
        for i, text in enumerate(odd):
            np.testing.assert_allclose(encoder.encode(text).dense[0], encoded.dense[i], rtol=1e-4, atol=1e-5)
        assert len(encoder.encode([])) == 0


class TestRoles:
    @pytest.fixture
    def prompted(self, llama_folder):
        return KeyTokenEncoder(build_sentence_transformer(llama_folder, prompts=PROMPTS))

    def test_prompts_reach_the_model_by_role(self, prompted, sentences):
        plain = prompted.model
        np.testing.assert_allclose(
            prompted.encode_query(sentences).dense, plain.encode_query(sentences), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            prompted.encode_document(sentences).dense, plain.encode_document(sentences), rtol=1e-5, atol=1e-6
        )
        assert not np.allclose(prompted.encode_query(sentences).dense, prompted.encode_document(sentences).dense)
        np.testing.assert_allclose(
            prompted.encode(sentences, prompt="x ").dense, plain.encode(sentences, prompt="x "), rtol=1e-5, atol=1e-6
        )

    def test_prompt_tokens_are_never_literal_terms(self, prompted):
        prompted = KeyTokenEncoder(prompted.model, method="literal")
        bare = KeyTokenEncoder(prompted.model, method="literal").encode("rivers", prompt="")
        assert (
            prompted.encode_query("rivers").sparse
            == KeyTokenEncoder(prompted.model, method="literal").encode("rivers", role="query", prompt="").sparse
        )
        assert prompted.encode_document("rivers").sparse == bare.sparse

    def test_template_tokens_are_never_literal_terms(self, bert_embedder, bert_folder):
        encoder = KeyTokenEncoder(copy.deepcopy(bert_embedder), backbone=bert_folder, method="literal")
        (terms,) = encoder.literal_terms(["genes encode proteins"])
        assert not set(terms) & set(encoder.model.tokenizer.all_special_ids)

    def test_queries_have_fewer_terms(self, encoder):
        queries = encoder.encode_query([" "])
        documents = encoder.encode_document(["x"])
        assert 0 < queries.sparse.active_dims[0] <= 6
        assert documents.sparse.active_dims[0] > 6

    def test_unknown_role_and_prompt(self, encoder):
        with pytest.raises(ValueError, match=r"role must be 'query' or 'document', got 'passage'"):
            encoder.encode("a", role="passage")
        with pytest.raises(ValueError, match=r"prompt_name must be one of .* got 'nosuch'"):
            encoder.encode("a", prompt_name="nosuch")


class TestLookup:
    def test_no_forward_pass(self, encoder):
        batches = count_passes(encoder.model)
        found = encoder.encode_query(["wolves hunt deer"], query="lookup")
        assert batches == []
        assert found.dense is None
        expected = {}
        for term in encoder.literal_terms(["wolves hunt deer"])[0]:
            expected[int(term)] = expected.get(int(term), 0) + encoder.calibration.idf[term]
        assert found.sparse.to_dicts()[0] == pytest.approx(expected)

    def test_as_a_setting(self, embedder):
        encoder = KeyTokenEncoder(embedder, query="lookup")
        batches = count_passes(embedder)
        assert encoder.encode_query("wolves").dense is None
        assert batches == []
        assert encoder.encode_query("wolves", query="encode").dense.shape == (1, 32)
        with pytest.raises(ValueError, match=r"query must be 'encode' or 'lookup', got 'bm25'"):
            KeyTokenEncoder(embedder, query="bm25")


class TestCache:
    def test_second_call_costs_nothing(self, encoder, sentences):
        batches = count_passes(encoder.model)
        first = encoder.encode_query(sentences[:5])
        second = encoder.encode_query(sentences[:5])
        assert sum(batches) == 5
        assert_same(second, first)

    def test_only_what_is_missing_is_encoded_and_duplicates_once(self, encoder, sentences):
        batches = count_passes(encoder.model)
        encoder.encode(sentences[:3])
        encoded = encoder.encode([*sentences[1:5], sentences[4]])
        assert sum(batches) == 5
        encoder.cache.clear()
        assert_same(encoded, encoder.encode([*sentences[1:5], sentences[4]]))

    def test_roles_are_kept_apart_and_a_new_calibration_forgets(self, encoder, sentences):
        batches = count_passes(encoder.model)
        encoder.encode_query(sentences[:2])
        encoder.encode_document(sentences[:2])
        assert sum(batches) == 4
        encoder.calibration = None
        encoder.encode_document(sentences[:2])
        assert sum(batches) == 6

    def test_threads_agree(self, encoder, sentences):
        encoder.cache.size = 8
        expected = encoder.encode(sentences)
        results: list = [None] * 8

        def work(i: int) -> None:
            results[i] = encoder.encode(sentences[i : i + 6])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, result in enumerate(results):
            assert_same(result, expected[np.arange(i, i + 6)], rtol=1e-4)


class TestSparsify:
    def test_equals_encoding(self, encoder, sentences, tmp_path):
        encoded = encoder.encode(sentences)
        stored = tmp_path / "dense.npy"
        np.save(stored, encoded.dense)
        for embeddings in (encoded.dense, torch.from_numpy(encoded.dense), np.load(stored, mmap_mode="r")):
            sparse = encoder.sparsify(embeddings, sentences, batch_size=7)
            assert np.array_equal(sparse.indices, encoded.sparse.indices)
            np.testing.assert_allclose(sparse.values, encoded.sparse.values, rtol=1e-4)

    def test_normalised_vectors_give_the_same(self, encoder, sentences):
        encoded = encoder.encode(sentences)
        unit = encoded.dense / np.linalg.norm(encoded.dense, axis=1, keepdims=True)
        sparse = encoder.sparsify(unit, sentences)
        assert np.array_equal(sparse.indices, encoded.sparse.indices)

    def test_without_texts_only_decoded_terms(self, encoder, sentences):
        dense = encoder.encode(sentences).dense
        ids, weights = encoder.head.decode(torch.from_numpy(dense))
        assert np.array_equal(encoder.sparsify(dense).indices, as_sparse((ids, weights), encoder.vocabulary).indices)

    def test_bad_input(self, encoder):
        with pytest.raises(ValueError, match=r"texts must be one for each embedding, got 1 for 2"):
            encoder.sparsify(np.zeros((2, 32), np.float32), ["a"])
        with pytest.raises(ValueError, match=r"shape \(batch_size, 32\), got \(2, 16\)"):
            encoder.sparsify(np.zeros((2, 16), np.float32))
        bad = np.zeros((300, 32), np.float32)
        bad[299, 0] = np.nan
        with pytest.raises(ValueError, match=r"got NaN or infinity in row 299"):
            encoder.sparsify(bad, batch_size=256)
        assert encoder.sparsify(np.zeros((0, 32), np.float32)).shape == (0, 640)


class TestKeyTokens:
    def test_strongest_first_and_readable(self, encoder, sentences):
        (tokens,) = encoder.key_tokens(sentences[0], top_k=5)
        weights = [weight for _, weight in tokens]
        assert len(tokens) == 5
        assert weights == sorted(weights, reverse=True)
        ids, decoded = encoder.head.decode(torch.from_numpy(encoder.encode(sentences[0]).dense), max_active_dims=5)
        assert {t for t, _ in tokens} == {encoder.vocabulary.strings[i] for i in ids[0]}
        assert weights[0] == pytest.approx(float(decoded.max()), rel=1e-4)

    def test_settings_for_one_call(self, encoder, sentences):
        raw = encoder.key_tokens(sentences[0], correction="none", standardize=False)
        assert raw != encoder.key_tokens(sentences[0])
        assert encoder.head.active_correction == "remove"


class TestMethods:
    def test_the_papers_method(self, embedder, sentences):
        encoder = KeyTokenEncoder(embedder, method="nie2025", max_active_dims=100)
        document = encoder.encode_document(sentences)
        ids, weights = encoder.head.decode(torch.from_numpy(document.dense))
        assert document.sparse == as_sparse((ids, weights), encoder.vocabulary)
        query = encoder.encode_query(sentences[0])
        assert set(query.sparse.values) == {1.0}
        assert encoder.head.query_max_active_dims == METHODS["nie2025"].head["query_max_active_dims"]

    def test_unknown(self, embedder):
        with pytest.raises(ValueError, match=r"method must be one of 'default', .* got 'splade'"):
            KeyTokenEncoder(embedder, method="splade")

    def test_own_weighting(self, embedder, sentences):
        encoder = KeyTokenEncoder(embedder, weighting=Weighting(document_terms="literal"))
        assert set(encoder.encode(sentences[0]).sparse.indices) == set(encoder.literal_terms(sentences[:1])[0])


class TestHeads:
    def test_a_head_in_the_model_is_used(self, embedder, sentences):
        embedder.append(KeyTokenHead.for_model(embedder, max_active_dims=5))
        encoder = KeyTokenEncoder(embedder)
        assert encoder.head is embedder[2]
        assert_same(
            encoder.encode(sentences),
            KeyTokenEncoder(SentenceTransformer(modules=list(embedder)[:2], device="cpu"), max_active_dims=5).encode(
                sentences
            ),
        )
        with pytest.raises(ValueError, match=r"model must not hold a KeyTokenHead .* got max_active_dims"):
            KeyTokenEncoder(embedder, max_active_dims=3)

    def test_untied_needs_its_backbone(self, untied_llama_embedder, untied_llama_folder, untied_llama, sentences):
        embedder = copy.deepcopy(untied_llama_embedder)
        with pytest.raises(ValueError, match=r"from_checkpoint"):
            KeyTokenEncoder(embedder)
        encoder = KeyTokenEncoder(embedder, backbone=untied_llama_folder)
        vectors = torch.nn.functional.normalize(torch.from_numpy(embedder.encode(sentences)), dim=1)
        scores = encoder.head.decode_scores(vectors)
        expected = vectors @ untied_llama.lm_head.weight.T
        seen = torch.isfinite(scores)
        torch.testing.assert_close(scores[seen], expected[seen], rtol=1e-4, atol=1e-5)


class TestSaveLoad:
    def test_plain_sentence_transformers_still_loads_the_model(self, encoder, sentences, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
        assert [type(m).__name__ for m in plain] == ["Transformer", "Pooling"]
        np.testing.assert_allclose(plain.encode(sentences), encoder.model.encode(sentences), rtol=1e-4, atol=1e-5)

    def test_everything_is_restored_in_a_fresh_process(self, embedder, sentences, tmp_path):
        encoder = KeyTokenEncoder(
            embedder,
            weighting=Weighting(k1=0.9, document_decoded_weight=0.2),
            query="lookup",
            max_active_dims=11,
            query_max_active_dims=5,
            activation="log1p",
            correction="center",
        )
        encoder.calibrate(sentences)
        encoder.save_pretrained(tmp_path / "saved")
        program = """
import json, sys
from st_keytokens import KeyTokenEncoder
encoder = KeyTokenEncoder.from_pretrained(sys.argv[1], model_arguments={"device": "cpu"})
texts = json.loads(sys.stdin.read())
queries = encoder.encode_query(texts)
documents = encoder.encode_document(texts)
print(json.dumps({"fingerprint": encoder.fingerprint, "no pass": queries.dense is None,
                  "queries": queries.sparse.to_dicts(), "documents": documents.sparse.to_dicts()}))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "saved")],
            input=json.dumps(sentences[:4]),
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["fingerprint"] == encoder.fingerprint
        assert found["no pass"]
        for name, ours in (
            ("queries", encoder.encode_query(sentences[:4])),
            ("documents", encoder.encode_document(sentences[:4])),
        ):
            for row, theirs in zip(ours.sparse.to_dicts(), found[name], strict=True):
                assert {int(k): v for k, v in theirs.items()} == pytest.approx(row, rel=1e-4)

    def test_untied_head_is_saved(self, untied_llama_embedder, untied_llama_folder, sentences, tmp_path):
        encoder = KeyTokenEncoder(copy.deepcopy(untied_llama_embedder), backbone=untied_llama_folder)
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "saved", model_arguments={"device": "cpu"})
        assert loaded.fingerprint == encoder.fingerprint
        assert_same(loaded.encode(sentences), encoder.encode(sentences), rtol=1e-4)

    def test_a_model_without_sidecar_is_attached(self, embedder, sentences, tmp_path):
        embedder.save_pretrained(str(tmp_path / "plain"))
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "plain", max_active_dims=4)
        assert loaded.head.max_active_dims == 4

    def test_what_is_no_longer_there_is_not_loaded(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        encoder.calibration = None
        encoder.save_pretrained(tmp_path / "saved")
        assert KeyTokenEncoder.from_pretrained(tmp_path / "saved").calibration is None

    def test_another_method_replaces_the_saved_settings(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "saved", method="nie2025")
        assert loaded.weighting == METHODS["nie2025"].weighting
        assert loaded.head.max_active_dims == 3000

    def test_sixteen_bits_are_the_same_model(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        for dtype in (torch.float16, torch.bfloat16):
            loaded = KeyTokenEncoder.from_pretrained(
                tmp_path / "saved", model_arguments={"device": "cpu", "model_kwargs": {"dtype": dtype}}
            )
            assert loaded.fingerprint == encoder.fingerprint

    @pytest.mark.parametrize("content", ["{}", "{", '{"format": 1, "query": "encode", "weighting": {"k7": 1}}'])
    def test_damaged(self, encoder, tmp_path, content):
        encoder.save_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / "key_tokens" / "encoder.json").write_text(content)
        with pytest.raises(ValueError, match=r"must hold what save_pretrained wrote, got a damaged one"):
            KeyTokenEncoder.from_pretrained(tmp_path / "saved")

    def test_a_missing_calibration_is_noticed(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / "key_tokens" / "calibration.json").unlink()
        with pytest.raises(ValueError, match=r"must give the encoder that was saved"):
            KeyTokenEncoder.from_pretrained(tmp_path / "saved")

    def test_a_model_that_holds_a_head_is_saved_plain(self, embedder, sentences, tmp_path):
        embedder.append(KeyTokenHead.for_model(embedder, max_active_dims=5))
        encoder = KeyTokenEncoder(embedder)
        encoder.calibrate(sentences)
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder.from_pretrained(tmp_path / "saved", model_arguments={"device": "cpu"})
        assert_same(loaded.encode(sentences), encoder.encode(sentences), rtol=1e-4)

    def test_other_weights_are_refused(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        with torch.no_grad():
            encoder.model[0].auto_model.norm.weight.mul_(2)
        encoder.model.save_pretrained(str(tmp_path / "saved"))
        with pytest.raises(ValueError, match=r"must belong to this model, got one with other model weights"):
            KeyTokenEncoder.from_pretrained(tmp_path / "saved")

    def test_modules_json_route(self, embedder, sentences, tmp_path):
        embedder.append(KeyTokenHead.for_model(embedder, max_active_dims=6))
        embedder.save_pretrained(str(tmp_path / "whole"))
        loaded = SentenceTransformer(str(tmp_path / "whole"), trust_remote_code=True, device="cpu")
        if not loaded[2].is_bound:
            loaded[2].bind(loaded)
        ours = torch.stack(embedder.encode(sentences, output_value="key_token_ids"))
        assert torch.equal(torch.stack(loaded.encode(sentences, output_value="key_token_ids")), ours)


class TestLiveSettings:
    def test_a_changed_weighting_counts_at_once(self, encoder, sentences):
        before = encoder.encode(sentences[:3]), encoder.fingerprint
        encoder.weighting = Weighting(document_terms="literal")
        assert encoder.fingerprint != before[1]
        assert encoder.encode(sentences[:3]).sparse.nnz < before[0].sparse.nnz

    def test_a_changed_head_is_a_fresh_head(self, encoder, sentences):
        vectors = torch.from_numpy(encoder.encode(sentences).dense)
        encoder.head.decode(vectors)
        for changes in ({"correction": "none"}, {"normalize": False}, {"standardize": False, "correction": "center"}):
            for name, value in changes.items():
                setattr(encoder.head, name, value)
            fresh = KeyTokenHead(
                encoder.head.lm_head, encoder.vocabulary, encoder.calibration, **encoder.head.get_config_dict()
            )
            torch.testing.assert_close(encoder.head.decode_scores(vectors), fresh.decode_scores(vectors))

    def test_a_refused_calibration_leaves_the_old_one(self, encoder, sentences):
        before = encoder.calibration
        with pytest.raises(ValueError, match=r"dimension 8"):
            encoder.calibration = Calibration.fit_embeddings(np.eye(8, dtype=np.float32))
        with pytest.raises(ValueError, match=r"at the least, got 1"):
            encoder.calibrate(sentences[:1])
        assert encoder.calibration is before
        encoder.encode(sentences[:2])

    def test_truncation_set_later(self, encoder, sentences):
        encoder.encode(sentences[:2])
        encoder.model.truncate_dim = 16
        assert encoder.encode(sentences[:3]).dense.shape == (3, 16)


class TestOtherModels:
    def test_another_models_calibration_of_the_same_shape_is_refused(self, encoder, embedder):
        with torch.no_grad():
            embedder[0].auto_model.norm.weight.mul_(2)
        other = KeyTokenEncoder(copy.deepcopy(embedder))
        with pytest.raises(ValueError, match=r"calibration must be fitted on this model's embeddings"):
            other.calibration = encoder.calibration

    def test_what_follows_pooling_is_not_decoded(self, embedder, sentences):
        plain = KeyTokenEncoder(copy.deepcopy(embedder)).encode(sentences)
        embedder.append(Dense(32, 16))
        encoder = KeyTokenEncoder(embedder)
        encoded = encoder.encode(sentences)
        assert encoded.sparse == plain.sparse
        np.testing.assert_allclose(encoded.dense, embedder.encode(sentences), rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match=r"Dense follows pooling"):
            encoder.sparsify(plain.dense)

    def test_lm_head_of_another_width(self, embedder):
        with pytest.raises(
            ValueError, match=r"lm_head must decode vectors of dimension 32, .* got one for dimension 48"
        ):
            KeyTokenEncoder(embedder, lm_head=LMHead(torch.nn.Embedding(640, 48)))

    def test_not_finite_is_named_by_its_place(self, embedder):
        with torch.no_grad():
            rows = embedder[0].auto_model.get_input_embeddings().weight
            rows[embedder.tokenizer(" whale")["input_ids"]] = float("nan")
        with pytest.raises(ValueError, match=r"finite vectors, got NaN or infinity for text 1"):
            KeyTokenEncoder(embedder).encode(["stars", "a whale", "rivers and mountains and seas"])


class TestFirstWords:
    def test_a_first_word_is_the_word_that_it_is_elsewhere(self, encoder):
        alone, inside = encoder.literal_terms(["genome", "the genome of a mouse"])
        assert set(alone) <= set(inside)


class TestFingerprint:
    def test_changes_with_everything_that_changes_a_score(self, encoder, embedder, sentences):
        names = {encoder.fingerprint}
        names.add(KeyTokenEncoder(embedder).fingerprint)
        names.add(KeyTokenEncoder(embedder, max_active_dims=7).fingerprint)
        names.add(KeyTokenEncoder(embedder, weighting=Weighting(k1=2.0)).fingerprint)
        encoder.calibrate(sentences[:20])
        names.add(encoder.fingerprint)
        with torch.no_grad():
            embedder[0].auto_model.norm.weight.mul_(2)
        names.add(KeyTokenEncoder(embedder).fingerprint)
        assert len(names) == 6

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: setattr(m, "truncate_dim", 8),
            lambda m: setattr(m[0], "max_seq_length", 7),
            lambda m: m.append(Normalize()),
            lambda m: m.prompts.update(query="q: "),
            lambda m: setattr(m, "default_prompt_name", "query"),
        ],
    )
    def test_changes_with_the_model(self, llama_embedder, change):
        model = copy.deepcopy(llama_embedder)
        change(model)
        assert KeyTokenEncoder(model).fingerprint != KeyTokenEncoder(copy.deepcopy(llama_embedder)).fingerprint

    def test_changes_with_the_lm_head(self, embedder):
        head = LMHead.from_model(embedder[0].auto_model)
        capped, scaled = copy.deepcopy(head), copy.deepcopy(head)
        capped.soft_cap, scaled.scale = 1.0, 9.0
        other = LMHead(torch.nn.Embedding(640, 32))
        assert len({KeyTokenEncoder(embedder, lm_head=h).fingerprint for h in (head, capped, scaled, other)}) == 4

    def test_is_stable(self, embedder):
        assert KeyTokenEncoder(embedder).fingerprint == KeyTokenEncoder(copy.deepcopy(embedder)).fingerprint


class TestCalibrate:
    def test_uses_what_the_head_sees(self, encoder, sentences):
        unit = encoder.embed(sentences)
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
        direct = Calibration.fit_embeddings(unit)
        torch.testing.assert_close(direct.first_component.direction, encoder.calibration.first_component.direction)
        assert encoder.calibration.document_count == 50
        terms = encoder.literal_terms(sentences)
        expected = np.bincount(np.concatenate([np.unique(t) for t in terms]), minlength=640)
        assert np.array_equal(encoder.calibration.document_frequencies, expected)


class TestSparseEncoder:
    def test_is_genuine(self, encoder, sentences, tmp_path):
        sparse = encoder.to_sparse_encoder()
        assert isinstance(sparse, SparseEncoder)
        vectors = sparse.encode(sentences, save_to_cpu=True)
        ids, weights = encoder.head.decode(torch.from_numpy(encoder.model.encode(sentences)))
        expected = torch.zeros(50, 640).scatter_add_(1, ids, weights)
        torch.testing.assert_close(vectors.to_dense(), expected, rtol=1e-4, atol=1e-5)
        assert sparse.get_embedding_dimension() == 640
        assert sparse.sparsity(vectors)["active_dims"] == pytest.approx(float((expected > 0).sum(1).float().mean()))
        assert float(sparse.similarity(vectors, vectors)[0, 1]) == pytest.approx(
            float(expected[0] @ expected[1]), rel=1e-4
        )
        assert len(sparse.decode(vectors[0], top_k=3)) == 3
        shared = {token for token, _ in sparse.decode(sparse.intersection(vectors[0], vectors[1]))}
        both = ((expected[0] > 0) & (expected[1] > 0)).nonzero()[:, 0].tolist()
        assert shared == set(sparse.tokenizer.convert_ids_to_tokens(both))
        assert int((sparse.encode(sentences, max_active_dims=2, save_to_cpu=True).to_dense() > 0).sum(1).max()) <= 2
        sparse.save_pretrained(str(tmp_path / "sparse"))
        loaded = SparseEncoder(str(tmp_path / "sparse"), trust_remote_code=True, device="cpu")
        if not loaded[2].is_bound:
            loaded[2].bind(loaded)
        torch.testing.assert_close(
            loaded.encode(sentences, save_to_cpu=True).to_dense(), expected, rtol=1e-4, atol=1e-5
        )


class TestTravel:
    def test_pickled_encoder_agrees(self, encoder, sentences):
        assert_same(pickle.loads(pickle.dumps(encoder)).encode(sentences), encoder.encode(sentences))

    @pytest.mark.slow
    def test_pool(self, encoder, sentences):
        expected = encoder.encode_query(sentences)
        encoder.cache.clear()
        pool = encoder.start_multi_process_pool(["cpu", "cpu"])
        try:
            assert_same(encoder.encode_query(sentences, pool=pool), expected, rtol=1e-4)
        finally:
            encoder.stop_multi_process_pool(pool)

    @pytest.mark.slow
    def test_pool_with_truncation_empty_texts_and_a_new_calibration(self, encoder, sentences):
        encoder.model.truncate_dim = 16
        texts = ["", *sentences[:6], "\ud800"]
        expected = encoder.encode(texts)
        encoder.cache.clear()
        pool = encoder.start_multi_process_pool(["cpu"])
        try:
            assert_same(encoder.encode(texts, pool=pool), expected, rtol=1e-4)
            encoder.calibrate(sentences[:30])
            with pytest.raises(ValueError, match=r"pool must have been started with the encoder as it is now"):
                encoder.encode(texts, pool=pool)
        finally:
            encoder.stop_multi_process_pool(pool)

    def test_foreign_pool(self, encoder):
        with pytest.raises(ValueError, match=r"pool must come from KeyTokenEncoder\.start_multi_process_pool"):
            encoder.encode("a", pool={"input": None})


class TestAnyText:
    """Hypothesis: whatever the texts, the result is defined, finite, and the same alone and in company."""

    texts = st.lists(
        st.one_of(
            st.text(max_size=80),
            st.text(alphabet=st.characters(categories=["Cs", "Cc", "Zs", "Lo", "So"]), max_size=20),
            st.sampled_from(["", " ", "\0", "\ud800", "wolf", "Wolf ", "ﷺ", "e\u0301", "👩‍👩‍👧‍👦"]),
        ),
        max_size=6,
    )

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(texts=texts)
    def test_is_defined(self, encoder, texts):
        encoder.cache.clear()
        given_texts = list(texts)
        together = encoder.encode(texts)
        assert texts == given_texts
        assert together.dense.shape == (len(texts), 32)
        assert np.isfinite(together.dense).all()
        lookup = encoder.encode_query(texts, query="lookup").sparse if texts else []
        encoder.cache.clear()
        for i, text in enumerate(texts):
            alone = encoder.encode(text)
            np.testing.assert_allclose(alone.dense[0], together.dense[i], rtol=1e-3, atol=1e-5)
            assert set(encoder.literal_terms(check_texts(text))[0]) == set(lookup.row(i)[0])
            assert set(lookup.row(i)[0]) <= set(together.sparse.row(i)[0])
