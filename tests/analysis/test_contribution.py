from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from st_keytokens import KeyTokenEncoder, KeyTokenHead, LMHead, Vocabulary
from st_keytokens.analysis.contribution import float32_logits, measure_contribution, split_logits
from st_keytokens.analysis.spectrum import measure_spectrum

WEIGHT = torch.tensor([[4.0, 0.0], [1.0, 2.0], [1.0, -2.0]])
U = torch.tensor([1.0, 0.0])


@pytest.fixture
def head():
    vocabulary = Vocabulary(["the", "cat", "dog"], kind="plain")
    return KeyTokenHead(LMHead(nn.Embedding.from_pretrained(WEIGHT)), vocabulary)


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return KeyTokenEncoder(llama_embedder, terms="tokens")


class TestOrder:
    def test_masked_tokens_are_left_out_and_folded_ones_count_once(self):
        vocabulary = Vocabulary(["<s>", "a", "Ġa", "b"], kind="byte-level", special_ids=[0])
        weight = torch.tensor([[9.0], [3.0], [4.0], [1.0]])
        head = KeyTokenHead(LMHead(nn.Embedding.from_pretrained(weight)), vocabulary)
        found = measure_contribution(head, embeddings=np.ones((1, 1)), component=torch.ones(1), top_k=2)
        assert [(token.token_id, token.logit) for token in found.mean_tokens("first")] == [(2, 4.0), (3, 1.0)]


class TestLogits:
    def test_half_precision_is_not_rounded(self):
        weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
        lm_head = LMHead(nn.Embedding.from_pretrained(weight))
        embeddings = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(float32_logits(lm_head, embeddings), embeddings @ weight.float().T)

    def test_bias_is_the_rests(self):
        output = nn.Linear(2, 3)
        with torch.no_grad():
            output.weight.copy_(WEIGHT)
            output.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        logits, first = split_logits(LMHead(output, scale=2.0), torch.tensor([[2.0, 3.0]]), U)
        assert logits.tolist() == [[18.0, 20.0, -2.0]]
        assert first.tolist() == [[16.0, 4.0, 4.0]]

    def test_transform_and_soft_cap_still_sum(self, bert):
        head = LMHead.from_model(bert)
        embeddings = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
        direction = torch.nn.functional.normalize(torch.ones(32), dim=0)
        logits, first = split_logits(head, embeddings, direction)
        rest = embeddings - (embeddings @ direction)[:, None] * direction
        torch.testing.assert_close(logits, head.logits(embeddings))
        torch.testing.assert_close(logits - first, head.logits(rest))
        capped = LMHead(nn.Embedding.from_pretrained(WEIGHT), soft_cap=5.0)
        logits, first = split_logits(capped, torch.tensor([[2.0, 3.0]]), U)
        torch.testing.assert_close(logits - first, capped.logits(torch.tensor([[0.0, 3.0]])))

    def test_the_sign_of_the_direction_changes_nothing(self):
        lm_head = LMHead(nn.Embedding.from_pretrained(WEIGHT))
        embeddings = torch.tensor([[2.0, 3.0], [-1.0, 1.0]])
        for one, two in zip(split_logits(lm_head, embeddings, U), split_logits(lm_head, embeddings, -U), strict=True):
            assert torch.equal(one, two)


