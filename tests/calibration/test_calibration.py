"""Calibration against brute force over all texts. Run as a script, this file fits one and is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SENTENCES, build_sentence_transformer

import st_keytokens.calibration as module
from st_keytokens.calibration import Calibration, EmbeddingSample
from st_keytokens.calibration.moments import TermCounts, affine_statistics, count_matrix
from st_keytokens.decoding.head_parts import HeadTransform
from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder.encoder import KeyTokenEncoder

VOCAB_SIZE, DIMENSION = 37, 6
QUIET = {"show_progress_bar": False}


class WordVocabulary:
    vocab_size = VOCAB_SIZE

    def __init__(self, name: str = "words") -> None:
        self.hash = name


class WordEncoder:
    """Embeds a text as an offset plus the sum of its words' fixed random vectors; counts the texts embedded."""

    def __init__(self, model_name: str = "word-model", vocabulary: str = "words", kill_at: int | None = None) -> None:
        self.model_name = model_name
        self.vocabulary = WordVocabulary(vocabulary)
        self.vectors = np.random.default_rng(0).standard_normal((VOCAB_SIZE, DIMENSION))
        self.embedded = 0
        self.batch_sizes: set[int] = set()
        self.kill_at = kill_at

    def embed(self, texts: list[str], *, role: str, batch_size: int) -> np.ndarray:
        assert role == "document"
        if self.kill_at is not None and self.embedded >= self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.embedded += len(texts)
        self.batch_sizes.add(batch_size)
        rows = [4 + self.vectors[terms].sum(axis=0) for terms in self.literal_terms(texts)]
        return np.stack(rows).astype(np.float32)

    def prepare_embeddings(self, embeddings):
        return embeddings

    def literal_terms(self, texts: list[str]) -> list[np.ndarray]:
        words = [text.encode("utf-8", "surrogatepass").split() for text in texts]
        return [np.array([zlib.crc32(w) % VOCAB_SIZE for w in row], dtype=np.int64) for row in words]


def corpus(count: int = 100, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{w}" for w in rng.zipf(1.5, rng.integers(0, 12)) % 500) for _ in range(count)]


def fitted(texts: list[str], **arguments) -> Calibration:
    return Calibration.fit(WordEncoder(), texts, **{**QUIET, **arguments})


def rows_of(texts: list[str]) -> np.ndarray:
    return WordEncoder().embed(texts, role="document", batch_size=len(texts))


def lm_head(
    dimension=DIMENSION, vocab_size=VOCAB_SIZE, *, soft_cap=None, has_transform=False, dtype=torch.float32
) -> LMHead:
    """An LM head over tiny vectors: affine, soft-capped, or with an activation before the output layer."""
    generator = torch.Generator().manual_seed(1)

    def layer(rows: int, scale: float) -> torch.nn.Linear:
        linear = torch.nn.Linear(dimension, rows)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(rows, dimension, generator=generator))
            linear.bias.copy_(scale * torch.randn(rows, generator=generator))
        return linear.to(dtype)

    transform = None
    if has_transform:
        norm = torch.nn.LayerNorm(dimension, dtype=dtype)
        transform = HeadTransform(layer(dimension, 1.0), norm, activation="gelu", norm_eps=1e-5)
    return LMHead(layer(vocab_size, 10.0), transform, scale=2.0, soft_cap=soft_cap)


def brute_force(head, rows, calibration, correction="none", shift=None):
    """Mean and standard deviation of the logits of all rows: numpy in float64, from the head's values as they are."""
    direction = calibration.first_component.direction.numpy().astype(np.float64)
    x = rows.astype(np.float64)
    x = {
        "none": x,
        "remove": x - np.outer(x @ direction, direction),
        "shift": x + (shift or 0.0) * direction,
        "center": x - x.mean(axis=0),
    }[correction]
    if head.parts.transform is not None:
        with torch.no_grad():
            x = head.parts.transform(torch.from_numpy(x).float()).double().numpy()
    logits = head.scale * (x @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy())
    if head.soft_cap is not None:
        logits = head.soft_cap * np.tanh(logits / head.soft_cap)
    return logits.mean(axis=0), logits.std(axis=0)


