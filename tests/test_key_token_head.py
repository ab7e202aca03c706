from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from st_keytokens import key_token_head
from st_keytokens.calibration import Calibration
from st_keytokens.calibration.standardization import SHRINKAGE
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.terms.vocabulary import Vocabulary


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
        for row, row_weights in zip(ids, weights.detach(), strict=True)
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
        spread = np.sqrt(deviation**2 + (SHRINKAGE * typical) ** 2)
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

    def test_input_is_not_modified(self, embedder, pooled):
        before = pooled.clone()
        KeyTokenHead.for_model(embedder).decode(pooled)
        assert torch.equal(before, pooled)

    def test_no_rows_and_more_terms_than_tokens(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        for rows in (pooled, pooled[:0]):
            ids, weights = head.decode(rows, max_active_dims=10_000)
            assert ids.shape == weights.shape == (len(rows), 640)
            assert (ids.dtype, weights.dtype) == (torch.int64, torch.float32)
        with pytest.raises(ValueError, match=r"embeddings must have shape \(batch_size, 32\), got \(0, 31\)"):
            head.decode(torch.zeros(0, 31))

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
    def test_a_cast_model_leaves_the_scores_of_an_lm_head_of_its_own_alone(
        self, untied_llama_embedder, untied_llama_folder, calibration, pooled
    ):
        model = copy.deepcopy(untied_llama_embedder)
        head = KeyTokenHead(LMHead.from_checkpoint(untied_llama_folder))
        model.append(head)
        head.bind(model)
        head.set_calibration(calibration)
        expected = head.decode_scores(pooled)
        model.bfloat16()
        assert model[0].auto_model.dtype == torch.bfloat16
        assert head.lm_head.dtype == torch.float32
        assert torch.equal(head.decode_scores(pooled), expected)

    def test_bfloat16_model_agrees_with_float32(self, embedder, calibration, pooled):
        exact = KeyTokenHead.for_model(embedder, calibration).decode_scores(pooled)
        embedder.bfloat16()
        rounded = KeyTokenHead.for_model(embedder, calibration).decode_scores(pooled.bfloat16())
        seen = torch.isfinite(exact)
        assert torch.corrcoef(torch.stack([exact[seen], rounded[seen]]))[0, 1] > 0.99

    @pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
    def test_scores_and_weights_are_float32_whatever_the_product_is(self, embedder, calibration, pooled, dtype):
        head = KeyTokenHead.for_model(embedder, calibration, compute_dtype=dtype)
        assert head.lm_head.logits(pooled).dtype == getattr(torch, dtype)
        assert head.decode_scores(pooled).dtype == torch.float32
        assert head.decode(pooled)[1].dtype == torch.float32

    def test_autocast_changes_nothing(self, embedder, calibration, pooled):
        head = KeyTokenHead.for_model(embedder, calibration)
        expected = head.decode_scores(pooled)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(head.decode_scores(pooled), expected)


class TestGradient:
    def test_is_that_of_the_scores_that_are_kept(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder, normalize=False)
        vectors = pooled[:2].clone().requires_grad_()
        ids, weights = head.decode(vectors, max_active_dims=3)
        weights.sum().backward()
        scores = head.decode_scores(pooled[:2])
        rows = head.lm_head.weight.detach()
        for row in range(2):
            best = [int(scores[row].masked_fill(head.terms != term, -torch.inf).argmax()) for term in ids[row]]
            torch.testing.assert_close(vectors.grad[row], rows[best].sum(dim=0))

    def test_after_inference_mode(self, embedder, pooled):
        with torch.inference_mode():
            unit = torch.nn.functional.normalize(pooled, dim=1)
            calibration = Calibration.fit_embeddings(unit, show_progress_bar=False)
            assert calibration.first_component.coefficient > 0
            head = KeyTokenHead.for_model(embedder, calibration)
            head.decode(pooled)
        vectors = pooled[:2].clone().requires_grad_()
        head.decode(vectors)[1].sum().backward()
        assert vectors.grad.abs().sum() > 0

    def test_reaches_the_tied_weight_of_a_sparse_output(self, embedder, sentences):
        embedder.append(KeyTokenHead.for_model(embedder, output_mode="sparse"))
        embedder(embedder.preprocess(sentences[:2]))["sentence_embedding"].sum().backward()
        assert embedder[0].auto_model.get_input_embeddings().weight.grad.abs().sum() > 0


class TestCopies:
    def test_pickled_and_copied_heads_give_the_same(self, embedder, calibration, pooled):
        head = KeyTokenHead.for_model(embedder, calibration)
        size = len(pickle.dumps(head))
        expected = head.decode_scores(pooled)
        assert len(pickle.dumps(head)) < size + 4 * 640 * 3  # logit statistics alone, nothing that they were made into
        for clone in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            assert torch.equal(clone.decode_scores(pooled), expected)

    def test_a_model_on_meta_is_named(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        embedder.to("meta")
        with pytest.raises(ValueError, match=r"LM head must have its weights in memory, got one on the meta device"):
            head.decode(pooled)


class TestWithSettings:
    def test_shares_parts_and_leaves_the_first_alone(self, embedder, calibration, pooled):
        head = KeyTokenHead.for_model(embedder, calibration).eval()
        other = head.with_settings(correction="none", max_active_dims=3)
        assert other.lm_head is head.lm_head
        assert other.vocabulary is head.vocabulary
        assert not other.training
        expected = KeyTokenHead.for_model(embedder, calibration, correction="none", max_active_dims=3)
        for ours, theirs in zip(other.decode(pooled), expected.decode(pooled), strict=True):
            assert torch.equal(ours, theirs)
        assert (head.correction, head.max_active_dims) == ("auto", 256)

    def test_other_folding(self, embedder, calibration, pooled):
        head = KeyTokenHead.for_model(embedder, calibration)
        other = head.with_settings(fold=False)
        assert other.is_bound
        assert (head.fold, other.fold, other.vocabulary.fold) == (True, False, False)
        assert torch.equal(other.terms, torch.arange(640))
        expected = KeyTokenHead.for_model(embedder, calibration, fold=False)
        assert torch.equal(other.decode(pooled)[0], expected.decode(pooled)[0])
        assert torch.equal(other.with_settings(fold=True).decode(pooled)[0], head.decode(pooled)[0])

    def test_folding_that_cannot_be_had(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        given = KeyTokenHead(head.lm_head, head.vocabulary)
        with pytest.raises(ValueError, match=r"fold must be that of the vocabulary that was given, True, got False"):
            given.with_settings(fold=False)
        calibration = Calibration(32, vocabulary_hash=head.vocabulary.hash)
        calibration.update(pooled)
        head.set_calibration(calibration)
        with pytest.raises(ValueError, match=r"Fit a calibration with this model and these folding settings"):
            head.with_settings(fold=False)

    def test_other_compute_dtype(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        other = head.with_settings(compute_dtype="bfloat16")
        assert other.lm_head.weight is head.lm_head.weight
        assert (head.compute_dtype, other.compute_dtype) == (None, "bfloat16")
        unit = torch.nn.functional.normalize(pooled, dim=1).bfloat16()
        expected = (unit @ head.lm_head.weight.bfloat16().T).float()
        seen = torch.isfinite(scores := other.decode_scores(pooled))
        assert torch.equal(scores[seen], expected[seen])


class TestLiveSettings:
    def test_are_checked(self, embedder, pooled):
        head = KeyTokenHead.for_model(embedder)
        before = head.decode(pooled)
        with pytest.raises(ValueError, match=r"activation must be one of .* got 'gelu'"):
            head.activation = "gelu"
        assert all(map(torch.equal, head.decode(pooled), before))

    def test_a_calibration_that_grew_counts_at_once(self, embedder, pooled):
        unit = torch.nn.functional.normalize(pooled, dim=1)
        growing = Calibration.fit_embeddings(unit[:25], show_progress_bar=False)
        head = KeyTokenHead.for_model(embedder, growing)
        before = head.decode_scores(pooled)
        growing.update(unit[25:])
        expected = KeyTokenHead.for_model(embedder, growing).decode_scores(pooled)
        assert torch.equal(head.decode_scores(pooled), expected)
        assert not torch.equal(expected, before)

    def test_an_empty_calibration_leaves_the_old_one(self, embedder, calibration):
        head = KeyTokenHead.for_model(embedder, calibration)
        with pytest.raises(ValueError, match=r"calibration must be fitted on at least one embedding, got none"):
            head.set_calibration(Calibration(32))
        assert head.calibration is calibration

    def test_statistics_of_another_lm_head_are_not_used(self, embedder, calibration, pooled):
        head = KeyTokenHead.for_model(embedder, calibration)
        head.decode(pooled)
        weight = torch.randn(640, 32, generator=torch.Generator().manual_seed(3))
        other = KeyTokenHead(LMHead(torch.nn.Embedding.from_pretrained(weight)), head.vocabulary, calibration)
        expected = other.with_settings().decode_scores(pooled)
        other.take_statistics(head)
        assert torch.equal(other.decode_scores(pooled), expected)


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

    def test_compute_dtype_of_a_tied_head_in_a_fresh_process(self, embedder, pooled, tmp_path):
        embedder.save(str(tmp_path / "plain"))
        body = embedder[0].auto_model
        rounded = KeyTokenHead(LMHead.from_model(body, compute_dtype=torch.bfloat16))
        rounded.bind(embedder)
        rounded.save(str(tmp_path / "head"))
        assert not list((tmp_path / "head").glob("lm_head.*"))
        embedder.append(rounded)
        embedder.save(str(tmp_path / "whole"))
        vectors = pooled[:3]
        np.save(tmp_path / "vectors.npy", vectors.numpy())
        program = """
import json, sys
import numpy as np, torch
from sentence_transformers import SentenceTransformer
from st_keytokens import KeyTokenHead
folder = sys.argv[1]
vectors = torch.from_numpy(np.load(f"{folder}/vectors.npy"))
head = KeyTokenHead.load(f"{folder}/head")
head.bind(SentenceTransformer(f"{folder}/plain", device="cpu"))
whole = SentenceTransformer(f"{folder}/whole", device="cpu", trust_remote_code=True)
whole[2].bind(whole)
print(json.dumps([[h.compute_dtype, h.lm_head.is_tied, h.decode(vectors)[1].tolist()] for h in (head, whole[2])]))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
        )
        weights = rounded.decode(vectors)[1]
        for name, is_tied, loaded in json.loads(done.stdout):
            assert (name, is_tied) == ("bfloat16", True)
            torch.testing.assert_close(torch.tensor(loaded), weights, rtol=1e-6, atol=0)
        exact = KeyTokenHead.for_model(SentenceTransformer(modules=list(embedder)[:2])).decode(vectors)[1]
        assert not torch.allclose(exact, weights, rtol=1e-6, atol=0)

    def test_an_lm_head_tied_to_another_model_is_saved(self, embedder, pooled, tmp_path):
        backbone = copy.deepcopy(embedder[0].auto_model)
        with torch.no_grad():
            backbone.get_input_embeddings().weight.mul_(-1)
        head = KeyTokenHead(LMHead.from_model(backbone))
        head.bind(embedder)
        expected = head.decode_scores(pooled)
        head.save(str(tmp_path))
        loaded = KeyTokenHead.load(str(tmp_path))
        loaded.bind(embedder)
        assert torch.equal(loaded.decode_scores(pooled), expected)

    def test_what_an_earlier_save_left_is_gone(self, embedder, calibration, tmp_path):
        weight = torch.nn.Embedding(640, 32)
        head = KeyTokenHead(LMHead(weight), KeyTokenHead.for_model(embedder).vocabulary, calibration)
        head.save(str(tmp_path))
        assert len(list(tmp_path.iterdir())) == 6
        KeyTokenHead.for_model(embedder).save(str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    def test_saved_over_what_it_was_loaded_from(self, embedder, pooled, tmp_path):
        head = KeyTokenHead(LMHead(torch.nn.Embedding(640, 32)), KeyTokenHead.for_model(embedder).vocabulary)
        head.save(str(tmp_path))
        loaded = KeyTokenHead.load(str(tmp_path))
        loaded.save(str(tmp_path))
        again = KeyTokenHead.load(str(tmp_path))
        assert torch.equal(again.lm_head.weight, head.lm_head.weight)
        assert torch.equal(loaded.lm_head.weight, head.lm_head.weight)

    def test_numbers_of_numpy_are_saved(self, tmp_path):
        KeyTokenHead(max_active_dims=np.int64(9), shift=np.float32(0.5), correction="shift").save(str(tmp_path))
        loaded = KeyTokenHead.load(str(tmp_path))
        assert (loaded.max_active_dims, loaded.shift) == (9, 0.5)

    def test_unknown_setting(self, tmp_path):
        KeyTokenHead().save(str(tmp_path))
        (tmp_path / "config.json").write_text('{"top_k": 3}')
        with pytest.raises(TypeError, match="unexpected keyword argument 'top_k'"):
            KeyTokenHead.load(str(tmp_path))


class TestValidation:
    def test_choices(self):
        with pytest.raises(ValueError, match=r"correction must be one of 'auto', .* got 'pca'"):
            KeyTokenHead(correction="pca")
        with pytest.raises(ValueError, match=r"activation must be one of .* got 'gelu'"):
            KeyTokenHead(activation="gelu")
        with pytest.raises(ValueError, match=r"output_mode must be one of .* got 'coo'"):
            KeyTokenHead(output_mode="coo")
        with pytest.raises(ValueError, match=r"compute_dtype must be one of None, 'float64', .* got 'int8'"):
            KeyTokenHead(compute_dtype="int8")

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("standardize", 1, "standardize must be a bool or None, got 1"),
            ("normalize", "no", "normalize must be a bool or None, got 'no'"),
            ("fold", None, "fold must be a bool, got None"),
            ("shift", "1", "shift must be a number, got str"),
        ],
    )
    def test_types(self, name, value, message):
        with pytest.raises(TypeError, match=message):
            KeyTokenHead(**{name: value})

    def test_shift_is_finite(self):
        with pytest.raises(ValueError, match="shift must be finite, got nan"):
            KeyTokenHead(shift=float("nan"))

    def test_numbers_of_terms(self, embedder, pooled):
        with pytest.raises(ValueError, match=r"max_active_dims must be >= 1, got 0"):
            KeyTokenHead(max_active_dims=0)
        with pytest.raises(TypeError, match=r"query_max_active_dims must be an integer, got float"):
            KeyTokenHead(query_max_active_dims=1.5)
        with pytest.raises(ValueError, match=r"max_active_dims must be >= 1, got -2"):
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
        assert head.lm_head is None
        assert not head.is_bound


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCuda:
    def test_follows_the_model_and_agrees_with_the_cpu(self, embedder, calibration, pooled):
        head = KeyTokenHead.for_model(embedder, calibration)
        expected = head.decode_scores(pooled)
        embedder.append(head)
        embedder.to("cuda")
        torch.testing.assert_close(head.decode_scores(pooled.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
