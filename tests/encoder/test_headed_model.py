from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from encoder_checks import assert_same, count_passes
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from small_models import build_sentence_transformer

from st_keytokens.calibration import Calibration
from st_keytokens.decoding.head_parts import HeadTransform
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.terms.weighting import Weighting

PROMPTS = {"query": "find wolves: ", "document": "about stars: "}


@pytest.fixture
def embedder(llama_embedder):
    return copy.deepcopy(llama_embedder)


@pytest.fixture
def encoder(embedder, sentences):
    encoder = KeyTokenEncoder(embedder, max_active_dims=20, query_max_active_dims=6)
    encoder.calibrate(sentences, show_progress_bar=False)
    return encoder


class TestHeads:
    def test_a_head_in_the_model_is_used(self, embedder, sentences):
        embedder.append(KeyTokenHead.for_model(embedder, max_active_dims=5))
        plain = SentenceTransformer(modules=list(embedder)[:2], device="cpu")
        encoder = KeyTokenEncoder(embedder, terms="tokens")
        assert encoder.head is embedder[2]
        assert_same(
            encoder.encode(sentences),
            KeyTokenEncoder(plain, max_active_dims=5, terms="tokens").encode(sentences),
        )
        with pytest.raises(ValueError, match=r"model must not hold a KeyTokenHead .* got head, max_active_dims"):
            KeyTokenEncoder(embedder, max_active_dims=3, head=KeyTokenHead())

    def test_words_beside_a_head_in_the_model(self, embedder, sentences):
        """The module stays over tokens, as it was; the encoder has its settings, and words for terms."""
        plain = SentenceTransformer(modules=list(embedder)[:2], device="cpu")
        embedder.append(KeyTokenHead.for_model(embedder, max_active_dims=5))
        embedder.append(Normalize())
        encoder = KeyTokenEncoder(embedder)
        tokens = embedder.encode(sentences, output_value="key_token_ids")
        assert encoder.vocabulary.vocab_size == 2**29
        encoder.calibrate(sentences, show_progress_bar=False)
        assert embedder[2].calibration is None
        assert all(map(torch.equal, tokens, embedder.encode(sentences, output_value="key_token_ids")))
        expected = KeyTokenEncoder(plain, max_active_dims=5)
        expected.calibrate(sentences, show_progress_bar=False)
        assert encoder.encode(sentences).sparse == expected.encode(sentences).sparse

    def test_a_head_in_the_model_that_counts_tokens_keeps_them(self, embedder, sentences):
        embedder.append(KeyTokenHead.for_model(embedder))
        KeyTokenEncoder(embedder, terms="tokens").calibrate(sentences, show_progress_bar=False)
        again = KeyTokenEncoder(embedder)
        assert again.head is embedder[2]
        assert again.vocabulary.vocab_size == 640

    def test_a_head_in_the_model_that_counts_words_is_used(self, encoder, embedder, sentences, tmp_path):
        embedder.append(
            KeyTokenHead.for_model(embedder, encoder.calibration, max_active_dims=20, query_max_active_dims=6)
        )
        embedder.save_pretrained(str(tmp_path / "headed"))
        for model in (embedder, tmp_path / "headed"):
            again = KeyTokenEncoder(model)
            assert again.calibration.document_count == 50
            assert_same(again.encode(sentences), encoder.encode(sentences))
        assert KeyTokenEncoder(embedder).head is embedder[2]

    def test_a_model_saved_with_the_head_has_words(self, embedder, sentences, tmp_path):
        embedder.append(KeyTokenHead.for_model(embedder))
        embedder.save_pretrained(str(tmp_path / "headed"))
        encoder = KeyTokenEncoder(tmp_path / "headed")
        assert encoder.vocabulary.vocab_size == 2**29
        encoder.calibrate(sentences, show_progress_bar=False)
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder(tmp_path / "saved")
        assert loaded.fingerprint == encoder.fingerprint
        assert_same(loaded.encode(sentences), encoder.encode(sentences))

    def test_a_head_of_ones_own(self, embedder, sentences):
        head = KeyTokenHead(correction="center", activation="log1p", max_active_dims=4, fold=False)
        encoder = KeyTokenEncoder(embedder, head=head, method="decoded")
        encoder.calibrate(sentences, show_progress_bar=False)
        assert encoder.head is head
        assert not encoder.vocabulary.fold
        ids, weights = head.decode(torch.from_numpy(encoder.encode(sentences).dense))
        assert np.array_equal(encoder.encode(sentences).sparse.indices, ids[weights > 0].numpy())
        with pytest.raises(ValueError, match=r"head must not be given together with .* got max_active_dims, method"):
            KeyTokenEncoder(embedder, head=KeyTokenHead(), max_active_dims=3, method="nie2025")

    def test_a_head_calibrated_for_another_model(self, encoder, embedder):
        other = KeyTokenHead(calibration=encoder.calibration)
        assert KeyTokenEncoder(embedder, head=other).calibration is encoder.calibration
        with torch.no_grad():
            embedder[0].auto_model.norm.weight.mul_(2)
        with pytest.raises(ValueError, match=r"calibration must be fitted on this model's embeddings"):
            KeyTokenEncoder(embedder, head=KeyTokenHead(calibration=encoder.calibration))

    def test_numbers_of_terms(self, embedder):
        over = KeyTokenEncoder(embedder, method="nie2025", max_active_dims=3)
        assert (over.head.max_active_dims, over.head.query_max_active_dims) == (3, 50)
        with pytest.raises(TypeError, match="max_dims"):
            KeyTokenEncoder(embedder, max_dims=3)

    def test_untied_needs_its_backbone(self, untied_llama_embedder, untied_llama_folder, untied_llama, sentences):
        embedder = copy.deepcopy(untied_llama_embedder)
        with pytest.raises(ValueError, match=r"from_checkpoint.*calibrate\(texts\)"):
            KeyTokenEncoder(embedder).encode(sentences[:2])
        encoder = KeyTokenEncoder(embedder, backbone=untied_llama_folder)
        vectors = torch.nn.functional.normalize(torch.from_numpy(embedder.encode(sentences)), dim=1)
        scores = encoder.head.decode_scores(vectors)
        expected = vectors @ untied_llama.lm_head.weight.T
        seen = torch.isfinite(scores)
        torch.testing.assert_close(scores[seen], expected[seen], rtol=1e-4, atol=1e-5)


