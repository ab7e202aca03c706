from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import scipy.linalg
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from st_keytokens import HybridIndex, KeyTokenEncoder
from st_keytokens.analysis.pair import compare_pair, explain_pair, explain_sparse_pair, orthogonal_coordinates

A = "Stars form when clouds of gas and dust collapse under their own gravity."
B = "The telescope measured the light of distant galaxies and of nearby stars."


@pytest.fixture(scope="module")
def plain(llama_embedder):
    return KeyTokenEncoder(llama_embedder)


@pytest.fixture(scope="module")
def calibrated(llama_embedder, sentences):
    encoder = KeyTokenEncoder(llama_embedder)
    encoder.calibrate(sentences, show_progress_bar=False)
    return encoder


def decoded_by_lm_head(encoder, **settings):
    changed = copy.copy(encoder)
    changed.head = encoder.head.with_settings(decode_with="lm_head", **settings)
    return changed


def total(found) -> float:
    return found.common + sum(share.contribution for share in found.tokens) + found.remainder


class TestOrthogonalCoordinates:
    def test_three_tokens_in_two_dimensions_by_hand(self):
        # Directions x, y and the diagonal. With M = VᵀV = [[1.5, .5], [.5, 1.5]], of eigenvalues 2 along the diagonal
        # and 1 across it, the rows of V M^(-1/2) are (p, q), (q, p) and (1/2, 1/2).
        p, q = (0.5**0.5 + 1) / 2, (0.5**0.5 - 1) / 2
        directions = np.array([[2.0, 0.0], [0.0, 0.5], [3.0, 3.0]])  # their lengths do not count
        found = orthogonal_coordinates(directions, np.eye(2))
        assert np.allclose(found, [[p, q, 0.5], [q, p, 0.5]])
        assert np.allclose(found[0] * found[1], [-0.125, -0.125, 0.25])  # sums to x · y = 0

    def test_independent_directions_give_the_polar_factor(self):
        generator = np.random.default_rng(0)
        directions, vectors = generator.normal(size=(5, 12)), generator.normal(size=(2, 12))
        closest, _ = scipy.linalg.polar(directions / np.linalg.norm(directions, axis=1, keepdims=True))
        assert np.allclose(orthogonal_coordinates(directions, vectors), vectors @ closest.T)

    def test_products_sum_to_that_of_the_projections(self):
        generator = np.random.default_rng(1)
        directions, vectors = generator.normal(size=(4, 9)), generator.normal(size=(2, 9))
        directions = np.vstack([directions, directions[1], directions[0] + directions[2], np.zeros(9)])
        basis = scipy.linalg.orth(directions.T)
        found = orthogonal_coordinates(directions, vectors)
        assert basis.shape == (9, 4)
        assert np.isclose(found.prod(axis=0).sum(), (vectors[0] @ basis) @ (vectors[1] @ basis))
        assert np.allclose(found[:, 1], found[:, 4])  # the same direction twice: each has half
        assert (np.abs(found) <= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12).all()

    def test_no_direction(self):
        assert orthogonal_coordinates(np.zeros((0, 3)), np.ones((2, 3))).shape == (2, 0)


