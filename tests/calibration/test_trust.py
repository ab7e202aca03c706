from __future__ import annotations

import random

import numpy as np
import pytest

from st_keytokens.calibration.trust import KnownItems, decoded_trust
from st_keytokens.terms.weighting import Corpus

VOCAB = 4000


def document(number: int) -> str:
    return f"The first sentence of document {number}. A second sentence about subject {number}. And the end of it."


class Embedder:
    """Embeds by a rule: the number in a text decides its direction, noise how well that is seen."""

    def __init__(self, noise: float, has_numbers: bool = True) -> None:
        self.noise, self.has_numbers = noise, has_numbers
        self.directions = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)

    def _number(self, text: str) -> int:
        return next((int(word) for word in text.replace(".", "").split() if word.isdigit()), 999)

    def embed(self, texts, *, role, batch_size):
        noise = np.random.default_rng(len(texts[0]) + (role == "query")).standard_normal((len(texts), 64))
        clean = self.directions[[self._number(text) for text in texts]]
        return (clean + self.noise * noise).astype(np.float32)

    def literal_terms(self, texts):
        words = [text.replace(".", "").split() for text in texts]
        ids = [[int(w) if w.isdigit() else 1000 + len(w) for w in row] for row in words]
        return [np.array([i for i in row if self.has_numbers or i >= 1000], dtype=np.int64) for row in ids]


def sample_of(texts) -> KnownItems:
    sample = KnownItems()
    assert list(sample.watch(texts)) == list(texts)
    return sample


class TestSample:
    def test_is_the_same_in_any_order_and_bounded(self):
        texts = [document(number) for number in range(700)]
        shuffled = random.Random(0).sample(texts, len(texts))
        pairs = sample_of(texts).pairs
        assert len(pairs) == 300
        assert sample_of(shuffled).pairs == pairs

    def test_sentence_and_rest_make_up_the_document(self):
        texts = [document(number) for number in range(50)]
        for sentence, rest in sample_of(texts).pairs:
            words = sorted(f"{sentence} {rest}".split())
            assert words in [sorted(text.split()) for text in texts]

    def test_a_repeated_document_counts_once(self):
        assert len(sample_of([document(1)] * 40).pairs) == 1

    def test_what_has_no_sentence_to_spare_is_left_out(self):
        texts = ["", "one sentence without an end", "A. B. C.", "x" * 5000 + ". y. z.", "\udcff \x00"]
        assert sample_of(texts).pairs == []

    def test_chinese_sentences(self):
        text = "这是第一句话它的长度足够被选中作为查询使用。第二句话也很长同样可以被选中作为查询使用的。"
        assert len(sample_of([text]).pairs) == 1

    @pytest.mark.parametrize("end", ["\u0964", "\u06d4", "\u061f", "\u0589", "\u1362"])
    def test_sentences_of_other_scripts(self, end):
        """Devanagari, Urdu, Arabic, Armenian and Ethiopic."""
        text = f"one sentence of some words{end} another one of some words{end}"
        ((sentence, rest),) = sample_of([text]).pairs
        assert {sentence, rest} == {f"one sentence of some words{end}", f"another one of some words{end}"}


class TestTrust:
    pairs = sample_of([document(number) for number in range(200)]).pairs

    def trust(self, noise: float, has_numbers: bool = True) -> float | None:
        return decoded_trust(Embedder(noise, has_numbers), self.pairs, Corpus(average_length=17.0), VOCAB)

    def test_rises_with_the_embedder_and_stays_in_its_range(self):
        blind, weak = self.trust(100.0), self.trust(2.0)
        assert 0.05 <= blind < 0.1 < weak <= 2.0

    def test_an_embedder_that_sees_what_terms_do_not_is_trusted_most(self):
        assert self.trust(0.1, has_numbers=False) == 2.0

    def test_too_few_documents_say_nothing(self):
        assert decoded_trust(Embedder(0.1), self.pairs[:29], Corpus(), VOCAB) is None

    def test_is_the_ratio_of_odds_of_ndcg(self):
        embedder, corpus = Embedder(1.5), Corpus(average_length=17.0)
        sentences, rests = zip(*self.pairs, strict=True)
        queries = embedder.embed(sentences, role="query", batch_size=1)
        documents = embedder.embed(rests, role="document", batch_size=1)
        cosines = [[q @ d / np.linalg.norm(q) / np.linalg.norm(d) for d in documents] for q in queries]
        term_sets = [[row.tolist() for row in embedder.literal_terms(texts)] for texts in (sentences, rests)]
        bm25 = [
            [
                sum(q.count(t) * d.count(t) * 2.2 / (d.count(t) + 1.2 * (0.25 + 0.75 * len(d) / 17)) for t in set(q))
                for d in term_sets[1]
            ]
            for q in term_sets[0]
        ]

        def odds(scores):
            gains = []
            for place, row in enumerate(scores):
                better = sum(s > row[place] + 1e-5 for s in row)
                ties = sum(abs(s - row[place]) <= 1e-5 for s in row) - 1
                rank = 1 + better + ties / 2
                gains.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
            share = (sum(gains) + 0.5) / (len(gains) + 1)
            return share / (1 - share)

        expected = min(2.0, max(0.05, odds(cosines) / odds(bm25)))
        assert decoded_trust(embedder, self.pairs, corpus, VOCAB) == pytest.approx(expected, rel=1e-4)
