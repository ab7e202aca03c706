from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from st_keytokens import KeyTokenEncoder
from st_keytokens.analysis.spectrum import Spectrum, measure_spectrum
from st_keytokens.calibration.moments import SecondMoments


def random_embeddings(rows=40, width=6, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, width)) * np.arange(width, 0, -1) + np.linspace(3, -1, width)


class TestNumbers:
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


class TestSigns:
    def test_flipped_embeddings_flip_all_components(self):
        matrix = random_embeddings()
        one, two = measure_spectrum(matrix), measure_spectrum(-matrix)
        np.testing.assert_allclose(two.components, -one.components, atol=1e-12)
        np.testing.assert_allclose(two.coefficients, one.coefficients)

    def test_without_a_mean_the_largest_entry_decides(self):
        spectrum = measure_spectrum(np.array([[-3.0, 1.0], [3.0, -1.0]]))
        np.testing.assert_allclose(spectrum.components[0], np.array([3.0, -1.0]) / 10**0.5)
        assert spectrum.coefficients[0] == 0.0


class TestStreaming:
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


class TestRank:
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


class TestModels:
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


class TestOutput:
    def test_json(self):
        spectrum = measure_spectrum(random_embeddings())
        content = json.loads(json.dumps(spectrum.to_dict(), allow_nan=False))
        assert content["singular_values"] == spectrum.singular_values.tolist()
        assert content["first_component"] == spectrum.components[0].tolist()

    def test_table(self):
        lines = measure_spectrum(np.array([[2.0, 0.0], [0.0, 1.0]])).table(rows=1).splitlines()
        assert lines[2:] == ["| 1 | 2.000 | 0.800 | 1.000 |"]


class TestValidation:
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
