from __future__ import annotations

import copy
import sys
import threading

import numpy as np
import pytest
import torch
from encoder_checks import assert_same, count_passes, resident
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.modules import Normalize
from small_models import build_sentence_transformer

from st_keytokens.decoding.lm_head import LMHead
from st_keytokens.encoder.encoder import KeyTokenEncoder
from st_keytokens.encoder.forward_pass import as_sparse
from st_keytokens.index import HybridIndex
from st_keytokens.key_token_head import KeyTokenHead
from st_keytokens.terms.literal_terms import check_texts
from st_keytokens.terms.weighting import METHODS, Weighting

PROMPTS = {"query": "find wolves: ", "document": "about stars: "}


@pytest.fixture
def embedder(llama_embedder):
    return copy.deepcopy(llama_embedder)


@pytest.fixture
def encoder(embedder, sentences):
    encoder = KeyTokenEncoder(embedder, max_active_dims=20, query_max_active_dims=6)
    encoder.calibrate(sentences, show_progress_bar=False)
    return encoder


def assert_same_terms(ours: dict[int, float], theirs: dict[int, float]):
    """Up to the terms at the edge, which rounding moves in or out."""
    largest = max([*ours.values(), *theirs.values()], default=0.0)
    for term in ours.keys() & theirs.keys():
        assert ours[term] == pytest.approx(theirs[term], rel=1e-2, abs=1e-3 * largest)
    for one, other in ((ours, theirs), (theirs, ours)):  # words of the same texts score alike: any may be cut
        for term in one.keys() - other.keys():
            assert one[term] <= min(other.values()) + 1e-3 * largest


class TestOnePass:
    def test_one_forward_pass_gives_both(self, encoder, sentences):
        batches = count_passes(encoder.model)
        encoded = encoder.encode(sentences, batch_size=50)
        assert sum(batches) == 50
        assert encoded.dense.shape == (50, 32)
        assert encoded.sparse.shape == (50, 2**29)

    def test_dense_is_what_the_model_gives(self, encoder, sentences):
        np.testing.assert_allclose(
            encoder.encode(sentences).dense, encoder.model.encode(sentences), rtol=1e-5, atol=1e-6
        )

    def test_dense_of_a_normalising_and_truncating_model(self, embedder, sentences):
        embedder.append(Normalize())
        embedder.truncate_dim = 16
        encoded = KeyTokenEncoder(embedder).encode(sentences)
        np.testing.assert_allclose(encoded.dense, embedder.encode(sentences), rtol=1e-5, atol=1e-6)
        assert encoded.dense.shape == (50, 16)

    def test_sparse_holds_decoded_and_literal_terms(self, encoder, sentences):
        encoded = encoder.encode(sentences)
        ids, _ = encoder.head.decode(torch.from_numpy(encoded.dense))
        for i, literal in enumerate(encoder.literal_terms(sentences)):
            assert set(encoded.sparse.row(i)[0]) == set(literal) | set(ids[i].numpy()) - ({0} - set(literal))

    def test_weights_are_the_weightings(self, encoder, sentences):
        encoded = encoder.encode(sentences)
        ids, weights = encoder.head.decode(torch.from_numpy(encoded.dense))
        expected = encoder.weighting.document(
            encoder.literal_terms(sentences),
            as_sparse((ids, weights), encoder.vocabulary),
            2**29,
            encoder.calibration.corpus,
        )
        np.testing.assert_allclose(encoded.sparse.values, expected.values, rtol=1e-4)

    def test_model_is_left_as_it_was(self, embedder, sentences):
        before, state = list(embedder), set(embedder.state_dict())
        dense = embedder.encode(sentences)
        KeyTokenEncoder(embedder).encode(sentences)
        assert list(embedder) == before
        assert set(embedder.state_dict()) == state
        np.testing.assert_array_equal(embedder.encode(sentences), dense)

    def test_batches_and_order_do_not_matter(self, encoder, sentences):
        encoder.cache.size = 0
        whole = encoder.encode(sentences)
        assert_same(encoder.encode(sentences, batch_size=7), whole)
        assert_same(encoder.encode(sentences[::-1])[np.arange(50)[::-1]], whole)

    def test_odd_texts(self, encoder):
        odd = ["", " \n\t", "nul\0byte", "\ud800 lone", "😀 emoji", "שלום עולם", "中文文本", "wolf " * 20_000]
        encoded = encoder.encode(odd)
        assert np.isfinite(encoded.dense).all()
        assert len(encoded.sparse) == len(odd)
        assert encoded.dense[0].tolist() == [0] * 32
        assert encoded.sparse.active_dims[0] == 0
        encoder.cache.clear()
        for i, text in enumerate(odd):
            np.testing.assert_allclose(encoder.encode(text).dense[0], encoded.dense[i], rtol=1e-4, atol=1e-5)
        assert len(encoder.encode([])) == 0