class TestFingerprintOfHeads:
    def test_heads_that_differ_in_one_thing_alone(self, embedder):
        """Activation, epsilon, scale, soft cap, a weight: each changes the hash, and the encoder's fingerprint."""
        torch.manual_seed(0)
        output, dense, norm = torch.nn.Linear(32, 640, bias=False), torch.nn.Linear(32, 32), torch.nn.LayerNorm(32)
        other = copy.deepcopy(output)
        other.weight.data[0] += 1

        def head(weight=output, activation="gelu", norm_eps=1e-12, **settings):
            transform = HeadTransform(dense, norm, activation=activation, norm_eps=norm_eps)
            return LMHead(weight, transform, is_held=False, **settings)

        heads = [
            head(),
            head(activation="relu"),
            head(activation="silu"),
            head(norm_eps=1e-5),
            head(scale=0.5),
            head(soft_cap=30.0),
            head(weight=other),
            LMHead(output, is_held=False),
        ]
        assert len({each.hash for each in heads}) == len(heads)
        fingerprints = {KeyTokenEncoder(embedder, backbone=each).fingerprint for each in heads}
        assert len(fingerprints) == len(heads)
        assert head().hash == head().hash


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
            KeyTokenEncoder(embedder, head=KeyTokenHead(LMHead(torch.nn.Embedding(640, 48))))

    def test_not_finite_is_named_by_its_place(self, embedder):
        with torch.no_grad():
            rows = embedder[0].auto_model.get_input_embeddings().weight
            rows[embedder.tokenizer(" whale")["input_ids"]] = float("nan")
        with pytest.raises(ValueError, match=r"finite vectors, got NaN or infinity for text 1"):
            KeyTokenEncoder(embedder).encode(["stars", "a whale", "rivers and mountains and seas"])


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
        names = {KeyTokenEncoder(embedder, head=KeyTokenHead(h)).fingerprint for h in (head, capped, scaled, other)}
        assert len(names) == 4

    @pytest.mark.parametrize(
        "change",
        [
            lambda e: e.model.prompts.update(query="q: "),
            lambda e: setattr(e.model, "truncate_dim", 8),
            lambda e: setattr(e.model[0], "max_seq_length", 7),
            lambda e: setattr(e.model[1], "include_prompt", False),
            lambda e: e.model[0].modality_config["text"].update(method_output_name="other"),
            lambda e: setattr(e.head, "shift", 1.0),
            lambda e: setattr(e, "weighting", Weighting(b=0.5)),
            lambda e: setattr(e, "calibration", None),
            lambda e: e.calibration.merge(e.calibration),
        ],
    )
    def test_changes_with_a_living_encoder_and_back(self, encoder, change):
        before, copied = encoder.fingerprint, copy.deepcopy(encoder)
        change(encoder)
        assert encoder.fingerprint != before
        assert copied.fingerprint == before

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
        ids, expected = np.unique(np.concatenate([np.unique(t) for t in terms]), return_counts=True)
        assert np.array_equal(encoder.calibration.document_frequencies[ids], expected)
        assert encoder.calibration.document_frequencies[np.array([ids[0] + 1])].tolist() == [0]

    def test_batch_size_is_that_of_the_forward_pass(self, encoder, sentences, tmp_path):
        batches = count_passes(encoder.model)
        state = tmp_path / "state.safetensors"
        encoder.calibrate(iter(sentences), batch_size=7, show_progress_bar=False, resume_from=state, save_every=20)
        assert sum(batches) == 50
        assert max(batches) == 7
        assert encoder.calibration.document_count == 50
        encoder.calibrate(sentences, show_progress_bar=False, resume_from=state)
        assert sum(batches) == 50

    def test_stored_vectors_cost_no_pass(self, encoder, sentences):
        dense = encoder.encode(sentences).dense
        batches, fitted = count_passes(encoder.model), encoder.calibration
        encoder.calibrate(sentences, embeddings=dense * 3, show_progress_bar=False)
        assert batches == []
        torch.testing.assert_close(
            encoder.calibration.first_component.direction, fitted.first_component.direction, rtol=1e-4, atol=1e-5
        )

    def test_dense_vectors_count_as_far_as_they_are_trusted(self, embedder, encoder):
        assert KeyTokenEncoder(embedder).fusion_weights == {"dense": 1.0, "sparse": 1.0}
        encoder.calibration.decoded_trust = 0.25
        assert encoder.fusion_weights == {"dense": 0.1875, "sparse": 1.0}

    def test_embed_takes_the_prompt_of_the_role(self, llama_folder, sentences):
        model = build_sentence_transformer(llama_folder, prompts=PROMPTS)
        encoder = KeyTokenEncoder(model, head=KeyTokenHead(normalize=False))
        for role, encode in (("query", encoder.model.encode_query), ("document", encoder.model.encode_document)):
            np.testing.assert_allclose(encoder.embed(sentences, role=role), encode(sentences), rtol=1e-4, atol=1e-5)


class TestSparseEncoder:
    def test_is_genuine(self, encoder, sentences, tmp_path):
        sparse = encoder.to_sparse_encoder()
        assert isinstance(sparse, SparseEncoder)
        vectors = sparse.encode(sentences, save_to_cpu=True)
        tokens = encoder.over_tokens()
        ids, weights = tokens.head.decode(torch.from_numpy(encoder.model.encode(sentences)))
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

    def test_foreign_pool(self, encoder):
        with pytest.raises(ValueError, match=r"pool must come from KeyTokenEncoder\.start_multi_process_pool"):
            encoder.encode("a", pool={"input": None})