class TestFit:
    def test_counts_against_a_naive_loop(self):
        texts = corpus()
        calibration = fitted(texts, batch_size=7)
        frequencies, total = np.zeros(VOCAB_SIZE, dtype=np.int64), 0
        for terms in WordEncoder().literal_terms(texts):
            total += len(terms)
            for term in set(terms.tolist()):
                frequencies[term] += 1
        np.testing.assert_array_equal(calibration.document_frequencies, frequencies)
        assert calibration.document_frequencies.dtype == np.int64
        assert calibration.total_terms == total
        assert calibration.document_count == 100
        assert calibration.average_length == total / 100
        assert (calibration.model_name, calibration.vocabulary_hash) == ("word-model", "words")

    def test_moments_against_numpy(self):
        texts = corpus()
        calibration = fitted(texts, batch_size=7)
        rows = rows_of(texts).astype(np.float64)
        np.testing.assert_allclose(calibration.moments.second_moment, rows.T @ rows, rtol=1e-12)
        direction = np.linalg.svd(rows)[2][0]
        direction = direction * np.sign(rows.mean(axis=0) @ direction)
        np.testing.assert_allclose(calibration.first_component.direction, direction, atol=1e-6)

    @pytest.mark.parametrize("batch_size", [1, 4, 1000])
    def test_batch_size_changes_nothing(self, batch_size):
        texts, encoder = corpus(), WordEncoder()
        assert_same(Calibration.fit(encoder, iter(texts), batch_size=batch_size, **QUIET), fitted(texts))
        assert encoder.batch_sizes == {batch_size}

    def test_batch_size_is_that_of_a_forward_pass(self, tmp_path):
        encoder, sizes = KeyTokenEncoder(build_sentence_transformer(tmp_path)), []
        encoder.model[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]["input_ids"])))
        Calibration.fit(encoder, SENTENCES[:8], batch_size=3, **QUIET)
        assert sizes == [3, 3, 2]

    def test_stored_embeddings_are_not_embedded_again(self, tmp_path):
        texts = corpus()
        np.save(tmp_path / "rows.npy", rows_of(texts))
        encoder = WordEncoder()
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        calibration = Calibration.fit(encoder, texts, embeddings=mapped, batch_size=9, **QUIET)
        assert encoder.embedded == 0
        assert_same(calibration, fitted(texts))

    def test_one_empty_text(self):
        calibration = fitted([""])
        assert calibration.document_count == 1
        assert calibration.average_length == 0.0
        assert calibration.document_frequencies.sum() == 0
        np.testing.assert_allclose(calibration.idf, np.log(1 + 1.5 / 0.5), rtol=1e-6)

    def test_lone_surrogates(self, tmp_path):
        texts = ["a \ud800", "b"]
        fitted(texts, resume_from=tmp_path / "state")
        assert fitted(texts, resume_from=tmp_path / "state").document_count == 2

    def test_progress(self, capsys):
        Calibration.fit(WordEncoder(), corpus(20), show_progress_bar=True)
        assert "20/20" in capsys.readouterr().err
        fitted(corpus(20))
        assert capsys.readouterr().err == ""

    def test_one_string(self):
        with pytest.raises(TypeError, match="texts must be an iterable of strings, got one string"):
            fitted("text")

    def test_not_a_string(self):
        with pytest.raises(TypeError, match="texts must be strings, got NoneType at position 3"):
            fitted(["a", "b", "c", None], batch_size=2)

    def test_no_texts(self):
        with pytest.raises(ValueError, match="must hold at least one item, got none"):
            fitted([])

    def test_embeddings_of_other_texts(self):
        with pytest.raises(ValueError, match="must have one row a text, got 4 rows for 5 texts"):
            fitted(corpus(5), embeddings=rows_of(corpus(4)))
        with pytest.raises(ValueError, match="must have one row a text, got 4 rows for at least 5 texts"):
            fitted(iter(corpus(5)), embeddings=rows_of(corpus(4)))
        with pytest.raises(ValueError, match="must have one row a text, got 6 rows for 5 texts"):
            fitted(iter(corpus(5)), embeddings=rows_of(corpus(6)))
        encoder = WordEncoder()
        encoder.embed = lambda texts, *, role, batch_size: rows_of(texts[1:])
        with pytest.raises(ValueError, match="must have one row a text, got 4 rows for 5 texts"):
            Calibration.fit(encoder, corpus(5), **QUIET)

    @pytest.mark.parametrize("name", ["batch_size", "save_every"])
    def test_sizes(self, name):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            fitted(["a"], **{name: 0})
        with pytest.raises(TypeError, match=f"{name} must be an integer, got float"):
            Calibration.fit_embeddings(np.ones((2, 2)), **{name: 2.5}, **QUIET)

    def test_not_finite_names_the_embedding(self):
        rows = rows_of(corpus(40))
        rows[18, 0] = np.nan
        with pytest.raises(ValueError, match=r"got nan in row 2 of this batch \(embedding 18 of all"):
            fitted(corpus(40), embeddings=rows, batch_size=1)