class TestRoles:
    @pytest.fixture
    def prompted(self, llama_folder):
        return KeyTokenEncoder(build_sentence_transformer(llama_folder, prompts=PROMPTS))

    def test_prompts_reach_the_model_by_role(self, prompted, sentences):
        plain = prompted.model
        np.testing.assert_allclose(
            prompted.encode_query(sentences).dense, plain.encode_query(sentences), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            prompted.encode_document(sentences).dense, plain.encode_document(sentences), rtol=1e-5, atol=1e-6
        )
        assert not np.allclose(prompted.encode_query(sentences).dense, prompted.encode_document(sentences).dense)
        np.testing.assert_allclose(
            prompted.encode(sentences, prompt="x ").dense, plain.encode(sentences, prompt="x "), rtol=1e-5, atol=1e-6
        )

    def test_prompt_tokens_are_never_literal_terms(self, prompted):
        prompted = KeyTokenEncoder(prompted.model, method="literal")
        bare = KeyTokenEncoder(prompted.model, method="literal").encode("rivers", prompt="")
        assert (
            prompted.encode_query("rivers").sparse
            == KeyTokenEncoder(prompted.model, method="literal").encode("rivers", role="query", prompt="").sparse
        )
        assert prompted.encode_document("rivers").sparse == bare.sparse

    def test_template_tokens_are_never_literal_terms(self, bert_embedder, bert_folder):
        encoder = KeyTokenEncoder(copy.deepcopy(bert_embedder), backbone=bert_folder, method="literal")
        (terms,) = encoder.literal_terms(["genes encode proteins"])
        assert not set(terms) & set(encoder.model.tokenizer.all_special_ids)

    def test_queries_have_fewer_terms(self, encoder):
        own = len(set(encoder.literal_terms(["x"])[0]))
        queries = encoder.encode_query(["x"])
        documents = encoder.encode_document(["x"])
        assert own < queries.sparse.active_dims[0] <= own + 6
        assert documents.sparse.active_dims[0] > own + 6

    def test_unknown_role_and_prompt(self, encoder):
        with pytest.raises(ValueError, match=r"role must be one of 'query', 'document', got 'passage'"):
            encoder.encode("a", role="passage")
        with pytest.raises(ValueError, match=r"prompt_name must be one of .* got 'nosuch'"):
            encoder.encode("a", prompt_name="nosuch")


class TestSilentTexts:
    """Texts without a term of their own: a prompt alone says nothing about them."""

    silent = ("", " ", "\n\t ", "\0", "\u200b")

    @pytest.fixture
    def prompted(self, llama_folder, sentences):
        encoder = KeyTokenEncoder(build_sentence_transformer(llama_folder, prompts=PROMPTS))
        encoder.calibrate(sentences, show_progress_bar=False)
        return encoder

    @pytest.mark.parametrize("role", ["document", "query"])
    @pytest.mark.parametrize("method", list(METHODS))
    def test_have_no_terms_and_the_models_own_vector(self, prompted, role, method):
        prompted.weighting = METHODS[method].weighting
        encoded = prompted.encode([*self.silent, "wolves"], role=role)
        encode = prompted.model.encode_query if role == "query" else prompted.model.encode_document
        np.testing.assert_allclose(encoded.dense, encode([*self.silent, "wolves"]), rtol=1e-4, atol=1e-5)
        assert encoded.dense.any(axis=1).all()
        assert (encoded.sparse.active_dims > 0).tolist() == [False] * 5 + [True]
        stored = prompted.sparsify(encoded.dense, [*self.silent, "wolves"], role=role)
        assert np.array_equal(stored.indptr, encoded.sparse.indptr)
        assert np.array_equal(stored.indices, encoded.sparse.indices)

    def test_vectors_without_texts_are_decoded(self, prompted):
        dense = prompted.encode(self.silent).dense
        assert (prompted.sparsify(dense).active_dims > 0).all()

    def test_have_no_key_tokens(self, prompted):
        assert [len(tokens) for tokens in prompted.key_tokens(["wolves", *self.silent], top_k=3)] == [3, 0, 0, 0, 0, 0]

    def test_find_nothing(self, prompted, sentences):
        with HybridIndex(encoder=prompted) as index:
            index.add(texts=[*sentences, " "])
            assert index.search(" ", mode="sparse") == []
            assert len(index.search("wolves", mode="sparse", top_k=99)) <= len(sentences)