class TestExplainPair:
    @pytest.mark.parametrize("similarity", ["cosine", "dot"])
    def test_against_numpy(self, plain, llama_embedder, similarity):
        found = explain_pair(plain, A, B, top_k=6, similarity=similarity)
        vectors = llama_embedder.encode([A, B]).astype(np.float64)
        if similarity == "cosine":
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        said = [dict(pairs) for pairs in plain.key_tokens([A, B], 6)]
        assert {share.token for share in found.tokens} == set(said[0]) | set(said[1])
        for share in found.tokens:
            assert share.weight == pytest.approx(said[0].get(share.token, 0.0), rel=1e-4)
            assert share.other_weight == pytest.approx(said[1].get(share.token, 0.0), rel=1e-4)
        assert found.value == pytest.approx(vectors[0] @ vectors[1], rel=1e-4)
        assert found.common == pytest.approx(0, abs=1e-9) and found.common_part == "nothing"
        rows = np.stack([self.row(plain, llama_embedder, share.term_id) for share in found.tokens])
        basis = scipy.linalg.orth(rows.T)
        rest = vectors - vectors @ basis @ basis.T
        assert found.remainder == pytest.approx(rest[0] @ rest[1], rel=1e-3)
        assert total(found) == pytest.approx(found.value, rel=1e-9)
        scale = 1.0 if similarity == "cosine" else np.linalg.norm(vectors, axis=1).prod()
        for share in found.tokens:
            assert share.contribution == pytest.approx(scale * share.coordinate * share.other_coordinate, rel=1e-4)

    @staticmethod
    def row(encoder, model, term):
        """Of the tokens that fold into a term, the row that scores best in either text."""
        weight = model[0].auto_model.get_input_embeddings().weight.detach().double().numpy()
        vectors = model.encode([A, B]).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        variants = [i for i in np.flatnonzero(encoder.vocabulary.terms == term) if not encoder.vocabulary.is_masked[i]]
        return weight[max(variants, key=lambda i: (weight[i] @ vectors.T).max())]

    def test_the_first_component_is_a_part_of_its_own(self, calibrated):
        encoder = decoded_by_lm_head(calibrated)
        found = explain_pair(encoder, A, B)
        direction = calibrated.calibration.first_component.direction.double().numpy()
        along = calibrated.embed([A, B]).astype(np.float64) @ direction
        assert found.common_part == "first component"
        assert found.common == pytest.approx(along[0] * along[1], rel=1e-3)
        assert total(found) == pytest.approx(found.value, rel=1e-9)

    @pytest.mark.parametrize(
        ("settings", "part"), [({"correction": "center"}, "mean"), ({"correction": "shift", "shift": -0.5}, "shift")]
    )
    def test_other_corrections(self, calibrated, settings, part):
        encoder = decoded_by_lm_head(calibrated, **settings)
        found, vectors = explain_pair(encoder, A, B), calibrated.embed([A, B]).astype(np.float64)
        calibration = calibrated.calibration
        moved = -calibration.moments.mean if part == "mean" else -0.5 * calibration.first_component.direction
        corrected = vectors + moved.double().numpy()
        assert found.common_part == part
        assert found.common == pytest.approx(vectors[0] @ vectors[1] - corrected[0] @ corrected[1], rel=1e-3, abs=1e-6)
        assert total(found) == pytest.approx(found.value, rel=1e-9)

    def test_the_ridge_decoder(self, calibrated):
        found = explain_pair(calibrated, A, B)
        assert calibrated.head.is_ridge and found.common_part == "mean"
        assert total(found) == pytest.approx(found.value, rel=1e-9)

    def test_the_order_of_the_texts_does_not_matter(self, plain):
        found, swapped = explain_pair(plain, A, B), explain_pair(plain, B, A)
        assert found.value == pytest.approx(swapped.value)
        pairs = zip(
            sorted(found.tokens, key=lambda share: share.term_id),
            sorted(swapped.tokens, key=lambda share: share.term_id),
            strict=True,
        )
        for ours, theirs in pairs:
            assert ours.contribution == pytest.approx(theirs.contribution, abs=1e-6)
            assert (ours.weight, ours.other_weight) == pytest.approx((theirs.other_weight, theirs.weight))

    def test_identical_texts(self, plain):
        found = explain_pair(plain, A, A)
        assert found.value == pytest.approx(1) and found.remainder >= 0
        assert all(share.contribution >= 0 for share in found.tokens)

    def test_normalised_and_prompted(self, llama_embedder):
        model = SentenceTransformer(
            modules=[*copy.deepcopy(llama_embedder), Normalize()], prompts={"query": "wheat ", "document": ""}
        )
        encoder = KeyTokenEncoder(model)
        found = explain_pair(encoder, A, B, similarity="dot", role="query", other_role="document")
        expected = model.encode_query([A])[0] @ model.encode_document([B])[0]
        assert found.value == pytest.approx(expected, rel=1e-4)

    def test_a_text_without_a_term_of_its_own(self, plain):
        found = explain_pair(plain, "", A)
        assert (found.value, found.remainder) == (0, 0)
        assert all(share.contribution == 0 and share.weight == 0 for share in found.tokens)
        assert "share" in found.table()
        both = explain_pair(plain, "", " ")
        assert both.tokens == () and both.value == 0

    def test_written_out(self, plain):
        found = explain_pair(plain, A, B, top_k=3)
        content = json.loads(json.dumps(found.to_dict()))
        assert content["explained"] == found.explained
        assert [share["token"] for share in content["tokens"]] == [share.token for share in found.tokens]
        lines = found.table().splitlines()
        assert len(lines) == 2 + len(found.tokens) + 2 and lines[-1].startswith("| (sum) |")
        sizes = [abs(share.contribution) for share in found.tokens]
        assert sizes == sorted(sizes, reverse=True)

    def test_refused(self, plain, llama_embedder, bert_embedder):
        with pytest.raises(TypeError, match=r"texts must be a string or a sequence of strings, got int"):
            explain_pair(plain, A, 3)
        with pytest.raises(ValueError, match=r"top_k must be >= 1, got 0"):
            explain_pair(plain, A, B, top_k=0)
        with pytest.raises(ValueError, match=r"similarity must be one of 'cosine', 'dot', got 'euclidean'"):
            explain_pair(plain, A, B, similarity="euclidean")
        dense = Dense(32, 16)
        encoder = KeyTokenEncoder(SentenceTransformer(modules=[*copy.deepcopy(llama_embedder), dense]))
        with pytest.raises(ValueError, match=r"encoder must compare pooled vectors, but in this model Dense follows"):
            explain_pair(encoder, A, B)

    def test_a_head_with_a_transform(self, bert_embedder, bert_folder):
        encoder = KeyTokenEncoder(bert_embedder, backbone=bert_folder)
        with pytest.raises(
            ValueError, match=r"lm_head must multiply the embedding itself .* got one with a transform"
        ):
            explain_pair(encoder, A, B)