class TestFitEmbeddings:
    def test_all_sources_agree(self, tmp_path):
        rows = rows_of(corpus())
        np.save(tmp_path / "rows.npy", rows)
        expected = Calibration.fit_embeddings(rows, model_name="m", **QUIET)
        assert expected.document_count == 100
        sources = {
            "tensor": torch.from_numpy(rows),
            "mapped": np.load(tmp_path / "rows.npy", mmap_mode="r"),
            "batches": [rows[:1], rows[1:1], rows[1:40], torch.from_numpy(rows[40:])],
            "generator": (rows[start : start + 9] for start in range(0, 100, 9)),
        }
        for source in sources.values():
            assert_same(Calibration.fit_embeddings(source, model_name="m", batch_size=13, **QUIET), expected)

    def test_half_precision(self):
        rows = torch.from_numpy(rows_of(corpus())).bfloat16()
        assert_same(
            Calibration.fit_embeddings(rows, **QUIET), Calibration.fit_embeddings(rows.float().numpy(), **QUIET)
        )

    def test_has_no_terms(self):
        calibration = Calibration.fit_embeddings(rows_of(corpus()), **QUIET)
        assert calibration.document_frequencies is None
        with pytest.raises(ValueError, match="must have document frequencies, got one fitted on embeddings alone"):
            _ = calibration.idf
        with pytest.raises(ValueError, match="must have document frequencies, got one fitted on embeddings alone"):
            _ = calibration.average_length

    @pytest.mark.parametrize("rows", [np.zeros((0, 4), dtype=np.float32), [], iter([])])
    def test_none(self, rows):
        with pytest.raises(ValueError, match="must hold at least one item, got none"):
            Calibration.fit_embeddings(rows, **QUIET)

    def test_wrong_inputs(self):
        with pytest.raises(ValueError, match=r"must have shape \(batch_size, embedding_dimension\), got \(4,\)"):
            Calibration.fit_embeddings(np.zeros(4), **QUIET)
        with pytest.raises(TypeError, match="must be floating-point numbers, got int8"):
            Calibration.fit_embeddings(np.zeros((4, 2), dtype=np.int8), **QUIET)
        with pytest.raises(TypeError, match="must be a torch tensor or a numpy array, got list"):
            Calibration.fit_embeddings([[1.0, 2.0]], **QUIET)
        with pytest.raises(ValueError, match=r"must have shape \(batch_size, 2\), got \(3, 4\)"):
            Calibration.fit_embeddings([np.ones((3, 2)), np.ones((3, 4))], **QUIET)


class TestUpdate:
    def test_idf_by_hand(self):
        calibration = Calibration(1, vocab_size=3)
        calibration.update(np.ones((4, 1)), [np.array(t, dtype=int) for t in ([0, 0, 1], [0], [], [0])])
        assert calibration.document_frequencies.tolist() == [3, 1, 0]
        assert calibration.average_length == 5 / 4
        np.testing.assert_allclose(calibration.idf, np.log([1 + 1.5 / 3.5, 1 + 3.5 / 1.5, 1 + 4.5 / 0.5]), rtol=1e-6)
        assert calibration.idf.dtype == np.float32

    def test_errors_add_nothing(self):
        calibration = Calibration(2, vocab_size=3)
        calibration.update(np.ones((1, 2)), [np.array([1])])
        before = calibration.hash
        rows, terms = np.ones((2, 2)), [np.array([0]), np.array([2, 3])]
        with pytest.raises(ValueError, match=r"term_ids must be in \[0, 3\), got 3 in document 1 of this batch"):
            calibration.update(rows, terms)
        with pytest.raises(ValueError, match=r"term_ids must be in \[0, 3\), got -1 in document 0"):
            calibration.update(rows, [np.array([-1]), np.array([0])])
        with pytest.raises(TypeError, match="term_ids must be integers, got float64"):
            calibration.update(rows, [np.array([0.0]), np.array([1.0])])
        with pytest.raises(ValueError, match="must have one entry an embedding, got 1 for 2 embeddings"):
            calibration.update(rows, terms[:1])
        with pytest.raises(ValueError, match=r"must be given exactly if .* vocab_size 3 and no term_ids"):
            calibration.update(rows)
        with pytest.raises(ValueError, match="embeddings must be finite"):
            calibration.update(np.array([[0.0, np.nan]]), terms[:1])
        with pytest.raises(ValueError, match=r"must be given exactly if .* vocab_size None and 2 term_ids"):
            Calibration(2).update(rows, terms)
        assert calibration.hash == before
        assert calibration.document_frequencies.tolist() == [0, 1, 0]

    def test_first_component_and_hash_follow(self):
        calibration = Calibration(2)
        calibration.update(np.array([[1.0, 0.0]]))
        first, before = calibration.first_component, calibration.hash
        assert calibration.first_component is first
        calibration.update(np.array([[0.0, 9.0]]))
        assert calibration.first_component.coefficient == pytest.approx(4.5)
        assert calibration.hash != before

    def test_empty(self):
        calibration = Calibration(2, vocab_size=3)
        with pytest.raises(ValueError, match="must hold at least one embedding, got none"):
            _ = calibration.first_component
        with pytest.raises(ValueError, match="must hold at least one document, got none"):
            _ = calibration.average_length
        with pytest.raises(ValueError, match="must hold at least one embedding, got none"):
            calibration.logit_statistics(lm_head(2, 3))
        assert len(calibration.hash) == 64

    def test_vocab_size(self):
        with pytest.raises(ValueError, match="vocab_size must be >= 1, got 0"):
            Calibration(2, vocab_size=0)