class TestLookup:
    def test_no_forward_pass(self, encoder):
        batches = count_passes(encoder.model)
        found = encoder.encode_query(["wolves hunt deer"], query="lookup")
        assert batches == []
        assert found.dense is None
        expected = encoder.weighting.query(
            encoder.literal_terms(["wolves hunt deer"]), None, 2**29, encoder.calibration.corpus
        )
        assert found.sparse == expected
        assert set(found.sparse.row(0)[0]) == set(encoder.literal_terms(["wolves hunt deer"])[0])

    def test_as_a_setting(self, embedder):
        encoder = KeyTokenEncoder(embedder, query="lookup")
        batches = count_passes(embedder)
        assert encoder.encode_query("wolves").dense is None
        assert batches == []
        assert encoder.encode_query("wolves", query="encode").dense.shape == (1, 32)

    @pytest.mark.parametrize(("trust", "share"), [(None, 0.0), (0.4, 0.1), (2.0, 0.5)])
    def test_hybrid_queries_have_less_of_their_decoded_terms(self, encoder, trust, share):
        texts = ["wolves hunt deer", " ", "a deer"]
        encoder.calibration.decoded_trust = trust
        found, whole = encoder.encode_query(texts, is_hybrid=True), encoder.encode_query(texts)
        np.testing.assert_array_equal(found.dense, whole.dense)
        literal = encoder.encode_query(texts, query="lookup").sparse.to_dicts()
        idf = encoder.calibration.idf_values
        for own, both, made in zip(literal, whole.sparse.to_dicts(), found.sparse.to_dicts(), strict=True):
            worth = {term: float(idf[np.array([term])][0]) for term in own}
            recovered = sum(worth[term] for term in own if both[term] > own[term]) / (sum(worth.values()) or 1)
            part = share * max(recovered, 0.1)
            expected = {term: own.get(term, 0.0) + part * (both[term] - own.get(term, 0.0)) for term in both}
            assert made == pytest.approx({term: value for term, value in expected.items() if value > 0}, rel=1e-4)
        assert found.sparse.row(1)[0].size == 0
        decoded = KeyTokenEncoder(encoder.model, method="decoded")
        assert decoded.encode_query(texts, is_hybrid=True).sparse == decoded.encode_query(texts).sparse
        assert encoder.encode_query(texts, query="lookup", is_hybrid=True).dense is None

    def test_unknown_query(self, embedder):
        with pytest.raises(ValueError, match=r"query must be one of 'encode', 'lookup', got 'bm25'"):
            KeyTokenEncoder(embedder, query="bm25")


class TestCache:
    def test_second_call_costs_nothing(self, encoder, sentences):
        batches = count_passes(encoder.model)
        first = encoder.encode_query(sentences[:5])
        second = encoder.encode_query(sentences[:5])
        assert sum(batches) == 5
        assert_same(second, first)

    def test_only_what_is_missing_is_encoded_and_duplicates_once(self, encoder, sentences):
        batches = count_passes(encoder.model)
        encoder.encode(sentences[:3], batch_size=1)
        encoded = encoder.encode([*sentences[1:5], sentences[4]], batch_size=1)
        assert sum(batches) == 5
        encoder.cache.clear()
        assert_same(encoded, encoder.encode([*sentences[1:5], sentences[4]], batch_size=1))

    def test_roles_are_kept_apart_and_a_new_calibration_forgets(self, encoder, sentences):
        batches = count_passes(encoder.model)
        encoder.encode_query(sentences[:2])
        encoder.encode_document(sentences[:2])
        assert sum(batches) == 4
        encoder.calibration = None
        encoder.encode_document(sentences[:2])
        assert sum(batches) == 6

    def test_threads_agree(self, encoder, sentences):
        encoder.cache.size = 8
        expected = encoder.encode(sentences)
        results: list = [None] * 8

        def work(i: int) -> None:
            results[i] = encoder.encode(sentences[i : i + 6])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, result in enumerate(results):
            np.testing.assert_allclose(result.dense, expected.dense[i : i + 6], rtol=1e-4, atol=1e-6)
            for ours, theirs in zip(result.sparse.to_dicts(), expected.sparse.to_dicts()[i : i + 6], strict=True):
                assert_same_terms(ours, theirs)


