from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from scipy import stats
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from small_models import build_sentence_transformer

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis.spectrum import Spectrum, check_comparable, measure_spectrum, measure_variation
from st_keytokens.calibration.moments import SecondMoments


def random_embeddings(rows=40, width=6, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, width)) * np.arange(width, 0, -1) + np.linspace(3, -1, width)


def embedder_and_backbone(rows=50, width=5, seed=0):
    """A backbone, and an embedder that differs from it by a fixed vector and noise."""
    generator = np.random.default_rng(seed)
    backbone = generator.normal(size=(rows, width)) + np.array([8.0, 1.0, -2.0, 0.0, 0.5])[:width]
    change = np.array([-5.0, 0.3, 0.0, 0.2, 1.0])[:width]
    return backbone + change + 0.3 * generator.normal(size=(rows, width)), backbone


@pytest.fixture(scope="module")
def tuned_embedder(llama_embedder):
    """The same model with other weights in its last layer."""
    model = copy.deepcopy(llama_embedder)
    with torch.no_grad():
        model[0].auto_model.norm.weight.mul_(torch.linspace(0.5, 1.5, 32))
    return model


class TestSpectrumNumbers:
    def test_hand_worked(self):
        # Hᵀ H = [[4, 0], [0, 9]]; the mean is (2/3, -1).
        spectrum = measure_spectrum(np.array([[2.0, 0.0], [0.0, -3.0], [0.0, 0.0]]))
        np.testing.assert_allclose(spectrum.singular_values, [3.0, 2.0])
        np.testing.assert_allclose(spectrum.components, [[0.0, -1.0], [1.0, 0.0]])
        np.testing.assert_allclose(spectrum.coefficients, [1.0, 2 / 3])
        np.testing.assert_allclose(spectrum.shares, [9 / 13, 4 / 13])
        assert (spectrum.count, spectrum.rank) == (3, 2)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_equals_numpy_svd(self, dtype):
        matrix = random_embeddings().astype(dtype)
        spectrum = measure_spectrum(matrix)
        _, values, vectors = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        signs = np.sign((vectors @ matrix.mean(axis=0))[:, None])
        np.testing.assert_allclose(spectrum.singular_values, values, rtol=1e-12)
        np.testing.assert_allclose(spectrum.components, signs * vectors, atol=1e-10)
        np.testing.assert_allclose(spectrum.coefficients, np.abs(vectors @ matrix.mean(axis=0)), atol=1e-7)

    def test_reconstructs_the_second_moments(self):
        matrix = random_embeddings()
        spectrum = measure_spectrum(matrix)
        rebuilt = spectrum.components.T @ np.diag(spectrum.singular_values**2) @ spectrum.components
        np.testing.assert_allclose(rebuilt, matrix.T @ matrix, rtol=1e-10, atol=1e-9)

    def test_first_component_is_that_of_the_moments(self):
        matrix = random_embeddings()
        moments = SecondMoments(6)
        moments.update(matrix)
        expected, found = moments.first_component(), measure_spectrum(matrix).first_component
        torch.testing.assert_close(found.direction, expected.direction)
        assert found.coefficient == pytest.approx(expected.coefficient)
        assert found.singular_value == pytest.approx(expected.singular_value)


class TestSpectrumSigns:
    def test_flipped_embeddings_flip_all_components(self):
        matrix = random_embeddings()
        one, two = measure_spectrum(matrix), measure_spectrum(-matrix)
        np.testing.assert_allclose(two.components, -one.components, atol=1e-12)
        np.testing.assert_allclose(two.coefficients, one.coefficients)

    def test_without_a_mean_the_largest_entry_decides(self):
        spectrum = measure_spectrum(np.array([[-3.0, 1.0], [3.0, -1.0]]))
        np.testing.assert_allclose(spectrum.components[0], np.array([3.0, -1.0]) / 10**0.5)
        assert spectrum.coefficients[0] == 0.0


class TestSpectrumStreaming:
    @pytest.mark.parametrize("size", [1, 7, 600, 2000])
    def test_one_batch_is_as_many(self, size):
        matrix = random_embeddings(1300)
        whole = measure_spectrum(matrix)
        parts = measure_spectrum(matrix[start : start + size] for start in range(0, len(matrix), size))
        np.testing.assert_array_equal(parts.singular_values, whole.singular_values)
        np.testing.assert_array_equal(parts.components, whole.components)

    def test_tensors_are_arrays(self):
        matrix = random_embeddings().astype(np.float32)
        np.testing.assert_array_equal(
            measure_spectrum(torch.from_numpy(matrix)).components, measure_spectrum(matrix).components
        )

    def test_a_generator_of_texts(self, llama_embedder, sentences):
        given = measure_spectrum(llama_embedder, (text for text in sentences), batch_size=4)
        stored = measure_spectrum(llama_embedder.encode(sentences))
        np.testing.assert_allclose(given.singular_values, stored.singular_values, rtol=1e-5)