def assert_same(one: Calibration, other: Calibration) -> None:
    """Equal up to the order of additions; exactly equal in counts and sample."""
    assert (one.document_count, one.total_terms) == (other.document_count, other.total_terms)
    np.testing.assert_allclose(one.moments.sum, other.moments.sum, rtol=1e-11)
    np.testing.assert_allclose(one.moments.second_moment, other.moments.second_moment, rtol=1e-11, atol=1e-9)
    np.testing.assert_array_equal(one.sample.embeddings, other.sample.embeddings)
    np.testing.assert_array_equal(one.sample.priorities, other.sample.priorities)
    np.testing.assert_array_equal(one.document_frequencies, other.document_frequencies)


class TestMerge:
    @given(cut=st.integers(1, 59))
    @settings(max_examples=15)
    def test_equals_fitting_on_both(self, cut):
        texts = corpus(60)
        left, right, whole = fitted(texts[:cut]), fitted(texts[cut:]), fitted(texts)
        right_before = right.hash
        _ = left.first_component
        left.merge(right)
        assert_same(left, whole)
        assert right.hash == right_before
        np.testing.assert_allclose(left.first_component.direction, whole.first_component.direction, atol=1e-6)
        np.testing.assert_array_equal(left.idf, whole.idf)
        for mine, expected in zip(left.logit_statistics(lm_head()), whole.logit_statistics(lm_head()), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("encoder", "message"),
        [
            (WordEncoder(vocabulary="other"), "other must have vocabulary_hash 'words', got 'other'"),
            (WordEncoder(model_name="big"), "other must have model_name 'word-model', got 'big'"),
        ],
    )
    def test_refused(self, encoder, message):
        calibration = fitted(corpus(5))
        before = calibration.hash
        with pytest.raises(ValueError, match=message):
            calibration.merge(Calibration.fit(encoder, corpus(5), **QUIET))
        assert calibration.hash == before

    @given(order=st.permutations(range(4)))
    @settings(max_examples=10)
    def test_any_order(self, order):
        texts, merged = corpus(60), Calibration(DIMENSION, vocab_size=VOCAB_SIZE)
        merged.vocabulary_hash, merged.model_name = "words", "word-model"
        for part in order:
            merged.merge(fitted(texts[15 * part : 15 * part + 15]))
        assert_same(merged, fitted(texts))

    def test_with_itself_doubles(self):
        texts = corpus(20)
        calibration = fitted(texts)
        calibration.merge(calibration)
        assert_same(calibration, fitted(texts + texts))

    def test_refused_sizes(self):
        with pytest.raises(ValueError, match="other must have embedding_dimension 3, got 4"):
            Calibration(3).merge(Calibration(4))
        with pytest.raises(ValueError, match="other must have vocab_size 9, got None"):
            Calibration(3, vocab_size=9).merge(Calibration(3))
        with pytest.raises(TypeError, match="other must be a Calibration, got int"):
            Calibration(3).merge(3)


class TestSample:
    def test_is_independent_of_order_and_batches(self):
        rows = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)
        one, other, merged = (EmbeddingSample(3, size=50) for _ in range(3))
        one.update(rows)
        for row in rows[::-1]:
            other.update(np.ascontiguousarray(row[None]))
        merged.update(rows[:200])
        rest = EmbeddingSample(3, size=50)
        rest.update(rows[200:])
        merged.merge(rest)
        for sample in (other, merged):
            np.testing.assert_array_equal(sample.embeddings, one.embeddings)
            np.testing.assert_array_equal(sample.priorities, one.priorities)
        assert {tuple(row) for row in one.embeddings} < {tuple(row) for row in rows}

    def test_keeps_everything_while_it_fits(self):
        rows = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
        sample = EmbeddingSample(3, size=50)
        sample.update(rows)
        assert {tuple(row) for row in sample.embeddings} == {tuple(row) for row in rows}

    def test_equal_embeddings(self):
        sample = EmbeddingSample(2, size=3)
        sample.update(np.ones((8, 2), dtype=np.float32))
        np.testing.assert_array_equal(sample.embeddings, np.ones((3, 2)))

    def test_is_uniform(self):
        # Rows in two halves of known values: the sample's share of the first half is binomial, 4 standard deviations.
        rows = np.arange(20_000, dtype=np.float32)[:, None]
        sample = EmbeddingSample(1, size=1000)
        sample.update(rows)
        assert abs((sample.embeddings < 10_000).sum() - 500) < 4 * np.sqrt(250)
        assert sample.embeddings.mean() == pytest.approx(10_000, abs=4 * 5774 / np.sqrt(1000))


