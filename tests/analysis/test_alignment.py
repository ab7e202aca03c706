from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from st_keytokens import KeyTokenEncoder, KeyTokenHead, LMHead, Vocabulary
from st_keytokens.analysis import alignment_of_embeddings, measure_alignment
from st_keytokens.analysis.alignment import BASELINE, VARIANTS, document_frequencies, frequency_order
from st_keytokens.calibration.moments import SecondMoments
from st_keytokens.decoding.first_component import remove

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny-embedder"
RAW = {"raw": VARIANTS["raw"]}


def three_token_head() -> LMHead:
    """Two dimensions, three tokens: the first one for x, the second for y, the third for half of each."""
    return LMHead(torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])))


def naive_alignment(rankings, texts, k=10, is_published=False):
    """Hit@k, local and global rate of decoded ids against ids with repetition, by sets."""
    hits, local, found, own = [], [], set(), set()
    for ranked, ids in zip(rankings, texts, strict=True):
        wanted = set(ids)
        if is_published:
            ranked = ranked[:k]
        first = set(ranked[: len(ids) if is_published else len(wanted)]) & wanted
        hits.append(bool(set(ranked[:k]) & wanted))
        local.append(len(first) / len(wanted))
        found |= first
        own |= wanted
    return np.mean(hits), np.mean(local), len(found) / len(own)


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    return KeyTokenEncoder(llama_embedder, terms="tokens")


def raw_rankings(encoder, texts):
    """Distinct decoded terms of each text, best first."""
    terms, is_masked, ranked = encoder.vocabulary.terms, encoder.vocabulary.is_masked, []
    with torch.inference_mode():
        scores = encoder.head.with_settings(**RAW["raw"]).decode_scores(torch.from_numpy(encoder.embed(texts)))
    for row in scores.numpy():
        order = [token for token in np.argsort(-row, kind="stable") if not is_masked[token]]
        ranked.append(list(dict.fromkeys(terms[order].tolist())))
    return ranked


class TestThreeTokensTwoDimensions:
    # Logits of (3, 1): 3, 1, 2: order 0, 2, 1. Of (0, 2): 0, 2, 1: order 1, 2, 0.
    embeddings = np.array([[3.0, 1.0], [0.0, 2.0]], dtype=np.float32)

    def test_clean(self):
        found = alignment_of_embeddings(self.embeddings, three_token_head(), [[0, 1], [2, 2]], ks=[1, 2, 3])
        # First text: own {0, 1}, decoded up to 2: {0, 2}: 1/2. Second: own {2}, decoded up to 1: {1}: 0.
        assert found.local_alignment_rate.value == 0.25
        assert found.global_alignment_rate.value == pytest.approx(1 / 3)
        assert {k: hit.value for k, hit in found.hits.items()} == {1: 0.5, 2: 1.0, 3: 1.0}
        assert {k: share.value for k, share in found.shares.items()} == {1: 0.5, 2: 0.75, 3: 1.0}
        assert found.precision.value == 0.25
        assert found.per_text.term_counts.tolist() == [2, 1]
        assert found.text_count == 2

    def test_as_the_published_code_counts(self):
        found = alignment_of_embeddings(
            self.embeddings, three_token_head(), [[0, 1], [2, 2]], ks=[1], definition="nie2025"
        )
        # The second text is cut at two tokens, its length with repetition: {1, 2} holds 2, over the one it has.
        assert found.local_alignment_rate.value == 0.75
        assert found.global_alignment_rate.value == pytest.approx(2 / 3)
        assert found.precision.value == 0.5

    def test_the_published_code_is_capped_at_k(self):
        found = alignment_of_embeddings(
            self.embeddings[:1], three_token_head(), [[0, 2, 1]], ks=[1], definition="nie2025", k=1
        )
        assert found.local_alignment_rate.value == pytest.approx(1 / 3)
        assert found.precision.value == 1.0
        clean = alignment_of_embeddings(self.embeddings[:1], three_token_head(), [[0, 2, 1]], ks=[1])
        assert clean.local_alignment_rate.value == 1.0

    def test_a_vocabulary_folds_and_masks(self):
        vocabulary = Vocabulary(["<s>", "A", "a"], kind="plain", special_ids=[0])
        found = alignment_of_embeddings(
            self.embeddings, three_token_head(), [[0, 2], [1]], ks=[1, 5], vocabulary=vocabulary
        )
        assert found.hits[1].value == found.local_alignment_rate.value == 1.0
        assert found.per_text.term_counts.tolist() == [1, 1]

    def test_first_component_removed_by_hand(self):
        # All embeddings are close to x; without x only y is left, so the order turns round.
        embeddings = torch.tensor([[10.0, 1.0], [10.0, -1.0]])
        moments = SecondMoments(2)
        moments.update(embeddings)
        direction = moments.first_component().direction
        assert direction.tolist() == [1.0, 0.0]
        texts, head = [[1], [0]], three_token_head()
        assert alignment_of_embeddings(embeddings, head, texts, ks=[1]).hits[1].value == 0.5
        assert alignment_of_embeddings(remove(embeddings, direction), head, texts, ks=[1]).hits[1].value == 1.0

    def test_more_decoded_terms_than_there_are_tokens(self):
        found = alignment_of_embeddings(self.embeddings, three_token_head(), [[0], [0]], ks=[1, 100])
        assert found.hits[100].value == found.shares[100].value == 1.0