class TestSpectrumRank:
    def test_one_text(self):
        spectrum = measure_spectrum(np.array([[0.0, -3.0, 4.0]]))
        np.testing.assert_allclose(spectrum.components[0], [0.0, -0.6, 0.8])
        np.testing.assert_allclose(spectrum.singular_values, [5.0, 0.0, 0.0])
        assert spectrum.rank == 1
        np.testing.assert_array_equal(spectrum.coefficients[1:], 0.0)

    def test_identical_texts(self):
        spectrum = measure_spectrum(np.tile(random_embeddings(1), (30, 1)))
        assert spectrum.rank == 1
        np.testing.assert_array_equal(spectrum.coefficients[1:], 0.0)

    def test_fewer_texts_than_dimensions(self):
        spectrum = measure_spectrum(random_embeddings(4))
        assert spectrum.rank == 4
        np.testing.assert_allclose(spectrum.components @ spectrum.components.T, np.eye(6), atol=1e-12)
        np.testing.assert_array_equal(spectrum.coefficients[4:], 0.0)

    def test_dependent_columns(self):
        matrix = random_embeddings()
        matrix[:, 5] = matrix[:, 0] + matrix[:, 1]
        assert measure_spectrum(matrix).rank == 5


class TestSpectrumModels:
    def test_vectors_before_normalisation(self, llama_embedder, sentences):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize

        normalizing = SentenceTransformer(modules=[*llama_embedder, Normalize()], device="cpu")
        one, two = measure_spectrum(llama_embedder, sentences), measure_spectrum(normalizing, sentences)
        np.testing.assert_allclose(one.singular_values, two.singular_values, rtol=1e-6)
        three = measure_spectrum(KeyTokenEncoder(normalizing), sentences)
        np.testing.assert_allclose(three.singular_values, one.singular_values, rtol=1e-6)

    def test_prompt(self, llama_embedder, sentences):
        given = measure_spectrum(llama_embedder, sentences, prompt="title: ")
        stored = measure_spectrum(llama_embedder.encode(sentences, prompt="title: "))
        np.testing.assert_allclose(given.singular_values, stored.singular_values, rtol=1e-5)


class TestSpectrumOutput:
    def test_json(self):
        spectrum = measure_spectrum(random_embeddings())
        content = json.loads(json.dumps(spectrum.to_dict(), allow_nan=False))
        assert content["singular_values"] == spectrum.singular_values.tolist()
        assert content["first_component"] == spectrum.components[0].tolist()

    def test_table(self):
        lines = measure_spectrum(np.array([[2.0, 0.0], [0.0, 1.0]])).table(rows=1).splitlines()
        assert lines[2:] == ["| 1 | 2.000 | 0.800 | 1.000 |"]


class TestSpectrumValidation:
    def test_nothing(self):
        with pytest.raises(ValueError, match="at least one item"):
            measure_spectrum(iter(()))

    def test_zeros(self):
        with pytest.raises(ValueError, match="must not all be zero, got 3 zero vectors"):
            measure_spectrum(np.zeros((3, 2)))

    def test_empty_moments(self):
        with pytest.raises(ValueError, match="at least one embedding"):
            Spectrum.from_moments(SecondMoments(2))

    def test_not_finite(self):
        with pytest.raises(ValueError, match="must be finite in float32, got nan in row 1"):
            measure_spectrum(np.array([[1.0, 1.0], [np.nan, 1.0]]))

    def test_no_texts_for_a_model(self, llama_embedder):
        with pytest.raises(ValueError, match="texts must be given where model is a model"):
            measure_spectrum(llama_embedder)

    def test_blank_text(self, llama_embedder):
        with pytest.raises(ValueError, match="must not be blank, got ' ' at position 1"):
            measure_spectrum(llama_embedder, ["one", " "])

    def test_no_string(self, llama_embedder):
        with pytest.raises(TypeError, match="got int at position 1"):
            measure_spectrum(llama_embedder, ["one", 2])

    @pytest.mark.parametrize(
        ("source", "error", "match"),
        [
            (5, TypeError, "must be a KeyTokenEncoder, a SentenceTransformer or embeddings, got int"),
            ("model", TypeError, "got str"),
            (np.ones((2, 2), dtype=int), TypeError, "floating-point"),
            ([np.ones((2, 2)), np.ones((2, 3))], ValueError, r"\(batch_size, 2\), got \(2, 3\)"),
            (np.ones(3), ValueError, r"\(batch_size, embedding_dimension\)"),
        ],
    )
    def test_other_sources(self, source, error, match):
        with pytest.raises(error, match=match):
            measure_spectrum(source)

    def test_batch_size(self, llama_embedder):
        with pytest.raises(ValueError, match="batch_size must be >= 1"):
            measure_spectrum(llama_embedder, ["one"], batch_size=0)