class TestTermCounts:
    def test_counts(self):
        counts = count_matrix([np.array([2, 0, 2]), [], np.array([3], dtype=np.uint8), [1, 1]], 4)
        assert counts.toarray().tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 2, 0, 0]]
        assert counts.has_sorted_indices

    @pytest.mark.parametrize("documents", [0, 3])
    def test_no_terms(self, documents):
        terms = TermCounts(4)
        terms.update(count_matrix([np.zeros(0, dtype=np.int64)] * documents, 4))
        assert terms.document_frequencies.tolist() == [0, 0, 0, 0]
        assert terms.total == 0

    @pytest.mark.parametrize("largest", [2**31, 2**64 - 1])
    def test_ids_beyond_the_vocabulary(self, largest):
        with pytest.raises(ValueError, match=r"term_ids must be in \[0, 4\), got .* in document 1 of this batch"):
            count_matrix([np.array([0]), np.array([1, largest], dtype=np.uint64)], 4)


CORRECTIONS = pytest.mark.parametrize("correction", ["none", "remove", "shift", "center"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


class TestLogitStatistics:
    @CORRECTIONS
    @DTYPES
    @pytest.mark.parametrize("count", [2000, 4])
    def test_affine_equals_brute_force(self, correction, dtype, count):
        texts = corpus(count)
        calibration, head = fitted(texts), lm_head(dtype=dtype)
        mean, deviation = calibration.logit_statistics(head, correction=correction, shift=-5.0, block_size=10)
        assert mean.dtype == deviation.dtype == np.float32
        assert mean.shape == deviation.shape == (VOCAB_SIZE,)
        expected_mean, expected_deviation = brute_force(head, rows_of(texts), calibration, correction, -5.0)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(deviation, expected_deviation, rtol=1e-5)

    def test_a_small_spread_around_a_large_mean_survives_a_half_precision_head(self):
        rng = np.random.default_rng(0)
        rows = (50 * rng.standard_normal(64) + 0.05 * rng.standard_normal((500, 64))).astype(np.float32)
        calibration = Calibration.fit_embeddings(rows, **QUIET)
        head = lm_head(64, dtype=torch.bfloat16)
        mean, deviation = calibration.logit_statistics(head)
        expected_mean, expected_deviation = brute_force(head, rows, calibration)
        np.testing.assert_allclose((mean - expected_mean) / expected_deviation, np.zeros(VOCAB_SIZE), atol=1e-4)
        np.testing.assert_allclose(deviation, expected_deviation, rtol=1e-5)
        rounded = head.logits(torch.from_numpy(rows)).detach().double().numpy()  # what the head itself would give
        assert np.abs(rounded.std(axis=0) / expected_deviation - 1).max() > 0.1

    def test_affine_by_hand(self):
        calibration = Calibration.fit_embeddings(np.array([[1.0, 0.0], [3.0, 0.0]]), **QUIET)
        output = torch.nn.Linear(2, 3)
        output.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 5.0]])
        output.bias.data = torch.tensor([0.0, 7.0, 1.0])
        mean, deviation = calibration.logit_statistics(LMHead(output, scale=2.0))
        np.testing.assert_allclose(mean, [4.0, 14.0, -6.0], rtol=1e-6)
        np.testing.assert_allclose(deviation, [2.0, 0.0, 4.0], rtol=1e-6)

    @CORRECTIONS
    @DTYPES
    @pytest.mark.parametrize("kind", [{"soft_cap": 12.0}, {"has_transform": True}], ids=["soft-cap", "transform"])
    def test_other_heads_equal_brute_force_up_to_the_sample_size(self, correction, dtype, kind):
        texts = corpus(900)
        calibration, head = fitted(texts), lm_head(dtype=dtype, **kind)
        mean, deviation = calibration.logit_statistics(head, correction=correction, shift=-5.0, block_size=10)
        expected_mean, expected_deviation = brute_force(head, rows_of(texts), calibration, correction, -5.0)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(deviation, expected_deviation, rtol=1e-4, atol=1e-5)

    def test_other_heads_are_estimated_beyond(self):
        rows = np.random.default_rng(0).standard_normal((20_000, DIMENSION)).astype(np.float32) + 1
        calibration, head = Calibration.fit_embeddings(rows, **QUIET), lm_head(has_transform=True)
        mean, deviation = calibration.logit_statistics(head)
        expected_mean, expected_deviation = brute_force(head, rows, calibration)
        assert np.abs((mean - expected_mean) / expected_deviation).max() < 5 / np.sqrt(1024)
        np.testing.assert_allclose(deviation, expected_deviation, rtol=0.15)

    def test_affine_formula_would_be_wrong_for_them(self):
        texts = corpus(900)
        calibration, head = fitted(texts), lm_head(soft_cap=12.0)
        expected, _ = brute_force(head, rows_of(texts), calibration)
        with torch.no_grad():
            mean, _ = affine_statistics(calibration.moments, head, lambda x: x, 10)
        assert np.abs(mean - expected).max() > 0.1

    @pytest.mark.parametrize("kind", [{}, {"soft_cap": 12.0}, {"has_transform": True}], ids=str)
    @pytest.mark.parametrize("count", [1, 50, 2000])
    def test_nothing_varies(self, kind, count):
        calibration, head = fitted(["a b c d e f"] * count, batch_size=1), lm_head(**kind)
        mean, deviation = calibration.logit_statistics(head)
        np.testing.assert_array_equal(deviation, np.zeros(VOCAB_SIZE))
        expected, _ = brute_force(head, rows_of(["a b c d e f"]), calibration)
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-5)

    def test_many_additions_of_equal_embeddings(self):
        calibration = Calibration.fit_embeddings(np.full((3000, DIMENSION), 0.3), batch_size=1, **QUIET)
        np.testing.assert_array_equal(calibration.logit_statistics(lm_head())[1], np.zeros(VOCAB_SIZE))

    @pytest.mark.parametrize("factor", [1e-15, 1e15])
    def test_tiny_and_huge_embeddings(self, factor):
        rows = (rows_of(corpus(200)) * factor).astype(np.float32)
        calibration, head = Calibration.fit_embeddings(rows, **QUIET), lm_head()
        head.bias.data.zero_()
        expected_mean, expected_deviation = brute_force(head, rows, calibration)
        mean, deviation = calibration.logit_statistics(head)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-6)
        np.testing.assert_allclose(deviation, expected_deviation, rtol=1e-5)

    def test_rank_deficient(self):
        rows = np.outer(np.arange(1, 30), [1.0, -2.0, 2.0, 0.0, 0.0, 0.0])
        calibration, head = Calibration.fit_embeddings(rows, **QUIET), lm_head()
        mean, deviation = calibration.logit_statistics(head)
        expected_mean, expected_deviation = brute_force(head, rows, calibration)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-5)
        np.testing.assert_allclose(deviation, expected_deviation, rtol=1e-5)
        np.testing.assert_allclose(calibration.logit_statistics(head, correction="remove")[1], 0, atol=1e-5)

    @pytest.mark.parametrize("kind", [{}, {"soft_cap": 12.0}, {"has_transform": True}], ids=str)
    def test_block_size_gradients_and_autocast_change_nothing(self, kind):
        calibration, head = fitted(corpus()), lm_head(**kind)
        expected = calibration.logit_statistics(head)
        for block_size in (1, 36, 37):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = calibration.logit_statistics(head, block_size=block_size)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def test_refused(self):
        calibration = fitted(corpus(5))
        with pytest.raises(ValueError, match="lm_head must have embedding_dimension 6, got 7"):
            calibration.logit_statistics(lm_head(7))
        with pytest.raises(ValueError, match="lm_head must have vocab_size 37, got 38"):
            calibration.logit_statistics(lm_head(vocab_size=38))
        with pytest.raises(ValueError, match="direction and amount must be given for correction='shift'"):
            calibration.logit_statistics(lm_head(), correction="shift")
        with pytest.raises(ValueError, match=r"correction must be one of .*, got 'auto'"):
            calibration.logit_statistics(lm_head(), correction="auto")
        with pytest.raises(ValueError, match="block_size must be >= 1, got 0"):
            calibration.logit_statistics(lm_head(), block_size=0)


