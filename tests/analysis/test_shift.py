from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis.alignment import alignment_of_embeddings
from st_keytokens.analysis.shift import mutual_information, sweep_shift
from st_keytokens.analysis.spectrum import measure_spectrum, measure_variation
from st_keytokens.decoding.first_component import FirstComponent, shift


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return KeyTokenEncoder(llama_embedder, terms="tokens")


@pytest.fixture(scope="module")
def spectrum(encoder, sentences):
    return measure_spectrum(encoder, sentences)


@pytest.fixture(scope="module")
def untied_encoder(bert_embedder, bert):
    from st_keytokens import KeyTokenHead, LMHead

    return KeyTokenEncoder(bert_embedder, head=KeyTokenHead(LMHead.from_model(bert)), terms="tokens")


class TestNumbers:
    def test_alignments_are_those_of_shifted_embeddings(self, encoder, spectrum, sentences):
        found = sweep_shift(encoder, sentences, component=spectrum, shifts=[2.0, 0.0, -3.0], ks=[1, 5])
        assert found.shifts.tolist() == [-3.0, 0.0, 2.0]
        vectors = torch.from_numpy(encoder.model.encode(sentences))
        for amount, alignment in zip(found.shifts, found.alignments, strict=True):
            expected = alignment_of_embeddings(
                shift(vectors, spectrum.first_component.direction, float(amount)),
                encoder.head.lm_head,
                encoder.literal_terms(sentences),
                vocabulary=encoder.vocabulary,
                ks=[1, 5],
            )
            assert alignment.to_dict() == expected.to_dict()
        assert len({alignment.local_alignment_rate.value for alignment in found.alignments}) > 1

    def test_a_head_with_a_transform(self, untied_encoder, sentences):
        texts, spectrum = sentences[:20], measure_spectrum(untied_encoder, sentences[:20])
        found = sweep_shift(untied_encoder, texts, component=spectrum, shifts=[-1.5])
        vectors = torch.from_numpy(untied_encoder.model.encode(texts))
        expected = alignment_of_embeddings(
            shift(vectors, spectrum.first_component.direction, -1.5),
            untied_encoder.head.lm_head,
            untied_encoder.literal_terms(texts),
            vocabulary=untied_encoder.vocabulary,
            ks=[1, 10],
        )
        assert found.alignments[0].to_dict() == expected.to_dict()

    def test_information(self, encoder, spectrum, sentences):
        found = sweep_shift(encoder, sentences, component=spectrum, shifts=[-4.0, 0.0], top_k=3)
        vectors = torch.from_numpy(encoder.model.encode(sentences))
        for amount, value in zip(found.shifts, found.information, strict=True):
            moved = shift(vectors, spectrum.first_component.direction, float(amount))
            ids, _ = encoder.head.with_settings(activation="softplus").decode(moved, max_active_dims=3)
            joint = np.zeros((len(sentences), len(encoder.vocabulary)))
            np.add.at(joint, (np.arange(len(sentences))[:, None], ids.numpy()), 1 / (3 * len(sentences)))
            outer = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
            seen = joint > 0
            assert value == pytest.approx((joint[seen] * np.log2(joint[seen] / outer[seen])).sum())

    def test_a_common_component_hides_the_texts(self, encoder, sentences):
        """Embeddings of one token each, plus a large multiple of one direction: the suggestion takes it away."""
        weight = encoder.head.lm_head.weight.detach().float()
        direction = torch.nn.functional.normalize(weight[300], dim=0)
        tokens = torch.tensor([int(terms[-2]) for terms in encoder.literal_terms(sentences)])
        rows = torch.nn.functional.normalize(weight[tokens], dim=1)
        rows = rows - (rows @ direction)[:, None] * direction + 5 * direction
        found = sweep_shift(
            encoder, sentences, embeddings=rows, component=FirstComponent(direction, 5.0, 5.0 * 50**0.5), top_k=1
        )
        assert abs(found.suggested_shift + 5) <= 1.3
        assert abs(found.most_informative_shift + 5) <= 1.3
        at_suggestion = found.nearest(found.suggested_shift)
        assert at_suggestion.hits[1].value > 0.9 > 0.5 > found.nearest(0.0).hits[1].value

    def test_flipping_direction_and_shift_changes_nothing(self, encoder, spectrum, sentences):
        first = spectrum.first_component
        flipped = FirstComponent(-first.direction, first.coefficient, first.singular_value)
        one = sweep_shift(encoder, sentences, component=first, shifts=[-2.0, 1.0])
        two = sweep_shift(encoder, sentences, component=flipped, shifts=[-1.0, 2.0])
        assert [a.to_dict() for a in one.alignments] == [a.to_dict() for a in reversed(two.alignments)]
        np.testing.assert_allclose(one.information, two.information[::-1])


class TestRange:
    def test_default(self, encoder, spectrum, sentences):
        found = sweep_shift(encoder, sentences[:5], component=spectrum)
        c = spectrum.coefficients[0]
        np.testing.assert_allclose(found.shifts, np.linspace(-2 * c, c, 25), atol=1e-12)
        assert 0.0 in found.shifts
        assert -found.coefficient in found.shifts
        assert found.variation is None

    def test_variation_is_among_them(self, encoder, sentences):
        vectors = encoder.model.encode(sentences)
        variation = measure_variation(0.7 * vectors, vectors)
        found = sweep_shift(encoder, sentences[:5], component=variation)
        assert found.variation == variation.variations[0]
        assert found.variation in found.shifts
        assert len(found.shifts) == 26
        assert "| v₁ |" in found.table()

    def test_repeated_shifts_are_one(self, encoder, spectrum, sentences):
        assert sweep_shift(encoder, sentences[:2], component=spectrum, shifts=[1, 1.0, 0]).shifts.tolist() == [
            0.0,
            1.0,
        ]

    def test_the_calibrations_component(self, llama_embedder, sentences):
        encoder = KeyTokenEncoder(llama_embedder, terms="tokens")
        encoder.calibrate(sentences, show_progress_bar=False)
        found = sweep_shift(encoder, sentences[:5], shifts=[0.0])
        assert found.coefficient == encoder.calibration.first_component.coefficient


