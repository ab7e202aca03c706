"""An encoder whose terms are words: encoded, calibrated, saved, indexed, explained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import Stemmer

from st_keytokens import Calibration, HybridIndex, KeyTokenEncoder
from st_keytokens.terms import words
from st_keytokens.terms.words import Words

CPU = {"device": "cpu"}


@pytest.fixture
def model(llama_embedder):
    return copy.deepcopy(llama_embedder)


@pytest.fixture
def encoder(model, sentences):
    encoder = KeyTokenEncoder(model)
    encoder.calibrate(sentences, show_progress_bar=False)
    return encoder


def readable(encoder, embeddings):
    return [{term for term, _ in row} for row in embeddings.decode(encoder.vocabulary)]


class TestEncoding:
    def test_literal_terms_are_whole_words(self, encoder):
        (terms,) = readable(encoder, encoder.encode("Superconductors carry electric currents").sparse)
        assert {"superconductors", "carry", "electric", "current"} <= terms

    def test_dense_vectors_are_those_of_tokens(self, encoder, model, sentences):
        np.testing.assert_array_equal(
            encoder.encode(sentences[:5]).dense, KeyTokenEncoder(model, terms="tokens").encode(sentences[:5]).dense
        )

    def test_forms_of_a_word_meet(self, encoder):
        documents = encoder.encode_document(["Genes encode proteins.", "The city built a bridge."]).sparse
        queries = encoder.encode_query(["protein encoding gene"], query="lookup").sparse
        scores = queries.scores(documents)[0]
        assert scores[0] > 3 and scores[0] > 2 * scores[1]

    def test_uncalibrated_terms_are_words_and_not_fragments(self, model, sentences):
        encoder = KeyTokenEncoder(model, terms="words")
        tokens = [token for token, _ in encoder.key_tokens(sentences[0], top_k=30)[0]]
        assert tokens and all(token == token.lower() and token.isalnum() for token in tokens)
        vocabulary = encoder.vocabulary
        kept = [vocabulary.tokens.strings[row] for row in np.flatnonzero(~vocabulary.is_masked)]
        assert kept and all(Words().spans(word)[0].end == len(word) for word in kept)

    def test_pool_of_processes_gives_the_same(self, encoder, sentences):
        pool = encoder.start_multi_process_pool(["cpu"])
        try:
            found = encoder.encode(sentences[:6], pool=pool)
        finally:
            encoder.stop_multi_process_pool(pool)
        expected = encoder.encode(sentences[:6])
        np.testing.assert_array_equal(found.sparse.indices, expected.sparse.indices)
        np.testing.assert_allclose(found.sparse.values, expected.sparse.values, rtol=1e-4)

    def test_scripts_without_spaces(self, encoder):
        sparse = encoder.encode_document(["東京都の天気", "大阪の天気"]).sparse
        scores = encoder.encode_query("東京", query="lookup").sparse.scores(sparse)[0]
        assert scores[0] > scores[1]


class TestSaving:
    def test_comes_back_whole(self, encoder, tmp_path, sentences):
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder(tmp_path / "saved", model_arguments=CPU)
        assert loaded.fingerprint == encoder.fingerprint
        assert loaded.vocabulary.words.language == "english"
        ours, theirs = (each.encode(sentences[:3]).sparse for each in (encoder, loaded))
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        assert readable(encoder, ours) == readable(loaded, theirs)

    def test_words_and_tokens_and_languages_are_different_encoders(self, model):
        encoders = [
            KeyTokenEncoder(model),
            KeyTokenEncoder(model, terms="tokens"),
            KeyTokenEncoder(model, language="none"),
            KeyTokenEncoder(model, language="german"),
            KeyTokenEncoder(model, terms=Words("english", stop_words=["the"])),
        ]
        assert len({encoder.fingerprint for encoder in encoders}) == 5
        assert KeyTokenEncoder(model, terms="words", language="english").fingerprint == encoders[0].fingerprint

    def test_calibration_of_tokens_is_refused(self, encoder, model, sentences):
        other = KeyTokenEncoder(model, terms="tokens")
        other.calibrate(sentences, show_progress_bar=False)
        with pytest.raises(ValueError, match="calibration was fitted for the vocabulary"):
            encoder.calibration = other.calibration
        with pytest.raises(ValueError, match="calibration was fitted for the vocabulary"):
            other.calibration = encoder.calibration

    def test_halves_merge_as_if_fitted_on_both(self, encoder, sentences):
        halves = [Calibration.fit(encoder, part, show_progress_bar=False) for part in (sentences[:20], sentences[20:])]
        halves[0].merge(halves[1])
        whole = encoder.calibration
        assert halves[0].names.best() == whole.names.best()
        np.testing.assert_array_equal(halves[0].terms.frequencies.ids, whole.terms.frequencies.ids)
        np.testing.assert_array_equal(halves[0].terms.frequencies.values, whole.terms.frequencies.values)
        ours, theirs = halves[0].ridge_decoder(), whole.ridge_decoder()
        np.testing.assert_allclose(ours.weight, theirs.weight, rtol=1e-3, atol=1e-4)


class TestIndex:
    @pytest.fixture
    def index(self, encoder, tmp_path, sentences):
        with HybridIndex(tmp_path / "index", encoder=encoder) as index:
            index.add([str(i) for i in range(len(sentences))], sentences)
            index.add(["new"], ["Professor Grzegorczyk met the ambassador in Ouagadougou."])
            yield index

    def test_a_name_that_no_calibration_has_seen_is_found(self, index):
        (hit, *_) = index.search("Who is Grzegorczyk?", top_k=3, mode="sparse")
        assert hit.id == "new"
        terms = index.explain("Who is Grzegorczyk?", hit)
        assert terms[0].token == "grzegorczyk"

    def test_explanations_show_words_and_not_stems(self, index):
        (hit, *_) = index.search("proteins", top_k=1, mode="sparse")
        assert index.explain("proteins", hit)[0].token == "proteins"

    def test_a_second_process_explains_as_the_first(self, index, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        loaded = KeyTokenEncoder(tmp_path / "saved", model_arguments=CPU)
        with HybridIndex(tmp_path / "index", encoder=loaded, read_only=True) as again:
            (hit, *_) = again.search("genomes", top_k=1, mode="sparse")
            assert again.explain("genomes", hit)[0].token in ("genome", "genomes")


TEXTS = {
    "university": "The university has an organ.",
    "generous": "Generous gifts of a king.",
    "sand": "Glass is made from sand.",
}


class TestAnotherStemmer:
    """The stemmer is Snowball's older one for English, Porter's: "university" is as with PyStemmer 2.2."""

    @pytest.fixture
    def folder(self, model, sentences, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            stemmer = Stemmer.Stemmer
            patch.setattr(Stemmer, "Stemmer", lambda language, size: stemmer("porter", size))
            patch.setattr(words, "_stemmer_version", lambda: "2.0")
            encoder = KeyTokenEncoder(model)
            encoder.calibrate([*TEXTS.values(), *sentences], show_progress_bar=False)
            with HybridIndex(tmp_path / "index", encoder=encoder) as index:
                index.add(list(TEXTS), list(TEXTS.values()))
            encoder.save_pretrained(tmp_path / "encoder")
        assert Words("english").term("generous") != encoder.vocabulary.words.term("generous")
        return tmp_path

    @pytest.mark.parametrize("word", ["university", "Generous", "sand"])
    def test_what_was_indexed_is_found(self, folder, word):
        encoder = KeyTokenEncoder(folder / "encoder", query="lookup", model_arguments=CPU)
        with HybridIndex(folder / "index", encoder=encoder) as index:
            assert [hit.id for hit in index.search(word, mode="sparse", top_k=1)] == [word.lower()]
            index.add(["new"], [f"Another {word}."])
            assert {hit.id for hit in index.search(word, mode="sparse", top_k=2)} == {word.lower(), "new"}

    def test_stays_so_when_saved_again(self, folder):
        encoder = KeyTokenEncoder(folder / "encoder", model_arguments=CPU)
        encoder.save_pretrained(folder / "again")
        again = KeyTokenEncoder(folder / "again", model_arguments=CPU)
        assert again.calibration.stemmer == "2.0" and again.fingerprint == encoder.fingerprint
        assert again.vocabulary.words.term("generous") == encoder.vocabulary.words.term("generous")

    def test_goes_with_its_calibration(self, folder, encoder):
        today = encoder.vocabulary.words.term("generous")
        older = Calibration.load(folder / "encoder" / "key_tokens")
        encoder.calibration, todays = older, encoder.calibration
        assert encoder.vocabulary.words.term("generous") in older.names.counts
        encoder.calibration = todays
        assert encoder.vocabulary.words.term("generous") == today not in older.names.counts

    def test_does_not_merge_with_todays(self, folder, encoder):
        older = KeyTokenEncoder(folder / "encoder", model_arguments=CPU).calibration
        with pytest.raises(ValueError, match=r"stemmer '2\.0'.*version of PyStemmer"):
            older.merge(encoder.calibration)