class TestSparsify:
    def test_equals_encoding(self, encoder, sentences, tmp_path):
        encoded = encoder.encode(sentences)
        stored = tmp_path / "dense.npy"
        np.save(stored, encoded.dense)
        for embeddings in (encoded.dense, torch.from_numpy(encoded.dense), np.load(stored, mmap_mode="r")):
            sparse = encoder.sparsify(embeddings, sentences, batch_size=7)
            assert np.array_equal(sparse.indices, encoded.sparse.indices)
            np.testing.assert_allclose(sparse.values, encoded.sparse.values, rtol=1e-4)

    def test_normalised_vectors_give_the_same(self, encoder, sentences):
        encoded = encoder.encode(sentences)
        unit = encoded.dense / np.linalg.norm(encoded.dense, axis=1, keepdims=True)
        sparse = encoder.sparsify(unit, sentences)
        assert np.array_equal(sparse.indices, encoded.sparse.indices)

    def test_without_texts_only_decoded_terms(self, encoder, sentences):
        dense = encoder.encode(sentences).dense
        ids, weights = encoder.head.decode(torch.from_numpy(dense))
        assert np.array_equal(encoder.sparsify(dense).indices, as_sparse((ids, weights), encoder.vocabulary).indices)

    def test_bad_input(self, encoder):
        with pytest.raises(ValueError, match=r"texts must be one for each embedding, got 1 for 2"):
            encoder.sparsify(np.zeros((2, 32), np.float32), ["a"])
        with pytest.raises(ValueError, match=r"shape \(batch_size, 32\), got \(2, 16\)"):
            encoder.sparsify(np.zeros((2, 16), np.float32))
        bad = np.zeros((300, 32), np.float32)
        bad[299, 0] = np.nan
        with pytest.raises(ValueError, match=r"got NaN or infinity in row 299"):
            encoder.sparsify(bad, batch_size=256)
        assert encoder.sparsify(np.zeros((0, 32), np.float32)).shape == (0, 2**29)

    @pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process from /proc")
    def test_memory_is_bounded_by_the_batch(self, embedder, tmp_path):
        size, width = 8_000, 30_000
        torch.manual_seed(0)
        encoder = KeyTokenEncoder(
            embedder, head=KeyTokenHead(LMHead(torch.nn.Embedding(width, 32)), max_active_dims=8), terms="tokens"
        )
        np.save(tmp_path / "dense.npy", np.random.default_rng(0).normal(size=(size, 32)).astype(np.float32))
        stored = np.load(tmp_path / "dense.npy", mmap_mode="r")
        encoder.sparsify(stored[:1000], batch_size=64)
        before, peak, is_done = resident(), [0], threading.Event()

        def watch() -> None:
            while not is_done.wait(0.002):
                peak.append(resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            sparse = encoder.sparsify(stored, batch_size=64)
        finally:
            is_done.set()
            watcher.join()
        assert sparse.shape == (size, width)
        assert max(peak) - before < 100e6  # all scores at once: 960 MB


class TestKeyTokens:
    def test_strongest_first_and_readable(self, encoder, sentences):
        (tokens,) = encoder.key_tokens(sentences[0], top_k=5)
        weights = [weight for _, weight in tokens]
        assert len(tokens) == 5
        assert weights == sorted(weights, reverse=True)
        ids, decoded = encoder.head.decode(torch.from_numpy(encoder.encode(sentences[0]).dense), max_active_dims=5)
        assert {t for t, _ in tokens} == {encoder.vocabulary.strings[i] for i in ids[0]}
        assert weights[0] == pytest.approx(float(decoded.max()), rel=1e-4)

    def test_the_decoder_of_few_documents_is_shrunk_towards_the_lm_head(self, encoder, sentences):
        vectors = encoder.head.prepare_embeddings(torch.from_numpy(encoder.embed(sentences[:1])))
        terms = encoder.vocabulary.terms
        shrunk = encoder.calibration.ridge_decoder(
            lm_head=encoder.head.lm_head, lm_head_terms=terms, lm_head_shrinkage=3.0
        )
        expected = shrunk.with_normalized_terms().logits(vectors)[0].detach()
        (tokens,) = encoder.key_tokens(sentences[0], top_k=5)
        best = expected.topk(5)
        assert [weight for _, weight in tokens] == pytest.approx(best.values.tolist(), rel=1e-4)
        by_name = {
            encoder.vocabulary.strings[term]: float(x) for term, x in zip(shrunk.term_ids, expected, strict=True)
        }
        assert [by_name[token] for token, _ in tokens] == pytest.approx(best.values.tolist(), rel=1e-4)

    def test_settings_for_one_call(self, encoder, sentences):
        raw = encoder.key_tokens(sentences[0], correction="none", standardize=False)
        assert raw != encoder.key_tokens(sentences[0])
        assert encoder.head.active_correction == "remove"

    @pytest.mark.parametrize(
        "changes",
        [
            {"correction": "shift", "shift": -3.0},
            {"correction": "center", "standardize": True},
            {"activation": "log1p"},
            {"normalize": False},
        ],
    )
    def test_are_those_of_a_head_set_so(self, encoder, sentences, changes):
        found = encoder.key_tokens(sentences[:3], 5, **changes)
        for name, value in changes.items():
            setattr(encoder.head, name, value)
        assert found == encoder.key_tokens(sentences[:3], 5)

    def test_bad_settings(self, encoder):
        with pytest.raises(TypeError, match="fold"):
            encoder.key_tokens("wolves", fold=False)
        with pytest.raises(ValueError, match=r"correction must be one of .* got 'all'"):
            encoder.key_tokens("wolves", correction="all")


class TestLongTexts:
    """A megabyte: literal terms are of the whole text, the vector of what the model reads of it."""

    texts = ("wolf " * 200_000, "狼" * 100_000, "a" * 100_000, "1 " * 50_000, "\n" * 100_000 + "wolf")

    def test_encoder(self, encoder):
        encoded = encoder.encode(self.texts)
        np.testing.assert_allclose(encoded.dense, encoder.model.encode(list(self.texts)), rtol=1e-3, atol=1e-5)
        wolf, long, *_, last = encoder.literal_terms(["wolf", *self.texts])
        assert np.array_equal(long, np.tile(wolf, 200_000))
        assert np.array_equal(last, wolf)
        assert set(wolf) <= set(encoded.sparse.row(0)[0])
        assert set(encoder.encode_query(self.texts[0], query="lookup").sparse.row(0)[0]) == set(wolf)

    def test_index(self, encoder):
        with HybridIndex(encoder=encoder) as index:
            index.add(["a", "b"], ["stars", self.texts[0]])
            (hit,) = index.search("wolf", mode="sparse", top_k=1)
            assert (hit.id, hit.text) == ("b", self.texts[0])


class TestMethods:
    def test_the_papers_method(self, embedder, sentences):
        encoder = KeyTokenEncoder(embedder, method="nie2025", max_active_dims=100)
        document = encoder.encode_document(sentences)
        ids, weights = encoder.head.decode(torch.from_numpy(document.dense))
        assert document.sparse == as_sparse((ids, weights), encoder.vocabulary)
        query = encoder.encode_query(sentences[0])
        assert set(query.sparse.values) == {1.0}
        assert encoder.head.query_max_active_dims == METHODS["nie2025"].head["query_max_active_dims"]

    def test_unknown(self, embedder):
        with pytest.raises(ValueError, match=r"method must be one of 'default', .* got 'splade'"):
            KeyTokenEncoder(embedder, method="splade")

    def test_own_weighting(self, embedder, sentences):
        encoder = KeyTokenEncoder(embedder, weighting=Weighting(document_terms="literal"))
        assert set(encoder.encode(sentences[0]).sparse.indices) == set(encoder.literal_terms(sentences[:1])[0])


class TestFirstWords:
    def test_a_first_word_is_the_word_that_it_is_elsewhere(self, encoder):
        alone, inside = encoder.literal_terms(["genome", "the genome of a mouse"])
        assert set(alone) <= set(inside)


class TestAnyText:
    """Hypothesis: whatever the texts, the result is defined, finite, and the same alone and in company."""

    texts = st.lists(
        st.one_of(
            st.text(max_size=80),
            st.text(alphabet=st.characters(categories=["Cs", "Cc", "Zs", "Lo", "So"]), max_size=20),
            st.sampled_from(["", " ", "\0", "\ud800", "wolf", "Wolf ", "ﷺ", "e\u0301", "👩‍👩‍👧‍👦"]),
        ),
        max_size=6,
    )

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(texts=texts)
    def test_is_defined(self, encoder, texts):
        encoder.cache.clear()
        given_texts = list(texts)
        together = encoder.encode(texts)
        assert texts == given_texts
        assert together.dense.shape == (len(texts), 32)
        assert np.isfinite(together.dense).all()
        lookup = encoder.encode_query(texts, query="lookup").sparse if texts else []
        encoder.cache.clear()
        for i, text in enumerate(texts):
            alone = encoder.encode(text)
            np.testing.assert_allclose(alone.dense[0], together.dense[i], rtol=1e-3, atol=1e-5)
            assert_same_terms(alone.sparse.to_dicts()[0], together.sparse.to_dicts()[i])
            assert encoder.encode_query(text, query="lookup").sparse == lookup[i]
            own = encoder.literal_terms(check_texts(text))[0]
            assert set(own) == set(lookup.row(i)[0])
            assert set(own) <= set(together.sparse.row(i)[0])
            assert len(own) or together.sparse.active_dims[i] == 0