class TestResume:
    def test_appended_texts_cost_only_their_own_embedding(self, tmp_path):
        texts, encoder = corpus(), WordEncoder()
        Calibration.fit(encoder, texts[:30], resume_from=tmp_path / "new" / "state", **QUIET)
        assert encoder.embedded == 30
        resumed = Calibration.fit(encoder, texts, batch_size=8, resume_from=tmp_path / "new" / "state", **QUIET)
        assert encoder.embedded == 100
        assert_same(resumed, fitted(texts))
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["state"]

    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no SIGKILL")
    def test_after_a_kill(self, tmp_path):
        state = tmp_path / "state"
        root, tests = str(Path(module.__file__).parents[2]), str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, tests, os.environ.get("PYTHONPATH", "")])}
        result = subprocess.run([sys.executable, __file__, str(state)], env=environment, capture_output=True)
        assert result.returncode == -signal.SIGKILL, result.stderr.decode()
        encoder = WordEncoder()
        calibration = Calibration.fit(encoder, corpus(), batch_size=9, resume_from=state, **QUIET)
        assert encoder.embedded == 100 - 48  # killed after 80, in chunks of 16, saved after 40 or more
        assert_same(calibration, fitted(corpus()))

    def test_after_an_error(self, tmp_path):
        texts = corpus(50)
        with pytest.raises(TypeError, match="got int at position 50"):
            fitted([*texts, 3], batch_size=1, save_every=17, resume_from=tmp_path / "state")
        encoder = WordEncoder()
        calibration = Calibration.fit(encoder, texts, resume_from=tmp_path / "state", **QUIET)
        assert encoder.embedded == 50 - 32
        assert_same(calibration, fitted(texts))

    def test_embeddings(self, tmp_path):
        rows = rows_of(corpus())
        Calibration.fit_embeddings(rows[:47], batch_size=10, resume_from=tmp_path / "state", **QUIET)
        batches = [rows[:20], rows[20:60], rows[60:]]
        resumed = Calibration.fit_embeddings(batches, resume_from=tmp_path / "state", **QUIET)
        assert_same(resumed, Calibration.fit_embeddings(rows, **QUIET))
        with pytest.raises(ValueError, match="the first 100 items are not those"):
            Calibration.fit_embeddings(rows[::-1], resume_from=tmp_path / "state", **QUIET)

    @pytest.mark.parametrize(
        "texts", [corpus(20, seed=1), corpus(20)[:19], corpus(20)[::-1]], ids=["other", "fewer", "reordered"]
    )
    def test_another_corpus_is_refused(self, tmp_path, texts):
        fitted(corpus(20), resume_from=tmp_path / "state")
        before = (tmp_path / "state").read_bytes()
        with pytest.raises(ValueError, match="resume_from must belong to the corpus given, but the first 20 items"):
            fitted(texts, resume_from=tmp_path / "state")
        assert (tmp_path / "state").read_bytes() == before

    def test_other_stored_embeddings_are_refused(self, tmp_path):
        texts = corpus(20)
        fitted(texts, embeddings=rows_of(texts), resume_from=tmp_path / "state")
        with pytest.raises(ValueError, match="the first 20 items are not those"):
            fitted(texts, embeddings=rows_of(texts) + 1, resume_from=tmp_path / "state")

    @pytest.mark.parametrize(
        ("encoder", "message"),
        [
            (WordEncoder(vocabulary="other"), "must have vocabulary_hash 'other', got 'words'"),
            (WordEncoder(model_name="big"), "must have model_name 'big', got 'word-model'"),
        ],
    )
    def test_another_encoder_is_refused(self, tmp_path, encoder, message):
        fitted(corpus(20), resume_from=tmp_path / "state")
        with pytest.raises(ValueError, match=message):
            Calibration.fit(encoder, corpus(20), resume_from=tmp_path / "state", **QUIET)

    def test_unreadable(self, tmp_path):
        state = tmp_path / "state"
        fitted(corpus(20), resume_from=state)
        state.write_bytes(state.read_bytes()[:-10])
        with pytest.raises(ValueError, match="must be a whole safetensors file"):
            fitted(corpus(20), resume_from=state)
        fitted(corpus(20)).save(tmp_path)
        with pytest.raises(ValueError, match="resume_from must be a calibration's state file"):
            fitted(corpus(20), resume_from=tmp_path / "calibration.safetensors")

    def test_altered(self, tmp_path):
        state = tmp_path / "state"
        fitted(corpus(20), resume_from=state)
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(content)
        with pytest.raises(ValueError, match=r"must have the hash .* that it was written with.*Delete it"):
            fitted(corpus(20), resume_from=state)