class TestNumbers:
    def test_hand_worked(self, head):
        # Logits (8, 8, -4) and (4, -3, 5); of the first component (8, 2, 2) and (4, 1, 1).
        found = measure_contribution(
            head, ["first", "second"], embeddings=np.array([[2.0, 3.0], [1.0, -2.0]]), component=U, top_k=1
        )
        one, two = found.texts
        assert (one.text, one.projection, two.text, two.projection) == ("first", 2.0, "second", 1.0)
        assert [(t.token, t.logit, t.first, t.rest) for t in one.tokens] == [("the", 8.0, 8.0, 0.0)]
        assert [(t.token, t.first) for t in one.first_tokens] == [("the", 8.0)]
        assert [(t.token, t.rest) for t in one.rest_tokens] == [("cat", 6.0)]
        assert [(t.token, t.logit) for t in two.tokens] == [("dog", 5.0)]
        assert found.mean_projection == 1.5
        np.testing.assert_allclose(found.mean_first, [6.0, 1.5, 1.5])
        np.testing.assert_allclose(found.mean_rest, [0.0, 1.0, -1.0])
        assert {part: counts.tolist() for part, counts in found.counts.items()} == {
            "logit": [1, 0, 1],
            "first": [2, 0, 0],
            "rest": [0, 1, 1],
        }
        assert found.overlaps == {"first": 0.5, "rest": 0.5}
        assert [t.token for t in found.mean_tokens("rest")] == ["cat"]

    def test_parts_sum_and_match_numpy(self, encoder, sentences):
        spectrum = measure_spectrum(encoder, sentences)
        found = measure_contribution(encoder, sentences, component=spectrum, top_k=4, examples=3)
        vectors = encoder.model.encode(sentences).astype(np.float64)
        weight = encoder.head.lm_head.weight.double().detach().numpy()
        u = spectrum.components[0]
        first = np.outer(vectors @ u, weight @ u)
        np.testing.assert_allclose(found.mean_first, first.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(found.mean_rest, (vectors @ weight.T - first).mean(axis=0), atol=1e-4)
        assert found.count == len(sentences)
        assert len(found.texts) == 3
        for token in found.texts[2].tokens:
            assert token.logit == pytest.approx(vectors[2] @ weight[token.token_id], abs=1e-4)
            assert token.logit == pytest.approx(token.first + token.rest)

    def test_decoded_tokens_are_the_encoders(self, encoder, sentences):
        found = measure_contribution(encoder, sentences[:3], component=torch.eye(32)[0], top_k=5)
        raw = encoder.key_tokens(sentences[:3], 5, correction="none", standardize=False)
        terms = encoder.vocabulary.terms
        for text, expected in zip(found.texts, raw, strict=True):
            shown = [encoder.vocabulary.strings[terms[token.token_id]] for token in text.tokens]
            assert shown == [token for token, _ in expected]

    def test_masked_tokens_never_count(self, encoder, sentences):
        found = measure_contribution(encoder, sentences, component=torch.eye(32)[0], top_k=640)
        for counts in found.counts.values():
            assert not counts[encoder.vocabulary.is_masked].any()
        terms = len(np.unique(encoder.vocabulary.terms[~encoder.vocabulary.is_masked]))
        assert found.counts["logit"].sum() == terms * len(sentences)
        assert len(found.texts[0].tokens) == terms

    def test_frequency_correlations(self, head):
        found = measure_contribution(head, embeddings=np.array([[2.0, 3.0]]), component=U)
        frequencies = np.array([10, 5, 7])
        expected = [stats.spearmanr(v, frequencies).statistic for v in ([8, 8, -4], [8, 2, 2], [0, 6, -6])]
        assert list(found.frequency_correlations(frequencies).values()) == pytest.approx(expected)
        assert np.isnan(found.frequency_correlations(np.array([3, 0, 0]))["first"])


class TestStreaming:
    def test_one_batch_is_as_many(self, encoder, sentences):
        vectors, component = encoder.model.encode(sentences), torch.eye(32)[0]
        whole = measure_contribution(encoder, sentences, embeddings=vectors, component=component)
        parts = measure_contribution(
            encoder, sentences, embeddings=(vectors[i : i + 7] for i in range(0, 50, 7)), component=component
        )
        assert parts.to_dict() == whole.to_dict()

    def test_texts_of_a_generator(self, encoder, sentences):
        found = measure_contribution(encoder, iter(sentences), component=torch.eye(32)[0], examples=2)
        assert [text.text for text in found.texts] == sentences[:2]
        assert found.count == len(sentences)

    def test_the_calibrations_component(self, llama_embedder, sentences):
        encoder = KeyTokenEncoder(llama_embedder, terms="tokens")
        encoder.calibrate(sentences, show_progress_bar=False)
        one = measure_contribution(encoder, sentences)
        two = measure_contribution(encoder, sentences, component=encoder.calibration.first_component)
        assert one.to_dict() == two.to_dict()


class TestDegenerate:
    def test_one_text_fewer_tokens_than_asked(self, head):
        found = measure_contribution(head, embeddings=np.array([[2.0, 3.0]]), component=U, top_k=10)
        assert [len(tokens) for tokens in (found.texts[0].tokens, found.mean_tokens())] == [3, 3]
        assert found.texts[0].text is None

    def test_no_examples(self, head):
        assert measure_contribution(head, embeddings=np.ones((2, 2)), component=U, examples=0).texts == ()


class TestOutput:
    def test_json_and_table(self, head):
        found = measure_contribution(head, ["a|b"], embeddings=np.array([[2.0, 3.0]]), component=U, top_k=2)
        content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert content["mean_tokens"]["first"][0] == {
            "token_id": 0,
            "token": "the",
            "logit": 8.0,
            "first": 8.0,
            "rest": 0.0,
        }
        assert content["most_texts"]["rest"] == {"the": 1, "cat": 1}
        assert found.table().splitlines()[3] == r"| a\|b | the, cat | the, cat | cat, the |"


class TestValidation:
    def test_no_component(self, head):
        with pytest.raises(ValueError, match="component must be given where the model has no calibration"):
            measure_contribution(head, embeddings=np.ones((1, 2)))

    @pytest.mark.parametrize(
        ("component", "error", "match"),
        [
            ("u", TypeError, "a unit vector, a tensor, got str"),
            (torch.tensor([2.0, 0.0]), ValueError, "of length 1, got length 2"),
            (torch.tensor([1.0, 0.0, 0.0]), ValueError, r"direction must have shape \(2,\)"),
        ],
    )
    def test_components(self, head, component, error, match):
        with pytest.raises(error, match=match):
            measure_contribution(head, embeddings=np.ones((1, 2)), component=component)

    def test_embeddings(self, head):
        with pytest.raises(ValueError, match=r"shape \(batch_size, 2\), got \(1, 3\)"):
            measure_contribution(head, embeddings=np.ones((1, 3)), component=U)
        with pytest.raises(ValueError, match="NaN or infinity in row 1"):
            measure_contribution(head, embeddings=np.array([[1.0, 1.0], [np.inf, 0.0]]), component=U)
        with pytest.raises(ValueError, match="at least one item"):
            measure_contribution(head, embeddings=np.ones((0, 2)), component=U)

    def test_a_head_needs_embeddings(self, head):
        with pytest.raises(ValueError, match="embeddings must be given with a KeyTokenHead"):
            measure_contribution(head, ["one"], component=U)

    def test_a_head_without_a_model(self):
        with pytest.raises(RuntimeError, match="not bound"):
            measure_contribution(KeyTokenHead(), embeddings=np.ones((1, 2)), component=U)

    def test_models(self):
        with pytest.raises(TypeError, match="must be a KeyTokenEncoder or a KeyTokenHead, got str"):
            measure_contribution("model", ["one"])

    def test_numbers(self, head):
        with pytest.raises(ValueError, match="top_k must be >= 1"):
            measure_contribution(head, embeddings=np.ones((1, 2)), component=U, top_k=0)
        found = measure_contribution(head, embeddings=np.ones((1, 2)), component=U)
        with pytest.raises(ValueError, match="part must be one of"):
            found.mean_tokens("second")
        with pytest.raises(ValueError, match=r"frequencies must have shape \(3,\), got \(2,\)"):
            found.frequency_correlations(np.ones(2))
