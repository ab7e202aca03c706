"""The ridge decoder against dense matrices in float64."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_calibration import DIMENSION, QUIET, VOCAB_SIZE, WordEncoder, corpus, fitted, lm_head, rows_of

from st_keytokens.calibration import Calibration, RidgeDecoder
from st_keytokens.calibration.moments import TermCrossMoments, count_matrix


def saturated(term_ids, vocab_size=VOCAB_SIZE) -> np.ndarray:
    counts = np.stack([np.bincount(terms, minlength=vocab_size) for terms in term_ids]).astype(np.float64)
    return counts * 2.2 / (counts + 1.2)


def reference(rows, term_ids, *, regularization=0.3, power=0.5, prior=None, shrinkage=0.0, least=1):
    """Terms and weights from all texts at once, with a singular value decomposition."""
    x, t = rows.astype(np.float64), saturated(term_ids)
    frequencies = (t > 0).sum(axis=0)
    terms = np.flatnonzero(frequencies >= least)
    t = t[:, terms] * np.log1p((len(t) - frequencies[terms] + 0.5) / (frequencies[terms] + 0.5))
    x, t = x - x.mean(axis=0), t - t.mean(axis=0)
    penalty = regularization * np.trace(x.T @ x) / x.shape[1]
    penalised, right = x.T @ x + penalty * np.eye(x.shape[1]), x.T @ t
    solution = np.linalg.solve(penalised, right)
    if prior is not None:
        prior = prior[terms].T * np.linalg.norm(solution) / np.linalg.norm(prior[terms])
        solution = np.linalg.solve(penalised, right + penalty * shrinkage * prior)
    left, singular, transposed = np.linalg.svd(solution, full_matrices=False)
    return terms, (left * singular * np.maximum(singular, singular[0] * 1e-9**0.5) ** (power - 1) @ transposed).T


def literal(texts: list[str]) -> list[np.ndarray]:
    return WordEncoder().literal_terms(texts)


def assert_close(decoder: RidgeDecoder, terms, weight, error: float = 3e-4) -> None:
    """Equal up to the rounding of float32 sums."""
    np.testing.assert_array_equal(decoder.term_ids, terms)
    np.testing.assert_allclose(decoder.weight, weight, rtol=0, atol=error * np.abs(weight).max())


class TestSolution:
    @pytest.mark.parametrize(
        ("count", "power"), [(3, 0.5), (3, 1.0), (5, 0.5), (40, 0.0), (40, 0.5), (400, 0.0), (400, 0.5), (400, 1.0)]
    )
    def test_equals_dense_matrices(self, count, power):
        texts = corpus(count)
        decoder = fitted(texts).ridge_decoder(spectral_power=power)
        assert decoder.weight.dtype == decoder.mean.dtype == torch.float32
        assert_close(decoder, *reference(rows_of(texts), literal(texts), power=power))
        np.testing.assert_allclose(decoder.mean, rows_of(texts).mean(axis=0), rtol=1e-5)

    @pytest.mark.parametrize("regularization", [1e-3, 1.0, 100.0])
    @pytest.mark.parametrize("least", [1, 3, 1000])
    def test_settings(self, regularization, least):
        texts = corpus(100)
        decoder = fitted(texts).ridge_decoder(regularization=regularization, min_document_frequency=least)
        if least == 1000:
            assert decoder.weight.shape == (0, DIMENSION)
        else:
            expected = reference(rows_of(texts), literal(texts), regularization=regularization, least=least)
            assert_close(decoder, *expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("shrinkage", [0.3, 10.0])
    @pytest.mark.parametrize("count", [4, 100])
    def test_shrunk_towards_the_lm_head(self, dtype, shrinkage, count):
        texts, head = corpus(count), lm_head(dtype=dtype)
        calibration = fitted(texts)
        decoder = calibration.ridge_decoder(lm_head=head, lm_head_shrinkage=shrinkage)
        weight = head.weight.detach().double().numpy()
        expected = reference(rows_of(texts), literal(texts), prior=weight, shrinkage=shrinkage)
        assert_close(decoder, *expected)
        assert (decoder.weight - calibration.decoder.weight).abs().max() > 0.01 * np.abs(expected[1]).max()

    def test_shrunk_where_documents_are_few(self):
        texts, head = corpus(999), lm_head()
        calibration = fitted(texts)
        found = calibration.ridge_decoder(lm_head=head)
        weight = head.weight.detach().double().numpy()
        assert_close(found, *reference(rows_of(texts), literal(texts), prior=weight, shrinkage=3.0))
        assert found is not calibration.ridge_decoder(lm_head=lm_head(has_transform=True)) is calibration.decoder
        many = fitted(corpus(1000))
        assert many.ridge_decoder(lm_head=head) is many.decoder

    def test_much_shrinkage_is_the_lm_head(self):
        head = lm_head()
        decoder = fitted(corpus(100)).ridge_decoder(
            regularization=1e6, spectral_power=1.0, lm_head=head, lm_head_shrinkage=1e6
        )
        expected = head.weight.detach()[decoder.term_ids]
        np.testing.assert_allclose(
            decoder.weight / decoder.weight.norm(), expected / expected.norm(), rtol=1e-3, atol=1e-5
        )

    def test_an_lm_head_of_zeros(self):
        calibration, head = fitted(corpus(100)), lm_head()
        head.weight.data.zero_()
        decoder = calibration.ridge_decoder(lm_head=head, lm_head_shrinkage=1.0)
        np.testing.assert_array_equal(decoder.weight, calibration.ridge_decoder().weight)

    def test_by_hand(self):
        # idf ln 2, variance 2, penalty 0.6: ln 2 / 2.6 = 0.26660; its root 0.51633
        calibration = Calibration(1, vocab_size=3)
        calibration.update(np.array([[4.0], [6.0]]), [np.array([], dtype=int), np.array([1])])
        assert calibration.decoder.term_ids.tolist() == [1]
        assert float(calibration.decoder.weight) == pytest.approx(0.51633, rel=1e-4)
        assert float(calibration.decoder.logits(torch.tensor([[7.0]]))) == pytest.approx(2 * 0.51633, rel=1e-4)

    def test_more_terms_than_a_block(self):
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((3000, 5)).astype(np.float32) + 10
        term_ids = [rng.integers(0, 9000, 20) for _ in rows]
        calibration = Calibration(5, vocab_size=9000)
        calibration.update(rows, term_ids)
        centred = rows - rows.mean(axis=0, dtype=np.float64)
        documents = saturated(term_ids, 9000)
        expected = np.linalg.solve(
            centred.T @ centred + 0.3 * np.trace(centred.T @ centred) / 5 * np.eye(5),
            centred.T @ (documents * calibration.idf),
        )
        decoder = calibration.ridge_decoder(spectral_power=1.0)
        assert len(decoder.term_ids) > 8192
        assert_close(decoder, np.arange(9000)[documents.any(axis=0)], expected.T[documents.any(axis=0)])

    @pytest.mark.parametrize("factor", [1e-15, 1e15])
    def test_tiny_and_huge_embeddings(self, factor):
        rows, term_ids = rows_of(corpus(100)).astype(np.float64) * factor, literal(corpus(100))
        calibration = Calibration(DIMENSION, vocab_size=VOCAB_SIZE)
        calibration.update(rows, term_ids)
        assert_close(calibration.decoder, *reference(rows.astype(np.float32), term_ids))

    def test_progress(self, capsys):
        fitted(corpus(20)).ridge_decoder(show_progress_bar=True)
        assert "Decoder: 100%" in capsys.readouterr().err

    def test_is_kept_until_something_changes(self):
        calibration = fitted(corpus(20))
        first = calibration.decoder
        assert calibration.decoder is calibration.ridge_decoder() is first
        assert calibration.ridge_decoder(regularization=1.0) is not first
        calibration.update(rows_of(corpus(3)), literal(corpus(3)))
        assert_close(calibration.decoder, *reference(rows_of(corpus(20) + corpus(3)), literal(corpus(20) + corpus(3))))


class TestDegenerate:
    @pytest.mark.parametrize("texts", [["a b c"], ["a b b"] * 50, [""] * 3], ids=["one", "identical", "empty"])
    def test_nothing_varies(self, texts):
        decoder = fitted(texts, batch_size=1).decoder
        assert len(decoder.term_ids) == len(set(" ".join(texts).split()))
        np.testing.assert_array_equal(decoder.weight, torch.zeros(len(decoder.term_ids), DIMENSION))
        assert not decoder.logits(torch.ones(2, DIMENSION)).any()

    def test_no_terms(self):
        calibration = Calibration(2, vocab_size=3)
        calibration.update(np.array([[1.0, 2.0], [3.0, 5.0]]), [np.array([], dtype=int)] * 2)
        assert calibration.decoder.logits(torch.ones(4, 2)).shape == (4, 0)

    def test_terms_do_not_vary(self):
        rows = np.random.default_rng(0).standard_normal((500, 4)) + 3
        calibration = Calibration(4, vocab_size=3)
        calibration.update(rows, [np.array([1, 2, 2])] * 500)
        np.testing.assert_array_equal(calibration.decoder.weight, torch.zeros(2, 4))

    def test_a_small_spread_around_a_large_mean(self):
        texts = corpus(300)
        rows = (1e-3 * (rows_of(texts) - 4) + 1).astype(np.float32)
        calibration = fitted(texts, embeddings=rows)
        assert_close(calibration.decoder, *reference(rows, literal(texts)), error=1e-3)

    def test_empty(self):
        with pytest.raises(ValueError, match="must hold at least one embedding, got none"):
            _ = Calibration(2, vocab_size=3).decoder


class TestDecoding:
    def test_logits(self):
        texts = corpus(50)
        decoder, x = fitted(texts).decoder, torch.from_numpy(rows_of(texts))
        before = x.clone()
        expected = (x.double() - x.double().mean(dim=0)) @ decoder.weight.double().T
        np.testing.assert_allclose(decoder.logits(x), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(decoder.logits(x[3:4]), expected[3:4], rtol=1e-4, atol=1e-4)
        assert torch.equal(x, before)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_dtype(self, dtype):
        decoder, x = fitted(corpus(50)).decoder, torch.from_numpy(rows_of(corpus(50)))
        half = decoder.to("cpu", dtype)
        assert half.mean.dtype == torch.float32
        logits = half.logits(x)
        assert logits.dtype == dtype
        error = (logits.float() - decoder.logits(x)).abs().max() / decoder.logits(x).abs().max()
        assert 0 < error < 4 * torch.finfo(dtype).eps

    def test_wrong_embeddings(self):
        decoder = fitted(corpus(5)).decoder
        with pytest.raises(ValueError, match=r"must have shape \(batch_size, 6\), got \(2, 7\)"):
            decoder.logits(torch.ones(2, 7))
        with pytest.raises(TypeError, match=r"must be floating-point numbers, got torch\.int64"):
            decoder.logits(torch.ones(2, 6, dtype=torch.int64))


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"regularization": 0}, "regularization must be finite and >= 1e-09, got 0"),
            ({"regularization": float("nan")}, "regularization must be finite and >= 1e-09, got nan"),
            ({"spectral_power": 1.5}, "spectral_power must be between 0 and 1, got 1.5"),
            ({"min_document_frequency": 0}, "min_document_frequency must be >= 1, got 0"),
            ({"lm_head_shrinkage": -1.0}, "lm_head_shrinkage must be finite and >= 0, got -1"),
            ({"lm_head_shrinkage": 0.5}, "lm_head must be affine for lm_head_shrinkage=0.5, got none"),
            ({"lm_head_shrinkage": 1, "lm_head": lm_head(7)}, "lm_head must have embedding_dimension 6, got 7"),
            ({"lm_head_shrinkage": 1, "lm_head": lm_head(6, 38)}, "lm_head must have vocab_size 37, got 38"),
        ],
    )
    def test_settings(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            fitted(corpus(5)).ridge_decoder(**arguments)

    @pytest.mark.parametrize("kind", [{"soft_cap": 12.0}, {"has_transform": True}], ids=str)
    def test_heads_that_are_not_affine(self, kind):
        calibration, head = fitted(corpus(5)), lm_head(**kind)
        with pytest.raises(ValueError, match=r"must be affine .*, got one with a transform or soft cap"):
            calibration.ridge_decoder(lm_head=head, lm_head_shrinkage=0.5)
        assert calibration.ridge_decoder(lm_head=head) is calibration.decoder

    def test_without_cross_moments(self):
        rows = rows_of(corpus(5))
        for calibration in (Calibration.fit_embeddings(rows, **QUIET), fitted(corpus(5), fit_decoder=False)):
            assert calibration.decoder is None
            with pytest.raises(ValueError, match="must have cross moments, got one fitted without texts or with"):
                calibration.ridge_decoder()


class TestCrossMoments:
    @given(cuts=st.lists(st.integers(0, 60), max_size=5))
    @settings(max_examples=15)
    def test_streaming_equals_one_batch(self, cuts):
        rows, counts = rows_of(corpus(60)), count_matrix(literal(corpus(60)), VOCAB_SIZE)
        streamed = TermCrossMoments(DIMENSION, VOCAB_SIZE)
        for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
            streamed.update(rows[start:stop], counts[start:stop])
        frequencies = saturated(literal(corpus(60)))
        terms = np.flatnonzero(frequencies.any(axis=0))
        np.testing.assert_array_equal(streamed.term_ids, terms)
        np.testing.assert_allclose(streamed.weights.dense(VOCAB_SIZE), frequencies.sum(axis=0))
        np.testing.assert_allclose(streamed.rows(terms), (frequencies.T @ rows)[terms], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", [torch.from_numpy, lambda x: torch.from_numpy(x).half(), np.float64])
    def test_embeddings_of_any_kind(self, kind):
        rows = np.array([[1.0, 2.0], [0.5, -4.0]], dtype=np.float32)
        cross_moments = TermCrossMoments(2, 3)
        cross_moments.update(kind(rows), scipy.sparse.csr_array([[0, 1, 0], [0, 3, 1]]))
        expected = np.array([rows[0] + 3 * 2.2 / 4.2 * rows[1], rows[1]])
        np.testing.assert_allclose(cross_moments.rows(np.array([1, 2])), expected, rtol=1e-6)

    def test_only_terms_that_occur_are_held(self):
        calibration = Calibration(DIMENSION, vocab_size=10**6)
        calibration.update(rows_of(["a"]), [np.array([5, 10**6 - 1])])
        assert calibration.cross_moments.to_tensors()["rows"].shape == (2, DIMENSION)

    def test_damaged(self):
        tensors = fitted(corpus(20)).cross_moments.to_tensors()
        with pytest.raises(ValueError, match="must hold a row for each weight that is not 0, got 2 rows"):
            TermCrossMoments.from_tensors({**tensors, "rows": tensors["rows"][:2]})

    @pytest.mark.parametrize("arguments", [(0, 5), (5, 0)])
    def test_sizes(self, arguments):
        with pytest.raises(ValueError, match=r"must be >= 1, got 0"):
            TermCrossMoments(*arguments)


class TestMerge:
    @given(order=st.permutations(range(4)))
    @settings(max_examples=10)
    def test_any_order(self, order):
        parts = [fitted(corpus(60)[15 * part : 15 * part + 15]) for part in order]
        before = parts[1].hash
        for part in parts[1:]:
            parts[0].merge(part)
        assert_close(parts[0].decoder, *reference(rows_of(corpus(60)), literal(corpus(60))))
        assert parts[1].hash == before

    def test_with_itself(self):
        calibration = fitted(corpus(20))
        calibration.merge(calibration)
        assert_close(calibration.decoder, *reference(rows_of(corpus(20) * 2), literal(corpus(20) * 2)))

    def test_with_one_that_has_no_cross_moments(self):
        calibration = fitted(corpus(20))
        with pytest.raises(ValueError, match=r"has_cross_moments True, got False.*the same fit_decoder"):
            calibration.merge(fitted(corpus(20), fit_decoder=False))


class TestSaveLoad:
    def test_in_a_fresh_process(self, tmp_path):
        calibration = fitted(corpus(80))
        _ = calibration.decoder
        calibration.save(tmp_path)
        script = (
            "import json, sys; from st_keytokens import Calibration; c = Calibration.load(sys.argv[1]); "
            "print(json.dumps([c.hash, c.decoder.term_ids.tolist(), c.decoder.weight.tolist()]))"
        )
        run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True, text=True)
        digest, terms, weight = json.loads(run.stdout)
        assert digest == calibration.hash
        assert_close(calibration.decoder, terms, np.array(weight))

    def test_what_was_solved_is_kept(self, tmp_path):
        calibration, head = fitted(corpus(80)), lm_head()
        before = calibration.hash
        settings = {"regularization": 0.1, "lm_head": head, "lm_head_shrinkage": 2.0}
        expected = calibration.ridge_decoder(**settings)
        calibration.save(tmp_path)
        loaded = Calibration.load(tmp_path)
        assert calibration.hash == loaded.hash == before
        np.testing.assert_array_equal(loaded.ridge_decoder(**settings).weight, expected.weight)
        head.weight.data.mul_(-1)
        terms, weight = reference(
            rows_of(corpus(80)),
            literal(corpus(80)),
            regularization=0.1,
            prior=head.weight.detach().double().numpy(),
            shrinkage=2.0,
        )
        assert_close(loaded.ridge_decoder(**settings), terms, weight)

    def test_loaded_goes_on(self, tmp_path):
        calibration = fitted(corpus(80)[:50])
        _ = calibration.decoder
        calibration.save(tmp_path)
        loaded = Calibration.load(tmp_path)
        loaded.merge(fitted(corpus(80)[50:]))
        assert_close(loaded.decoder, *reference(rows_of(corpus(80)), literal(corpus(80))))

    def test_resumed(self, tmp_path):
        fitted(corpus(80)[:50], resume_from=tmp_path / "state")
        encoder = WordEncoder()
        resumed = Calibration.fit(encoder, corpus(80), resume_from=tmp_path / "state", **QUIET)
        assert encoder.embedded == 30
        assert_close(resumed.decoder, *reference(rows_of(corpus(80)), literal(corpus(80))))
        with pytest.raises(ValueError, match=r"resume_from=.* must have has_cross_moments False, got True"):
            fitted(corpus(80), fit_decoder=False, resume_from=tmp_path / "state")

    def test_without_cross_moments(self, tmp_path):
        fitted(corpus(20), fit_decoder=False).save(tmp_path)
        assert Calibration.load(tmp_path).decoder is None

    def test_pickled_without_the_decoder(self):
        calibration = fitted(corpus(20))
        expected = calibration.decoder.weight
        pickled, values = pickle.dumps(calibration), expected.numpy().tobytes()
        assert values in pickle.dumps(expected)
        assert values not in pickled
        np.testing.assert_array_equal(pickle.loads(pickled).decoder.weight, expected)

    def test_hash_follows_what_occurs_with_what(self):
        def digest(*term_ids):
            calibration = Calibration(1, vocab_size=3)
            calibration.update(np.array([[1.0], [2.0]]), [np.array(terms) for terms in term_ids])
            return calibration.hash

        assert digest([0], [1]) != digest([1], [0])
        assert fitted(corpus(20)).hash != fitted(corpus(20), fit_decoder=False).hash
