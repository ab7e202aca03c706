from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from st_keytokens import key_token_head
from st_keytokens.calibration import Calibration
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.lm_head import LMHead
from st_keytokens.vocabulary import Vocabulary


@pytest.fixture
def embedder(llama_embedder):
    return copy.deepcopy(llama_embedder)


@pytest.fixture(scope="session")
def pooled(llama_embedder, sentences):
    return torch.from_numpy(llama_embedder.encode(sentences))


@pytest.fixture(scope="session")
def calibration(pooled):
    return Calibration.fit_embeddings(torch.nn.functional.normalize(pooled, dim=1).numpy())


def reference(weight, vocabulary, vectors, k, mean=None, deviation=None):
    """Loops over texts and tokens: the best score of each term's tokens, the k best terms, positive scores only."""
    expected = []
    for vector in vectors:
        scores = weight @ vector
        if mean is not None:
            scores = (scores - mean) / deviation
        best: dict[int, float] = {}
        for token, score in enumerate(scores):
            if not vocabulary.is_masked[token]:
                term = int(vocabulary.terms[token])
                best[term] = max(best.get(term, -np.inf), float(score))
        kept = sorted(best, key=lambda term: -best[term])[:k]
        expected.append({term: best[term] for term in kept if best[term] > 0})
    return expected


def as_dicts(ids, weights):
    return [
        {int(i): float(w) for i, w in zip(row, row_weights, strict=True) if w > 0}
        for row, row_weights in zip(ids, weights, strict=True)
    ]


def assert_close(actual, expected):
    assert len(actual) == len(expected)
    for row, expected_row in zip(actual, expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-4, abs=1e-5)


class TestPlace:
    def test_permanent_path(self):
        assert f"{KeyTokenHead.__module__}.{KeyTokenHead.__name__}" == "st_keytokens.key_token_head.KeyTokenHead"
        assert key_token_head.KeyTokenHead is KeyTokenHead