class TestAgainstSets:
    @pytest.mark.parametrize("is_published", [False, True])
    def test_many_texts(self, is_published):
        generator = np.random.default_rng(5)
        weight = torch.from_numpy(generator.normal(size=(80, 6)).astype(np.float32))
        head = LMHead(torch.nn.Embedding.from_pretrained(weight))
        embeddings = generator.normal(size=(70, 6)).astype(np.float32)
        texts = [generator.integers(0, 80, generator.integers(1, 30)).tolist() for _ in range(70)]
        found = alignment_of_embeddings(
            embeddings, head, texts, definition="nie2025" if is_published else "clean", k=10, ks=[10]
        )
        ranked = np.argsort(-(embeddings @ weight.numpy().T), axis=1).tolist()
        hit, local, global_ = naive_alignment(ranked, texts, is_published=is_published)
        assert found.hits[10].value == pytest.approx(hit)
        assert found.local_alignment_rate.value == pytest.approx(local)
        assert found.global_alignment_rate.value == pytest.approx(global_)

    def test_an_encoder_clean_and_folded(self, encoder, sentences):
        found = measure_alignment(sentences, encoder, variants=RAW, ks=[10], has_baseline=False)
        ranked = raw_rankings(encoder, sentences)
        expected = naive_alignment(ranked, [ids.tolist() for ids in encoder.literal_terms(sentences)])
        row = found.rows["embedder, raw"]
        assert found.is_folded
        assert (row.hits[10].value, row.local_alignment_rate.value, row.global_alignment_rate.value) == pytest.approx(
            expected
        )

    def test_an_encoder_as_the_published_code_counts(self, bert_embedder, sentences):
        encoder = KeyTokenEncoder(
            bert_embedder, head=KeyTokenHead(LMHead.from_input_embeddings(bert_embedder[0].auto_model))
        )
        found = measure_alignment(sentences, encoder, variants=RAW, ks=[10], definition="nie2025")
        ids = bert_embedder.tokenizer(sentences, truncation=True, max_length=bert_embedder.max_seq_length)["input_ids"]
        logits = encoder.embed(sentences) @ encoder.head.lm_head.weight.detach().numpy().T
        expected = naive_alignment(np.argsort(-logits, axis=1).tolist(), ids, is_published=True)
        row = found.rows["embedder, raw"]
        assert ids[0][0] == bert_embedder.tokenizer.cls_token_id  # special tokens are among them
        assert not found.is_folded
        assert (row.hits[10].value, row.local_alignment_rate.value, row.global_alignment_rate.value) == pytest.approx(
            expected
        )

    def test_the_frequency_baseline(self, encoder, sentences):
        found = measure_alignment(sentences, encoder, variants=RAW, ks=[10])
        texts = [ids.tolist() for ids in encoder.literal_terms(sentences)]
        counts = np.bincount([term for ids in texts for term in set(ids)], minlength=encoder.vocabulary.vocab_size)
        order = np.argsort(-counts, kind="stable").tolist()
        row = found.rows[BASELINE]
        assert (row.hits[10].value, row.local_alignment_rate.value, row.global_alignment_rate.value) == pytest.approx(
            naive_alignment([order] * len(texts), texts)
        )

    def test_content_terms_only(self, encoder, sentences):
        found = measure_alignment(sentences, encoder, variants=RAW, ks=[10], max_document_share=0.1)
        texts = [set(ids.tolist()) for ids in encoder.literal_terms(sentences)]
        counts = np.bincount([term for ids in texts for term in ids], minlength=encoder.vocabulary.vocab_size)
        common = set(np.flatnonzero(counts > 5).tolist())
        ranked = raw_rankings(encoder, sentences)
        ranked = [[term for term in row if term not in common] for row in ranked]
        expected = naive_alignment(ranked, [sorted(ids - common) for ids in texts])
        row = found.rows["embedder, raw"]
        assert common
        assert (row.hits[10].value, row.local_alignment_rate.value, row.global_alignment_rate.value) == pytest.approx(
            expected
        )