class TestSaveLoad:
    @pytest.mark.parametrize("has_terms", [True, False])
    def test_round_trip_is_exact(self, tmp_path, has_terms):
        texts = corpus()
        calibration = fitted(texts) if has_terms else Calibration.fit_embeddings(rows_of(texts), **QUIET)
        calibration.save(tmp_path / "new" / "folder")
        loaded = Calibration.load(tmp_path / "new" / "folder")
        assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
            "calibration.json",
            "calibration.safetensors",
        ]
        assert loaded.hash == calibration.hash
        assert_same(loaded, calibration)
        assert torch.equal(loaded.moments.second_moment, calibration.moments.second_moment)
        assert torch.equal(loaded.first_component.direction, calibration.first_component.direction)
        assert loaded.first_component.coefficient == calibration.first_component.coefficient
        assert loaded.first_component.singular_value == calibration.first_component.singular_value
        for name in ("vocab_size", "vocabulary_hash", "model_name", "embedding_dimension"):
            assert getattr(loaded, name) == getattr(calibration, name)
        for one, other in zip(
            loaded.logit_statistics(lm_head()), calibration.logit_statistics(lm_head()), strict=True
        ):
            np.testing.assert_array_equal(one, other)

    def test_loaded_goes_on(self, tmp_path):
        texts = corpus()
        fitted(texts[:60]).save(tmp_path)
        loaded = Calibration.load(tmp_path)
        loaded.merge(fitted(texts[60:]))
        assert_same(loaded, fitted(texts))

    @pytest.mark.parametrize("rows", [np.zeros((0, 2)), np.zeros((3, 2))], ids=["empty", "zero"])
    def test_without_first_component(self, tmp_path, rows):
        calibration = Calibration(2)
        calibration.update(rows)
        calibration.save(tmp_path)
        assert Calibration.load(tmp_path).hash == calibration.hash

    def test_json_is_readable(self, tmp_path):
        calibration = fitted(corpus())
        calibration.save(tmp_path)
        content = json.loads((tmp_path / "calibration.json").read_text())
        assert content["document_count"] == 100
        assert content["model_name"] == "word-model"
        assert content["hash"] == calibration.hash

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"must hold calibration\.json, got none in"):
            Calibration.load(tmp_path)
        fitted(corpus(5)).save(tmp_path)
        (tmp_path / "calibration.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"must hold calibration\.safetensors, got none in"):
            Calibration.load(tmp_path)

    def test_truncated(self, tmp_path):
        fitted(corpus(5)).save(tmp_path)
        for name, message in (("calibration.safetensors", "whole safetensors"), ("calibration.json", "must be JSON")):
            path = tmp_path / name
            content = path.read_bytes()
            path.write_bytes(content[:-9])
            with pytest.raises(ValueError, match=message):
                Calibration.load(tmp_path)
            path.write_bytes(content)
        assert Calibration.load(tmp_path).document_count == 5

    def test_altered(self, tmp_path):
        fitted(corpus(5)).save(tmp_path)
        path = tmp_path / "calibration.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"must have the hash .*: it or its settings were altered"):
            Calibration.load(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format_version": 9}, "must have format_version 3, got 9"),
            ({"embedding_dimension": "six"}, "it or its settings were altered"),
            ({"coefficient": 3.0}, "it or its settings were altered"),
            ({"vocabulary_hash": "other"}, "it or its settings were altered"),
        ],
    )
    def test_altered_settings(self, tmp_path, change, message):
        fitted(corpus(5)).save(tmp_path)
        path = tmp_path / "calibration.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(ValueError, match=message):
            Calibration.load(tmp_path)

    def test_settings_are_no_object(self, tmp_path):
        fitted(corpus(5)).save(tmp_path)
        (tmp_path / "calibration.json").write_text("[1]")
        with pytest.raises(ValueError, match="must hold a JSON object, got list"):
            Calibration.load(tmp_path)

    def test_failed_write_keeps_the_old_file(self, tmp_path):
        calibration = fitted(corpus(5))
        calibration.save(tmp_path)
        path = tmp_path / "calibration.safetensors"
        path.unlink()
        path.mkdir()  # cannot be replaced by a file
        with pytest.raises(OSError, match=r"calibration\.safetensors"):
            calibration.save(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["calibration.json", "calibration.safetensors"]


class TestHash:
    def test_same_corpus_same_hash(self):
        assert fitted(corpus()).hash == fitted(corpus()).hash

    def test_does_not_depend_on_the_model_name(self):
        other = Calibration.fit(WordEncoder(model_name="/elsewhere/word-model"), corpus(), **QUIET)
        assert other.hash == fitted(corpus()).hash

    def test_changes_with_embeddings_terms_and_vocabulary(self):
        def calibration(rows=((1.0, 2.0),), terms=(1, 2), **arguments):
            result = Calibration(2, **{"vocab_size": 5, "vocabulary_hash": "a", **arguments})
            result.update(np.array(rows), [np.array(terms)])
            return result.hash

        hashes = [
            calibration(),
            calibration(rows=[[1.0, 2.0000001]]),
            calibration(rows=[[-1.0, -2.0]]),
            calibration(terms=[1, 3]),
            calibration(terms=[1, 1, 2]),
            calibration(vocabulary_hash="b"),
            calibration(vocab_size=6),
        ]
        assert len(set(hashes)) == len(hashes)


if __name__ == "__main__":
    Calibration.fit(
        WordEncoder(kill_at=70),
        corpus(),
        batch_size=1,
        save_every=40,
        resume_from=sys.argv[1],
        show_progress_bar=False,
    )