class TestStreaming:
    def test_one_batch_is_as_many(self, encoder, spectrum, sentences):
        vectors = encoder.model.encode(sentences)
        settings = {"component": spectrum, "shifts": [-2.0, 0.0], "max_document_share": 0.2}
        one = sweep_shift(encoder, sentences, embeddings=vectors, **settings)
        two = sweep_shift(encoder, sentences, embeddings=(vectors[i : i + 7] for i in range(0, 50, 7)), **settings)
        assert one.to_dict() == two.to_dict()
        assert one.to_dict() == sweep_shift(encoder, sentences, **settings).to_dict()

    def test_frequent_terms_can_be_left_out(self, encoder, spectrum, sentences):
        settings = {"component": spectrum, "shifts": [0.0]}
        all_terms = sweep_shift(encoder, sentences, **settings)
        content = sweep_shift(encoder, sentences, max_document_share=0.1, **settings)
        assert content.alignments[0].per_text.term_counts.sum() < all_terms.alignments[0].per_text.term_counts.sum()
        assert content.max_document_share == 0.1


class TestDegenerate:
    def test_one_text(self, encoder, sentences):
        found = sweep_shift(encoder, sentences[:1], component=measure_spectrum(encoder, sentences[:1]))
        np.testing.assert_array_equal(found.information, 0.0)
        assert found.most_informative_shift == 0.0
        assert found.alignments[0].local_alignment_rate.low is None

    def test_identical_texts(self, encoder, sentences):
        texts = sentences[:1] * 8
        found = sweep_shift(encoder, texts, component=measure_spectrum(encoder, texts))
        np.testing.assert_allclose(found.information, 0.0, atol=1e-12)
        assert {alignment.text_count for alignment in found.alignments} == {8}

    @pytest.mark.parametrize(("counts", "bits"), [([4, 4, 0], 0.0), ([1, 1, 1, 1], 2.0)])
    def test_mutual_information_by_hand(self, counts, bits):
        assert mutual_information(np.array(counts), 4) == bits  # the same terms for four texts; each its own

    def test_mutual_information_of_no_terms(self):
        assert mutual_information(np.zeros(3, dtype=np.int64), 5) == 0.0


class TestOutput:
    def test_json_and_table(self, encoder, spectrum, sentences):
        found = sweep_shift(encoder, sentences, component=spectrum, shifts=[0.0, -1.0])
        content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert [row["shift"] for row in content["rows"]] == [-1.0, 0.0]
        assert content["suggested_shift"] == found.suggested_shift
        lines = found.table().splitlines()
        assert len(lines) == 4
        assert "none" in lines[3]
        rates = [alignment.local_alignment_rate.value for alignment in found.alignments]
        assert "best local rate" in lines[2 + int(np.argmax(rates))]
        rates = [alignment.global_alignment_rate.value for alignment in found.alignments]
        assert found.suggested_shift == found.shifts[int(np.argmax(rates))]
        assert found.most_informative_shift == found.shifts[int(np.argmax(found.information))]


class TestValidation:
    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    def test_shifts_are_finite(self, encoder, spectrum, value):
        with pytest.raises(ValueError, match=f"shifts must be finite, got {value}"):
            sweep_shift(encoder, ["one"], component=spectrum, shifts=[0.0, value])

    @pytest.mark.parametrize(
        ("changes", "error", "match"),
        [
            ({"shifts": []}, ValueError, "shifts must hold at least one"),
            ({"shifts": ["1"]}, TypeError, "shifts must be a number"),
            ({"texts": []}, ValueError, "texts must hold at least one text"),
            ({"texts": ["a", " "]}, ValueError, "must not be blank"),
            ({"component": None}, ValueError, "component must be given where the encoder has no calibration"),
            ({"component": torch.eye(32)[0]}, TypeError, "must be a Variation, a Spectrum or a FirstComponent"),
            ({"embeddings": np.ones((1, 32))}, ValueError, "one row a text, got 1 rows"),
            ({"embeddings": np.ones((3, 32))}, ValueError, "one row a text, got 3 rows"),
            ({"embeddings": np.ones((2, 31))}, ValueError, r"\(batch_size, 32\), got \(2, 31\)"),
            ({"embeddings": np.full((2, 32), np.nan)}, ValueError, "NaN or infinity in row 0"),
            ({"top_k": 0}, ValueError, "top_k must be >= 1"),
            ({"max_document_share": 2}, ValueError, "max_document_share must be between 0 and 1"),
            ({"component": FirstComponent(torch.eye(32)[0], 0.0, 1.0)}, ValueError, "shifts must be given where"),
        ],
    )
    def test_arguments(self, encoder, spectrum, changes, error, match):
        settings = {"texts": ["one two", "three"], "component": spectrum, **changes}
        with pytest.raises(error, match=match):
            sweep_shift(encoder, settings.pop("texts"), **settings)