class TestVariants:
    def test_a_first_component_of_the_texts_themselves(self, encoder, sentences):
        found = measure_alignment(sentences, encoder, variants={"corrected": VARIANTS["corrected"]}, ks=[10])
        embeddings = torch.from_numpy(encoder.embed(sentences))
        moments = SecondMoments(embeddings.shape[1])
        moments.update(embeddings)
        corrected = remove(embeddings, moments.first_component().direction)
        ids = encoder.literal_terms(sentences)
        expected = alignment_of_embeddings(corrected, encoder.head.lm_head, ids, vocabulary=encoder.vocabulary)
        assert found.calibration == {"embedder": "these texts"}
        assert found.rows["embedder, corrected"].local_alignment_rate == expected.local_alignment_rate
        assert encoder.calibration is None

    def test_the_encoder_s_calibration_is_used(self, llama_embedder, sentences):
        encoder = KeyTokenEncoder(llama_embedder, terms="tokens")
        encoder.calibrate(sentences[:25], show_progress_bar=False)
        found = measure_alignment(sentences[25:], encoder, variants={"corrected": VARIANTS["corrected"]}, ks=[10])
        corrected = remove(
            torch.from_numpy(encoder.embed(sentences[25:])), encoder.calibration.first_component.direction
        )
        ids = encoder.literal_terms(sentences[25:])
        expected = alignment_of_embeddings(corrected, encoder.head.lm_head, ids, vocabulary=encoder.vocabulary)
        assert found.calibration == {"embedder": "calibration"}
        assert found.rows["embedder, corrected"].local_alignment_rate == expected.local_alignment_rate

    def test_the_published_definition_corrects_and_does_not_standardize(self, encoder, sentences):
        settings = {"corrected": VARIANTS["corrected"]}
        found = measure_alignment(sentences, encoder, variants=settings, definition="nie2025", ks=[10])
        assert found.rows["embedder, corrected"].definition == "nie2025"
        with pytest.raises(ValueError, match="standardize=False for definition='nie2025'"):
            measure_alignment(sentences, encoder, definition="nie2025")

    def test_stored_embeddings(self, encoder, sentences):
        stored = {"embedder": encoder.embed(sentences)}
        given = measure_alignment(sentences, encoder, embeddings=stored)
        assert given.to_dict() == measure_alignment(sentences, encoder).to_dict()
        with pytest.raises(ValueError, match="those of every encoder, got none of 'embedder'"):
            measure_alignment(sentences, encoder, embeddings={})
        with pytest.raises(ValueError, match="one row a text, got 50 of 'embedder' for 2"):
            measure_alignment(sentences[:2], encoder, embeddings=stored)

    def test_a_sentence_transformer_and_its_encoder_agree(self, llama_embedder, encoder, sentences):
        a, b = (measure_alignment(sentences, model, variants=RAW) for model in (llama_embedder, encoder))
        assert a.to_dict() == b.to_dict()