class TestComparePair:
    def test_each_embedder(self, plain, calibrated):
        found = compare_pair({"plain": plain, "calibrated": calibrated}, A, B, top_k=4)
        assert found.explanations["plain"] == explain_pair(plain, A, B, top_k=4, similarity="cosine")
        assert list(json.loads(json.dumps(found.to_dict()))["embedders"]) == ["plain", "calibrated"]
        assert found.table().count("\n") == 4

    def test_none(self):
        with pytest.raises(ValueError, match=r"encoders must hold at least one, got none"):
            compare_pair({}, A, B)


class TestExplainSparsePair:
    def test_as_an_index_says(self, calibrated):
        found = explain_sparse_pair(calibrated, A, B)
        with HybridIndex(encoder=calibrated) as index:
            index.add(["b"], [B])
            assert list(found.terms) == index.explain(A, "b")
            assert found.score == pytest.approx(index.search(A, mode="sparse")[0].score, rel=1e-5)

    def test_lookup_shares_the_words_alone(self, calibrated):
        found = explain_sparse_pair(calibrated, "galaxies", B, mode="lookup")
        words = calibrated.literal_terms(["galaxies", B])
        assert {term.term_id for term in found.terms} == set(words[0].tolist()) & set(words[1].tolist())

    def test_nothing_shared(self, plain):
        found = explain_sparse_pair(plain, "", B)
        assert (found.score, found.terms) == (0, ())
        assert found.table().splitlines()[2:] == ["| (sum) | 0.000 |  |  |  |"]

    def test_a_long_table_is_cut(self, calibrated):
        found = explain_sparse_pair(calibrated, A, B)
        lines = found.table(max_terms=2).splitlines()
        assert len(lines) == 6 and lines[4].startswith(f"| ({len(found.terms) - 2} more) |")
        assert json.loads(json.dumps(found.to_dict()))["terms"][0]["token"] == found.terms[0].token