class TestDecode:
    def test_equals_a_loop_over_texts_and_tokens(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        weight = embedder[0].auto_model.get_input_embeddings().weight.detach().numpy()
        unit = torch.nn.functional.normalize(pooled, dim=1).numpy()
        expected = reference(weight, head.vocabulary, unit, 20)
        assert_close(as_dicts(*head.decode(pooled, max_active_dims=20)), expected)

    def test_standardised_and_corrected_equals_the_loop(self, embedder, pooled, calibration):
        head = KeyTokenHead.for_model(embedder, calibration)
        weight = embedder[0].auto_model.get_input_embeddings().weight.detach().double().numpy()
        unit = torch.nn.functional.normalize(pooled.double(), dim=1).numpy()
        direction = np.linalg.svd(unit)[2][0]
        corrected = unit - np.outer(unit @ direction, direction)
        logits = corrected @ weight.T
        deviation = logits.std(0)
        typical = np.sort(deviation[~head.vocabulary.is_masked])[((~head.vocabulary.is_masked).sum() - 1) // 2]
        spread = np.sqrt(deviation**2 + (key_token_head.SHRINKAGE * typical) ** 2)
        expected = reference(weight, head.vocabulary, corrected, 15, logits.mean(0), spread)
        assert_close(as_dicts(*head.decode(pooled, max_active_dims=15)), expected)

    @pytest.mark.parametrize("correction", ["none", "center", "shift"])
    def test_other_corrections(self, embedder, pooled, calibration, correction):
        head = KeyTokenHead.for_model(embedder, calibration, correction=correction, shift=-0.3, standardize=False)
        weight = embedder[0].auto_model.get_input_embeddings().weight.detach().numpy()
        unit = torch.nn.functional.normalize(pooled, dim=1).numpy()
        direction = calibration.first_component.direction.numpy()
        moved = {"none": unit, "center": unit - unit.mean(0), "shift": unit - 0.3 * direction}[correction]
        expected = reference(weight, head.vocabulary, moved, 12)
        assert_close(as_dicts(*head.decode(pooled, max_active_dims=12)), expected)

    def test_length_does_not_matter_where_the_head_normalises(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        ids, weights = head.decode(pooled)
        again, weights_again = head.decode(pooled * 7.5)
        assert torch.equal(ids, again)
        torch.testing.assert_close(weights, weights_again)
        assert not torch.allclose(head.with_settings(normalize=False).decode(pooled * 7.5)[1].amax(1), weights.amax(1))

    def test_ids_ascend_are_unique_unmasked_representatives_and_padding_is_last(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        ids, weights = head.decode(pooled, max_active_dims=600)
        assert ids.dtype == torch.int64
        assert weights.dtype == torch.float32
        for row, row_weights in zip(ids, weights, strict=True):
            active = row[row_weights > 0]
            assert len(active) > 0
            assert (active.diff() > 0).all()
            assert torch.equal(head.terms[active], active)
            assert not head.vocabulary.is_masked[active.numpy()].any()
            assert (row[len(active) :] == 0).all()
            assert (row_weights[len(active) :] == 0).all()

    def test_numbers_of_terms_by_task(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder, max_active_dims=9, query_max_active_dims=4)
        assert head.decode(pooled)[0].shape == (50, 9)
        assert head.decode(pooled, task="query")[0].shape == (50, 4)
        assert head.decode(pooled, task="query", max_active_dims=6)[0].shape == (50, 6)

    def test_batch_of_one_equals_the_batch(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        together = as_dicts(*head.decode(pooled))
        alone = [as_dicts(*head.decode(row[None]))[0] for row in pooled]
        assert_close(alone, together)

    def test_input_is_not_modified_and_no_rows_give_no_rows(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        before = pooled.clone()
        head.decode(pooled)
        assert torch.equal(before, pooled)
        assert head.decode(pooled[:0])[0].shape == (0, 256)

    def test_zero_embedding_has_no_key_tokens(self, embedder, calibration):
        ids, weights = KeyTokenHead.for_model(embedder, calibration).decode(torch.zeros(1, 32))
        assert ids.sum() == 0
        assert weights.sum() == 0

    @pytest.mark.parametrize(
        ("activation", "function"), [("log1p", np.log1p), ("softplus", lambda x: np.log1p(np.exp(x)))]
    )
    def test_activations(self, embedder, pooled, activation, function):
        plain = as_dicts(*KeyTokenHead.for_model(embedder).decode(pooled, max_active_dims=5))
        other = as_dicts(*KeyTokenHead.for_model(embedder, activation=activation).decode(pooled, max_active_dims=5))
        assert_close(other, [{t: function(w) for t, w in row.items()} for row in plain])


class TestInModels:
    def test_modules_insert_and_encode(self, embedder, sentences):
        head = KeyTokenHead.for_model(embedder, max_active_dims=8, query_max_active_dims=3)
        built = SentenceTransformer(modules=[*embedder, head], device="cpu")
        dense = embedder.encode(sentences)
        np.testing.assert_array_equal(built.encode(sentences), dense)
        expected, _ = head.decode(torch.from_numpy(dense))
        ids = torch.stack(built.encode(sentences, output_value="key_token_ids"))
        assert torch.equal(ids, expected)
        inserted = copy.deepcopy(embedder)
        inserted.append(Normalize())
        inserted.insert(2, KeyTokenHead.for_model(inserted, max_active_dims=8, query_max_active_dims=3))
        assert torch.equal(torch.stack(inserted.encode(sentences, output_value="key_token_ids")), expected)
        np.testing.assert_allclose(np.linalg.norm(inserted.encode(sentences), axis=1), 1, rtol=1e-5)

    def test_task_and_max_active_dims_reach_the_head(self, embedder, sentences):
        embedder.append(KeyTokenHead.for_model(embedder, max_active_dims=8, query_max_active_dims=3))
        assert len(embedder.encode_query(sentences[0], output_value="key_token_ids")) == 3
        assert len(embedder.encode_document(sentences[0], output_value="key_token_ids")) == 8
        assert len(embedder.encode(sentences[0], output_value="key_token_ids", max_active_dims=5)) == 5

    def test_sparse_output(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder, output_mode="sparse", max_active_dims=7)
        rows = head({"sentence_embedding": pooled})["sentence_embedding"]
        assert rows.shape == (50, 640)
        expected = as_dicts(*head.decode(pooled))
        assert_close([{int(i): float(row[i]) for i in row.nonzero()[:, 0]} for row in rows], expected)
        assert head.get_embedding_dimension() == 640

    def test_normalized_model_gives_the_same_key_tokens(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        stored = torch.nn.functional.normalize(pooled, dim=1)
        assert torch.equal(head.decode(stored)[0], head.decode(pooled)[0])


class TestBind:
    def test_unbound_head_says_what_to_do(self):
        with pytest.raises(RuntimeError, match=r"not bound to a model.*head\.bind\(model\)"):
            KeyTokenHead().decode(torch.zeros(1, 32))

    def test_bind_takes_lm_head_and_vocabulary(self, embedder, pooled):
        head = KeyTokenHead()
        assert not head.is_bound
        head.bind(embedder)
        assert head.is_bound
        assert torch.equal(head.decode(pooled)[0], KeyTokenHead.for_model(embedder).decode(pooled)[0])

    def test_nothing_is_added_to_the_model(self, embedder):
        before = set(embedder.state_dict())
        embedder.append(KeyTokenHead.for_model(embedder))
        assert set(embedder.state_dict()) == before

    def test_tie_survives_copying_and_pickling(self, embedder, sentences):
        embedder.append(KeyTokenHead.for_model(embedder))
        for clone in (copy.deepcopy(embedder), pickle.loads(pickle.dumps(embedder))):
            with torch.no_grad():
                clone[0].auto_model.get_input_embeddings().weight.mul_(-1)
            head = clone[2]
            changed = head.lm_head.logits(torch.ones(1, 32))
            torch.testing.assert_close(changed, -embedder[2].lm_head.logits(torch.ones(1, 32)))


class TestPrecision:
    def test_statistics_stay_in_float32(self, embedder, calibration, pooled):
        head = KeyTokenHead.for_model(embedder, calibration)
        direction = head.direction.clone()
        embedder.append(head)
        embedder.bfloat16()
        assert embedder[0].auto_model.dtype == torch.bfloat16
        assert {head.direction.dtype, head.mean.dtype, head.score_scale.dtype} == {torch.float32}
        assert torch.equal(head.direction, direction)
        assert head.terms.dtype == torch.int64

    def test_bfloat16_model_agrees_with_float32(self, embedder, calibration, pooled):
        exact = KeyTokenHead.for_model(embedder, calibration).decode_scores(pooled)
        embedder.bfloat16()
        rounded = KeyTokenHead.for_model(embedder, calibration).decode_scores(pooled.bfloat16())
        seen = torch.isfinite(exact)
        assert torch.corrcoef(torch.stack([exact[seen], rounded[seen]]))[0, 1] > 0.99

    def test_gradients_reach_the_embedding(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        vectors = pooled[:2].clone().requires_grad_()
        head.decode(vectors)[1].sum().backward()
        assert vectors.grad.abs().sum() > 0


class TestSaveLoad:
    @pytest.mark.parametrize("kind", ["llama_embedder", "bert_embedder"])
    def test_round_trip(self, request, kind, sentences, tmp_path, bert_folder):
        model = copy.deepcopy(request.getfixturevalue(kind))
        lm_head = LMHead.from_checkpoint(str(bert_folder)) if kind == "bert_embedder" else None
        vectors = torch.from_numpy(model.encode(sentences))
        head = KeyTokenHead(lm_head, max_active_dims=9, activation="log1p")
        head.bind(model)
        head.set_calibration(Calibration.fit_embeddings(head.prepare_embeddings(vectors).numpy()))
        head.save(str(tmp_path / "head"))
        loaded = KeyTokenHead.load(str(tmp_path / "head"))
        loaded.bind(model)
        assert loaded.get_config_dict() == head.get_config_dict()
        for ours, theirs in zip(head.decode(vectors), loaded.decode(vectors), strict=True):
            torch.testing.assert_close(ours, theirs)


class TestValidation:
    def test_choices(self):
        with pytest.raises(ValueError, match=r"correction must be one of 'auto', .* got 'pca'"):
            KeyTokenHead(correction="pca")
        with pytest.raises(ValueError, match=r"activation must be one of .* got 'gelu'"):
            KeyTokenHead(activation="gelu")
        with pytest.raises(ValueError, match=r"output_mode must be one of .* got 'coo'"):
            KeyTokenHead(output_mode="coo")

    def test_numbers_of_terms(self, embedder, pooled):
        with pytest.raises(ValueError, match=r"max_active_dims must be at least 1, got 0"):
            KeyTokenHead(max_active_dims=0)
        with pytest.raises(TypeError, match=r"query_max_active_dims must be an int, got float"):
            KeyTokenHead(query_max_active_dims=1.5)
        with pytest.raises(ValueError, match=r"max_active_dims must be at least 1, got -2"):
            KeyTokenHead.for_model(embedder).decode(pooled, max_active_dims=-2)

    def test_correction_without_calibration(self, embedder, pooled):
        with pytest.raises(ValueError, match=r"correction='remove', standardize=None need a calibration"):
            KeyTokenHead.for_model(embedder, correction="remove").decode(pooled)
        with pytest.raises(ValueError, match=r"correction='auto', standardize=True need a calibration"):
            KeyTokenHead.for_model(embedder, standardize=True).decode(pooled)

    def test_dimension(self, embedder):
        with pytest.raises(ValueError, match=r"embeddings must have shape \(batch_size, 32\), got \(2, 31\)"):
            KeyTokenHead.for_model(embedder).decode(torch.zeros(2, 31))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, embedder, value):
        vectors = torch.zeros(3, 32)
        vectors[1, 4] = value
        with pytest.raises(ValueError, match=r"embeddings must be finite, got NaN or infinity in row 1"):
            KeyTokenHead.for_model(embedder).decode(vectors)

    def test_another_models_calibration(self, embedder):
        with pytest.raises(ValueError, match=r"calibration was fitted on embeddings of dimension 8, .* dimension 32"):
            KeyTokenHead.for_model(embedder, Calibration.fit_embeddings(np.eye(8, dtype=np.float32)))

    def test_another_models_vocabulary(self, embedder, bert_embedder):
        vocabulary = Vocabulary.from_tokenizer(bert_embedder.tokenizer)
        head = KeyTokenHead(vocabulary=vocabulary)
        with pytest.raises(
            ValueError, match=rf"vocabulary has {len(vocabulary)} tokens, but the LM head has 640 rows"
        ):
            head.bind(embedder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCuda:
    def test_follows_the_model_and_agrees_with_the_cpu(self, embedder, calibration, pooled):
        head = KeyTokenHead.for_model(embedder, calibration)
        expected = head.decode_scores(pooled)
        embedder.append(head)
        embedder.to("cuda")
        torch.testing.assert_close(head.decode_scores(pooled.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