class TestDefinedResults:
    def test_one_text(self, encoder, sentences):
        row = measure_alignment(sentences[:1], encoder, variants=RAW).rows["embedder, raw"]
        assert row.text_count == 1
        assert row.local_alignment_rate.low is None
        with pytest.raises(ValueError, match=r"more than one direction .* got 1 of one direction for 'embedder'"):
            measure_alignment(sentences[:1], encoder)

    def test_identical_texts(self, encoder, sentences):
        row = measure_alignment(sentences[:1] * 5, encoder, variants=RAW).rows["embedder, raw"]
        assert row.local_alignment_rate.low == row.local_alignment_rate.high == row.local_alignment_rate.value
        with pytest.raises(ValueError, match="more than one direction"):
            measure_alignment(sentences[:1] * 5, encoder)

    def test_texts_without_terms_are_left_out(self, encoder, sentences):
        texts = ["", *sentences[:3], "  ", sentences[3]]
        with_blanks, without = (
            measure_alignment(given, encoder, variants=RAW).rows["embedder, raw"] for given in (texts, sentences[:4])
        )
        assert (with_blanks.text_count, with_blanks.without_terms) == (4, 2)
        assert with_blanks.per_text.positions.tolist() == [1, 2, 3, 5]
        np.testing.assert_array_equal(with_blanks.per_text.is_hit, without.per_text.is_hit)
        assert with_blanks.global_alignment_rate == without.global_alignment_rate

    def test_texts_shorter_than_k(self, encoder):
        row = measure_alignment(["gene", "heart disease"], encoder, variants=RAW, ks=[100]).rows["embedder, raw"]
        assert (row.per_text.term_counts < 10).all()
        assert (row.per_text.shares <= 1).all()

    def test_a_batch_of_one_is_a_batch_of_many(self, encoder, sentences, monkeypatch):
        many = measure_alignment(sentences, encoder).to_dict(has_texts=True)
        monkeypatch.setattr("st_keytokens.analysis.alignment._ROWS", 1)
        assert measure_alignment(sentences, encoder).to_dict(has_texts=True) == many

    def test_nothing_but_blanks(self, encoder):
        with pytest.raises(ValueError, match="with a term that counts, got 2 without any"):
            measure_alignment(["", " "], encoder, variants=RAW)

    def test_no_texts(self, encoder):
        with pytest.raises(ValueError, match="with a term that counts, got 0"):
            measure_alignment([], encoder, variants=RAW)


class TestModelsThatDoNotFit:
    def test_different_vocabularies(self, llama_embedder, bert_embedder, sentences):
        with pytest.raises(ValueError, match=r"one vocabulary, got 640 .* for 'embedder' and \d+ .* for 'backbone'"):
            bert = KeyTokenEncoder(
                bert_embedder, head=KeyTokenHead(LMHead.from_input_embeddings(bert_embedder[0].auto_model))
            )
            measure_alignment(sentences, {"embedder": llama_embedder, "backbone": bert})

    def test_an_lm_head_of_another_dimension(self, llama_embedder):
        wide = LMHead(torch.nn.Embedding(640, 48))
        with pytest.raises(ValueError, match=r"dimension 32.* got one for dimension 48"):
            KeyTokenEncoder(copy.deepcopy(llama_embedder), head=KeyTokenHead(wide))

    def test_stored_embeddings_of_another_dimension(self):
        with pytest.raises(ValueError, match=r"shape \(batch_size, 2\), got \(1, 3\)"):
            alignment_of_embeddings(np.zeros((1, 3), dtype=np.float32), three_token_head(), [[0]])

    def test_a_vocabulary_of_another_size(self):
        with pytest.raises(ValueError, match="decoder's 3 tokens, got 2"):
            alignment_of_embeddings(
                np.ones((1, 2), dtype=np.float32),
                three_token_head(),
                [[0]],
                vocabulary=Vocabulary(["a", "b"], kind="plain"),
            )

    def test_no_model_at_all(self, sentences):
        with pytest.raises(TypeError, match="KeyTokenEncoders or SentenceTransformers, got str"):
            measure_alignment(sentences, "a name")
        with pytest.raises(ValueError, match="at least one, got none"):
            measure_alignment(sentences, {})