class TestVariationNumbers:
    def test_hand_worked(self):
        # u_1 = (1, 0), u_2 = (0, 1); changes (-2, 1), (-4, 1), (-3, -2) have mean (-3, 0) and deviations 1 and √3.
        backbone = np.array([[3.0, 0.0], [3.0, 1.0], [3.0, -1.0]])
        found = measure_variation(backbone + np.array([[-2.0, 1.0], [-4.0, 1.0], [-3.0, -2.0]]), backbone)
        np.testing.assert_allclose(found.spectrum.components, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(found.variations, [-3.0, 0.0], atol=1e-12)
        np.testing.assert_allclose(found.standard_errors, [1 / 3**0.5, 1.0])
        np.testing.assert_allclose(found.energies, [29 / 3, 2.0])
        np.testing.assert_allclose(found.mean_change_shares, [1.0, 0.0], atol=1e-12)
        np.testing.assert_allclose(found.change_shares, [29 / 35, 6 / 35])
        assert (found.count, found.largest) == (3, 1)

    def test_equals_numpy(self):
        embedder, backbone = embedder_and_backbone()
        found = measure_variation(embedder, backbone)
        _, _, vectors = np.linalg.svd(backbone)
        vectors *= np.sign(vectors @ backbone.mean(axis=0))[:, None]
        projections = (embedder - backbone) @ vectors.T
        np.testing.assert_allclose(found.variations, projections.mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(found.standard_errors, stats.sem(projections, axis=0), rtol=1e-8)
        expected = [
            stats.t.interval(0.9, 49, v, e) for v, e in zip(found.variations, found.standard_errors, strict=True)
        ]
        np.testing.assert_allclose(found.intervals(0.9), expected)
        assert found.mean_change_shares.sum() == pytest.approx(1)
        assert found.change_shares.sum() == pytest.approx(1)

    def test_a_shift_is_found(self):
        _, backbone = embedder_and_backbone()
        u = measure_variation(backbone, backbone).spectrum.components[0]
        found = measure_variation(backbone - 7 * u, backbone)
        np.testing.assert_allclose(found.variations, [-7, 0, 0, 0, 0], atol=1e-12)
        np.testing.assert_array_equal(found.standard_errors, 0.0)
        assert found.mean_change_shares[0] == pytest.approx(1)

    def test_flipped_embeddings_have_the_same_variation(self):
        embedder, backbone = embedder_and_backbone()
        one, two = measure_variation(embedder, backbone), measure_variation(-embedder, -backbone)
        np.testing.assert_allclose(two.variations, one.variations, atol=1e-12)
        np.testing.assert_allclose(two.spectrum.components, -one.spectrum.components, atol=1e-12)

    def test_intervals_hold_the_truth(self):
        """Of 1000 samples of 30 texts, about 95 % of the intervals hold the change that they were drawn with."""
        generator = np.random.default_rng(0)
        held = 0
        for _ in range(1000):
            backbone = np.eye(2)[[0] * 30] * 5
            found = measure_variation(backbone + generator.normal([-2.0, 0.0], 1.0, size=(30, 2)), backbone)
            low, high = found.intervals()[0]
            held += low <= -2 <= high
        assert 0.93 <= held / 1000 <= 0.97


class TestVariationStreaming:
    def test_any_batches(self):
        embedder, backbone = embedder_and_backbone(1300)
        whole = measure_variation(embedder, backbone)
        parts = measure_variation(
            (embedder[i : i + 7] for i in range(0, 1300, 7)), iter([backbone[:1000], backbone[1000:]])
        )
        np.testing.assert_array_equal(parts.variations, whole.variations)
        np.testing.assert_array_equal(parts.standard_errors, whole.standard_errors)

    def test_models_are_their_embeddings(self, tuned_embedder, llama_embedder, sentences):
        found = measure_variation(tuned_embedder, KeyTokenEncoder(llama_embedder), (text for text in sentences))
        stored = measure_variation(tuned_embedder.encode(sentences), llama_embedder.encode(sentences))
        np.testing.assert_allclose(found.variations[:20], stored.variations[:20], atol=1e-4)
        assert np.abs(found.variations).max() > 0.1

    def test_one_model_and_stored_embeddings(self, tuned_embedder, llama_embedder, sentences):
        found = measure_variation(tuned_embedder, llama_embedder.encode(sentences), sentences)
        both = measure_variation(tuned_embedder, llama_embedder, sentences)
        np.testing.assert_allclose(found.variations[:20], both.variations[:20], atol=1e-4)

    def test_the_embedders_prompt_is_for_both(self, tuned_embedder, llama_embedder, sentences):
        prompted = SentenceTransformer(modules=list(tuned_embedder), prompts={"document": "passage: "}, device="cpu")
        found = measure_variation(prompted, llama_embedder, sentences)
        explicit = measure_variation(tuned_embedder, llama_embedder, sentences, prompt="passage: ")
        np.testing.assert_allclose(found.variations, explicit.variations, atol=1e-5)
        without = measure_variation(prompted, llama_embedder, sentences, prompt="")
        assert abs(without.variations[0] - found.variations[0]) > 1e-3


class TestVariationDegenerate:
    def test_one_text(self):
        found = measure_variation(np.array([[1.0, 3.0]]), np.array([[4.0, 3.0]]))
        np.testing.assert_allclose(found.spectrum.components[0], [0.8, 0.6])
        assert found.variations[0] == pytest.approx(-2.4)
        assert np.isnan(found.standard_errors).all()
        assert np.isnan(found.intervals()).all()
        content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert content["standard_errors"] == [None, None]
        assert "| 1 | -2.400 |  |  |" in found.table()

    def test_identical_texts(self):
        embedder, backbone = embedder_and_backbone(1)
        found = measure_variation(np.tile(embedder, (20, 1)), np.tile(backbone, (20, 1)))
        np.testing.assert_array_equal(found.standard_errors, 0.0)
        assert np.linalg.norm(found.variations) == pytest.approx(np.linalg.norm(embedder - backbone))

    def test_the_same_model(self):
        _, backbone = embedder_and_backbone()
        found = measure_variation(backbone, backbone)
        np.testing.assert_array_equal(found.variations, 0.0)
        assert np.isnan(found.mean_change_shares).all()
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["change_shares"] == [None] * 5

    def test_fewer_texts_than_dimensions(self):
        embedder, backbone = embedder_and_backbone(3)
        found = measure_variation(embedder, backbone)
        assert found.spectrum.rank == 3
        change = (embedder - backbone).mean(axis=0)
        assert (found.variations**2).sum() == pytest.approx(change @ change)


class TestVariationOutput:
    def test_table_is_sorted_and_has_the_first(self):
        backbone = np.array([[9.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
        found = measure_variation(backbone + np.array([0.1, -3.0, 2.0]), backbone)
        rows = [line.split(" | ") for line in found.table(rows=2).splitlines()[2:]]
        assert [row[0] for row in rows] == ["| 2", "| 3", "| 1"]
        assert [row[1] for row in rows] == ["-3.000", "2.000", "0.100"]


class TestVariationValidation:
    def test_dimensions(self):
        with pytest.raises(ValueError, match="same embedding dimension, got 4 and 5"):
            measure_variation(np.ones((3, 4)), np.ones((3, 5)))

    @pytest.mark.parametrize("rows", [2, 900])
    def test_numbers_of_rows(self, rows):
        with pytest.raises(ValueError, match="a row for each text"):
            measure_variation(np.ones((rows, 4)), np.ones((rows + 1, 4)))

    def test_nothing(self):
        with pytest.raises(ValueError, match="at least one item"):
            measure_variation(np.ones((0, 4)), np.ones((0, 4)))

    def test_texts_of_stored_embeddings(self):
        with pytest.raises(ValueError, match="texts must be None where both"):
            measure_variation(np.ones((1, 4)), np.ones((1, 4)), ["one"])

    def test_vocabularies(self, llama_embedder, bert_embedder):
        with pytest.raises(ValueError, match="same vocabulary"):
            measure_variation(llama_embedder, bert_embedder, ["one"])

    def test_added_tokens_are_allowed(self, llama_embedder):
        other = copy.deepcopy(llama_embedder)
        other.tokenizer.add_tokens(["[SOS]"])
        check_comparable(llama_embedder, other)
        check_comparable(other, KeyTokenEncoder(llama_embedder))

    def test_pooling(self, llama_embedder, tmp_path):
        other = build_sentence_transformer(tmp_path, pooling="lasttoken")
        with pytest.raises(ValueError, match=r"pooled alike, got .*mean.* and .*lasttoken"):
            measure_variation(llama_embedder, other, ["one"])

    def test_maximum_length(self, llama_embedder):
        other = copy.deepcopy(llama_embedder)
        other.max_seq_length = 17
        with pytest.raises(ValueError, match="same max_seq_length, got 256 and 17"):
            measure_variation(llama_embedder, other, ["one"])

    def test_widths_of_models(self, llama_embedder):
        wide = SentenceTransformer(
            modules=[llama_embedder[0], Pooling(32, pooling_mode=["mean", "max"])], device="cpu"
        )
        with pytest.raises(ValueError, match="same embedding dimension, got 64 and 32"):
            measure_variation(wide, llama_embedder.encode(["one"]), ["one"])

    def test_confidence(self):
        embedder, backbone = embedder_and_backbone()
        with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 2"):
            measure_variation(embedder, backbone).intervals(2)