class TestValidation:
    embeddings = np.ones((1, 2), dtype=np.float32)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"token_ids": [[0], [1]]}, ValueError, "one for each embedding, got 2 for 1"),
            ({"token_ids": [[3]]}, ValueError, "token_ids must be in 0..2"),
            ({"token_ids": [[0.5]]}, TypeError, "token_ids must be"),
            ({"token_ids": [[]]}, ValueError, "with a term that counts"),
            ({"definition": "other"}, ValueError, "definition must be one of 'clean', 'nie2025'"),
            ({"ks": []}, ValueError, "ks must hold at least one"),
            ({"ks": [0]}, ValueError, "ks must be >= 1"),
            ({"k": 0}, ValueError, "k must be >= 1"),
            ({"confidence": 1.0}, ValueError, "confidence must be between 0 and 1"),
            ({"samples": 0}, ValueError, "samples must be >= 1"),
            ({"embeddings": np.array([[1, 2]])}, TypeError, "floating-point"),
            ({"embeddings": np.array([[np.nan, 1.0]])}, ValueError, "finite"),
        ],
    )
    def test_embeddings(self, changes, error, message):
        arguments = {"embeddings": self.embeddings, "decoder": three_token_head(), "token_ids": [[0]], **changes}
        with pytest.raises(error, match=message):
            alignment_of_embeddings(**arguments)

    def test_published_tokens_are_raw(self, encoder, sentences):
        with pytest.raises(ValueError, match="vocabulary must be None"):
            vocabulary = Vocabulary(["a", "b", "c"], kind="plain")
            alignment_of_embeddings(
                self.embeddings, three_token_head(), [[0]], vocabulary=vocabulary, definition="nie2025"
            )
        with pytest.raises(ValueError, match="fold must be None or False"):
            measure_alignment(sentences, encoder, definition="nie2025", fold=True)

    def test_texts_and_settings(self, encoder, sentences):
        with pytest.raises(TypeError, match="texts must be"):
            measure_alignment([1], encoder)
        with pytest.raises(ValueError, match="max_document_share must be between 0 and 1"):
            measure_alignment(sentences, encoder, max_document_share=1.5)
        with pytest.raises(ValueError, match="variants must name at least one"):
            measure_alignment(sentences, encoder, variants={})

    def test_embeddings_are_left_as_they_are(self):
        embeddings = np.array([[3.0, 1.0]], dtype=np.float32)
        alignment_of_embeddings(embeddings, three_token_head(), [[0]])
        assert embeddings.tolist() == [[3.0, 1.0]]


class TestDocumentFrequencies:
    def test_a_text_counts_a_term_once(self):
        found = document_frequencies([np.array([2, 2, 0]), np.array([], dtype=int), np.array([2])], 4)
        assert found.tolist() == [1, 0, 2, 0]

    def test_no_texts(self):
        assert document_frequencies([], 2).tolist() == [0, 0]


class TestFrequencyOrder:
    def test_most_frequent_first_and_terms_that_do_not_occur_are_left_out(self):
        assert frequency_order(np.array([1, 0, 3, 1])).tolist() == [2, 0, 3]


class TestResult:
    def test_json_and_table(self, encoder, sentences):
        found = measure_alignment(sentences, {"embedder": encoder, "backbone": encoder})
        content = json.loads(json.dumps(found.to_dict(has_texts=True)))
        assert list(content["rows"]) == [
            *(f"{name}, {variant}" for name in ("embedder", "backbone") for variant in VARIANTS),
            BASELINE,
        ]
        assert len(content["rows"][BASELINE]["per_text"]["term_counts"]) == len(sentences)
        lines = found.table().splitlines()
        assert lines[0] == "|  | Hit@1 | Hit@10 | share@1 | share@10 | local rate | global rate |"
        assert len(lines) == 2 + 7
        rate = content["rows"]["embedder, raw"]["local_alignment_rate"]
        assert f"{rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]" in lines[2]
        assert "precision" not in found.table()

    def test_precision_has_a_column_where_it_differs(self):
        found = alignment_of_embeddings(
            np.array([[3.0, 1.0]], dtype=np.float32), three_token_head(), [[0, 0]], ks=[1], definition="nie2025"
        )
        assert found.table().splitlines()[0].endswith("| precision |")


class TestTinyEmbedder:
    def test_content_terms_surface_far_above_the_baseline(self):
        with (TINY.parent / "data" / "arxiv-abstracts" / "corpus.jsonl").open(encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line, _ in zip(lines, range(30), strict=False)]
        encoders = {name: KeyTokenEncoder(TINY / name) for name in ("embedder", "backbone")}
        corrected = {"corrected": VARIANTS["corrected"]}
        found = measure_alignment(texts, encoders, variants=corrected, max_document_share=0.1, ks=[10])
        assert found.rows["embedder, corrected"].hits[10].value >= 0.9
        baseline = found.rows[BASELINE].local_alignment_rate
        for name in ("embedder", "backbone"):
            assert found.rows[f"{name}, corrected"].local_alignment_rate.low > baseline.high
