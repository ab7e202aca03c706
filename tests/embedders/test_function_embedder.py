"""Encoders of functions and of other libraries' objects: what they give, how often they are called, how they fail."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import hashlib
import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
import pytest
import torch

from st_keytokens import HybridIndex, KeyTokenEncoder
from st_keytokens.embedders import FunctionEmbedder, function_embedder

DIMENSION = 48


class Provider:
    """Sums of random vectors of words, as a provider of embeddings would give them; counts texts and calls."""

    def __init__(self, length: float = 1.0) -> None:
        self.texts: list[str] = []
        self.calls, self.length, self.fails_at, self.dimension = 0, length, None, DIMENSION

    def __call__(self, texts):
        self.calls += 1
        if self.fails_at is not None and self.calls >= self.fails_at:
            raise ConnectionError("429: too many requests")
        self.texts += texts
        return [self.vector(text).tolist() for text in texts]

    def vector(self, text):
        total = np.full(self.dimension, 0.01)
        for word in text.lower().replace(".", "").split():
            seed = int.from_bytes(hashlib.sha1(word.encode()).digest()[:4], "big")
            total = total + np.random.default_rng(seed).normal(size=self.dimension)
        return self.length * total / np.linalg.norm(total)


@pytest.fixture
def provider():
    return Provider()


@pytest.fixture
def encoder(provider, sentences):
    encoder = KeyTokenEncoder(provider)
    encoder.calibrate(sentences, show_progress_bar=False)
    return encoder


class TestVectors:
    def test_dense_vectors_are_the_functions(self, encoder, provider, sentences):
        expected = np.array([provider.vector(text) for text in sentences], dtype=np.float32)
        np.testing.assert_allclose(encoder.encode(sentences).dense, expected, rtol=1e-6)

    def test_terms_are_words_of_the_text_and_of_the_vector(self, encoder, sentences):
        (terms,) = encoder.encode(sentences[0]).sparse.decode(encoder.vocabulary)
        own = {word.lower().strip(",") for word in sentences[0].strip(".").split()}
        assert own <= {term for term, _ in terms} and len(terms) > len(own)

    def test_key_tokens_find_the_words_that_the_vector_is_made_of(self, encoder, sentences):
        own = {word.lower() for word in sentences[0].strip(".").split()}
        tokens = {token for token, _ in encoder.key_tokens(sentences[0], top_k=len(own))[0]}
        assert len(tokens & own) >= 0.5 * len(own)

    def test_length_does_not_matter_to_terms(self, encoder, sentences):
        longer = KeyTokenEncoder(Provider(length=7.0))
        longer.calibrate(sentences, show_progress_bar=False)
        ours, theirs = encoder.encode(sentences[:3]).sparse, longer.encode(sentences[:3]).sparse
        for one, other in zip(ours.to_dicts(), theirs.to_dicts(), strict=True):
            shared = one.keys() & other.keys()
            assert len(shared) >= 0.95 * len(one)
            assert [one[term] for term in shared] == pytest.approx([other[term] for term in shared], rel=1e-3)

    def test_wants_a_calibration(self, provider):
        with pytest.raises(ValueError, match=r"KeyTokenEncoder\.calibrate\(texts\)"):
            KeyTokenEncoder(provider).encode("a genome")

    def test_tokens_are_refused(self, provider):
        with pytest.raises(ValueError, match="must have one tokenizer, got none"):
            KeyTokenEncoder(provider, terms="tokens")


class LangChain:
    """The methods of LangChain's ``Embeddings``."""

    model = "text-embedding-x"

    def __init__(self):
        self.documents, self.queries = Provider(), Provider()

    def embed_documents(self, texts):
        return self.documents(texts)

    def embed_query(self, text):
        return self.queries([text])[0]


class LlamaIndex:
    """The methods of LlamaIndex's ``BaseEmbedding``."""

    model_name = "text-embedding-x"

    def __init__(self):
        self.provider = Provider()

    def get_text_embedding_batch(self, texts):
        return self.provider(texts)

    def get_query_embedding(self, query):
        return self.provider([query])[0]


class Asynchronous:
    def __init__(self):
        self.provider = Provider()

    async def aembed_documents(self, texts):
        await asyncio.sleep(0)
        return self.provider(texts)

    async def aembed_query(self, text):
        await asyncio.sleep(0)
        return self.provider([text])[0]


async def coroutine_function(texts):
    await asyncio.sleep(0)
    return Provider()(texts)


class Encodes:
    def encode(self, texts):
        return torch.tensor(Provider()(texts))


class TestKinds:
    @pytest.mark.parametrize(
        "made",
        [LangChain, LlamaIndex, Asynchronous, Encodes, lambda: coroutine_function, lambda: (Provider(), Provider())],
        ids=["langchain", "llama_index", "asynchronous", "encode", "coroutine", "pair"],
    )
    def test_all_give_the_same(self, made, encoder, sentences):
        other = KeyTokenEncoder(made())
        other.calibrate(sentences, show_progress_bar=False)
        np.testing.assert_allclose(other.encode(sentences).dense, encoder.encode(sentences).dense, rtol=1e-6)
        assert other.encode(sentences[:4]).sparse.nnz == encoder.encode(sentences[:4]).sparse.nnz
        np.testing.assert_allclose(other.encode_query("a genome").dense, encoder.encode_query("a genome").dense)

    def test_queries_have_their_own_function(self, sentences):
        documents, queries = Provider(), Provider(length=3.0)
        encoder = KeyTokenEncoder((documents, queries))
        encoder.calibrate(sentences, show_progress_bar=False)
        assert np.linalg.norm(encoder.encode_query("a genome").dense) == pytest.approx(3, rel=1e-5)
        assert np.linalg.norm(encoder.encode("a genome").dense) == pytest.approx(1, rel=1e-5)

    def test_in_a_running_loop(self, sentences):
        async def run():
            encoder = KeyTokenEncoder(coroutine_function)
            return encoder.calibrate(sentences, show_progress_bar=False)

        assert asyncio.run(run()).document_count == 50

    def test_anything_else_is_refused(self):
        for wrong in (7, object(), ["a"], Provider):
            with pytest.raises(TypeError, match="must be a SentenceTransformer, its name or path, a function"):
                KeyTokenEncoder(wrong)


class TestCalls:
    def test_no_text_is_embedded_twice(self, encoder, provider, sentences, tmp_path):
        assert len(provider.texts) == len(set(provider.texts))
        before = len(provider.texts)
        with HybridIndex(tmp_path / "index", encoder=encoder) as index:
            index.add(texts=sentences)
            assert len(provider.texts) == before
            index.search("Which genes encode proteins?", top_k=3)
            assert len(provider.texts) == before + 1
        encoder.encode_query("Which genes encode proteins?", query="lookup")
        assert len(provider.texts) == before + 1

    def test_a_failure_midway_loses_nothing(self, sentences):
        provider = Provider()
        encoder = KeyTokenEncoder(provider)
        provider.fails_at = 5
        with pytest.raises(ConnectionError, match="429"):
            encoder.calibrate(sentences, batch_size=8, show_progress_bar=False)
        made = len(provider.texts)
        assert made == 1 + 3 * 8
        provider.fails_at = None
        encoder.calibrate(sentences, batch_size=8, show_progress_bar=False)
        assert set(sentences) <= set(provider.texts) and len(provider.texts) == len(set(provider.texts))

    def test_stored_vectors_are_not_asked_for(self, provider, sentences):
        vectors = np.array(provider(sentences), dtype=np.float32)
        encoder = KeyTokenEncoder(FunctionEmbedder(dimension=DIMENSION, name="stored"))
        encoder.calibrate(sentences, embeddings=vectors, show_progress_bar=False)
        documents = encoder.sparsify(vectors, sentences)
        queries = encoder.encode_query(sentences, query="lookup").sparse
        assert (queries.scores(documents).argmax(axis=1) == np.arange(50)).mean() > 0.9
        with pytest.raises(ValueError, match="there are only stored vectors"):
            encoder.encode("a genome")

    def test_vectors_alone_calibrate_texts_of_several_sentences(self, provider, sentences):
        texts = [f"{one} {other}" for one, other in pairwise(sentences)]
        encoder = KeyTokenEncoder(FunctionEmbedder(dimension=DIMENSION, name="stored"))
        encoder.calibrate(texts, embeddings=np.array(provider(texts), np.float32), show_progress_bar=False)
        assert encoder.calibration.decoded_trust is None
        asking = KeyTokenEncoder(provider)
        asking.calibrate(texts, show_progress_bar=False)
        assert asking.calibration.decoded_trust is not None


class TestWrongAnswers:
    def test_another_dimension(self, encoder, provider):
        provider.dimension = 32
        with pytest.raises(ValueError, match="vectors of dimension 48, as before, got 32"):
            encoder.encode("something new")

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ([[1.0, 2.0]], "one vector a text"),
            ([1.0, 2.0], "one vector a text"),
            ([[1.0], [1.0, 2.0]], "a vector of numbers for each text"),
            (None, "one vector a text"),
        ],
    )
    def test_no_vectors(self, answer, message):
        encoder = KeyTokenEncoder(FunctionEmbedder(lambda texts: answer, dimension=2))
        with pytest.raises(ValueError, match=message):
            encoder.embed(["one", "two"])

    def test_not_finite(self, encoder, provider, sentences):
        provider.length = float("nan")
        with pytest.raises(ValueError, match="got NaN or infinity for text 1"):
            encoder.encode([sentences[0], "a new text", sentences[1]])


class TestSaving:
    def test_next_day(self, encoder, provider, sentences, tmp_path):
        encoder.save_sidecar(tmp_path / "key_tokens")
        with HybridIndex(tmp_path / "index", encoder=encoder) as index:
            index.add(texts=sentences)
        loaded = KeyTokenEncoder.from_sidecar(Provider(), tmp_path / "key_tokens")
        assert loaded.fingerprint == encoder.fingerprint
        with HybridIndex(tmp_path / "index", encoder=loaded, read_only=True) as index:
            assert index.search(sentences[7], top_k=1)[0].text == sentences[7]

    def test_another_embedder_is_refused(self, encoder, tmp_path):
        encoder.save_sidecar(tmp_path / "key_tokens")
        with pytest.raises(ValueError, match=r"must give the encoder that was saved|must be fitted on this model"):
            KeyTokenEncoder.from_sidecar(FunctionEmbedder(Provider(), name="another"), tmp_path / "key_tokens")

    def test_a_whole_folder_says_what_it_lacks(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "saved")
        with pytest.raises(ValueError, match="must be opened with the embedder that it was saved with"):
            KeyTokenEncoder(tmp_path / "saved")
        assert KeyTokenEncoder.from_sidecar(Provider(), tmp_path / "saved" / "key_tokens").calibration is not None


class EmbeddingsServer(BaseHTTPRequestHandler):
    """Speaks the embeddings API that OpenAI's clients speak."""

    provider = Provider()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rows = [{"index": i, "embedding": v} for i, v in enumerate(self.provider(body["input"]))]
        answer = json.dumps({"data": rows, "model": body["model"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


def test_behind_an_embeddings_api(sentences, encoder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), EmbeddingsServer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def embed(texts):
        content = json.dumps({"model": "x", "input": texts}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/v1/embeddings", content)
        with urllib.request.urlopen(request) as answer:
            return [row["embedding"] for row in json.load(answer)["data"]]

    try:
        remote = KeyTokenEncoder(embed)
        remote.calibrate(sentences, show_progress_bar=False)
        np.testing.assert_allclose(remote.encode(sentences).dense, encoder.encode(sentences).dense, rtol=1e-6)
    finally:
        server.shutdown()
        server.server_close()


class Failing(LangChain):
    """Fails at a number of queries, as at a rate limit."""

    def __init__(self, fails_at):
        super().__init__()
        self.fails_at = fails_at

    def embed_query(self, text):
        if len(self.queries.texts) == self.fails_at:
            raise ConnectionError("429: too many requests")
        return super().embed_query(text)


class TestMemory:
    """What is remembered belongs to the embedder, so that making an encoder anew costs no call."""

    def test_another_encoder_of_the_same_embedder_calls_nothing(self, provider, sentences):
        KeyTokenEncoder(provider).calibrate(sentences, show_progress_bar=False)
        calls = provider.calls
        KeyTokenEncoder(provider).calibrate(sentences, show_progress_bar=False)
        assert provider.calls == calls

    def test_methods_and_pairs_remember_too(self, sentences):
        owner, documents, queries = LangChain(), Provider(), Provider()
        for _ in range(2):
            KeyTokenEncoder(owner.embed_documents).embed(sentences)
            KeyTokenEncoder((documents, queries)).embed(sentences, role="query")
        assert len(owner.documents.texts) == len(set(owner.documents.texts)) == 51
        assert len(queries.texts) == len(set(queries.texts)) == 51

    def test_a_query_that_fails_takes_none_along(self, sentences):
        embedder = Failing(fails_at=20)
        with pytest.raises(ConnectionError, match="429"):
            KeyTokenEncoder(embedder).embed(sentences, role="query")
        assert len(embedder.queries.texts) == 20
        embedder.fails_at = None
        KeyTokenEncoder(embedder).embed(sentences, role="query")
        assert len(embedder.queries.texts) == len(set(embedder.queries.texts)) == 51

    def test_a_batch_of_a_batch_that_fails_takes_none_along(self, sentences):
        class InBatches(LlamaIndex):
            embed_batch_size = 10  # of which LlamaIndex makes a call each

        embedder = InBatches()
        encoder = KeyTokenEncoder(embedder)
        embedder.provider.fails_at = 1 + 3
        with pytest.raises(ConnectionError, match="429"):
            encoder.embed(sentences)
        embedder.provider.fails_at = None
        encoder.embed(sentences)
        assert len(embedder.provider.texts) == len(set(embedder.provider.texts)) == 51

    def test_another_model_or_dimension_of_the_same_object_is_another_embedder(self, sentences):
        embedder = LangChain()
        KeyTokenEncoder(embedder).embed(sentences)
        embedder.model = "text-embedding-y"
        KeyTokenEncoder(embedder).embed(sentences)
        assert len(embedder.documents.texts) == 2 * 50
        embedder.dimensions = embedder.documents.dimension = embedder.queries.dimension = 32
        assert KeyTokenEncoder(embedder).embed(sentences).shape == (50, 32)

    def test_is_gone_with_the_embedder(self, sentences):
        before = set(function_embedder._MEMORIES)
        embedder = Provider()
        KeyTokenEncoder(embedder).embed(sentences)
        assert len(set(function_embedder._MEMORIES) - before) == 1
        del embedder
        gc.collect()
        assert not set(function_embedder._MEMORIES) - before

    def test_what_is_not_finite_is_asked_for_again(self, provider, sentences):
        encoder = KeyTokenEncoder(provider)
        provider.length = float("nan")
        with pytest.raises(ValueError, match="finite"):
            encoder.calibrate(sentences, show_progress_bar=False)
        provider.length = 1.0
        assert encoder.calibrate(sentences, show_progress_bar=False).document_count == 50

    def test_known_vectors_are_taken(self, provider, sentences):
        encoder = KeyTokenEncoder(provider)
        rows = [provider.vector(text).tolist() for text in sentences]
        encoder.model[0].remember(sentences, [*rows[:48], [1.0], None])  # another dimension, and none
        encoder.embed(sentences)
        assert sorted(provider.texts) == sorted(["dimension", *sentences[48:]])


class TestAsynchronousOnes:
    def test_where_synchronous_methods_are_not_implemented(self, encoder, sentences):
        class Half(Asynchronous):
            def embed_documents(self, texts):
                raise NotImplementedError

            embed_query = embed_documents

        other = KeyTokenEncoder(Half())
        np.testing.assert_allclose(other.embed(sentences), encoder.embed(sentences), rtol=1e-6)

    def test_all_calls_are_in_one_loop_with_the_callers_context(self, sentences):
        loops, seen = set(), set()
        variable = contextvars.ContextVar("variable", default="none")

        async def embed(texts):
            loops.add(asyncio.get_running_loop())
            seen.add(variable.get())
            return Provider()(texts)

        encoder = KeyTokenEncoder(embed)
        variable.set("the caller's")
        encoder.embed(sentences)
        asyncio.run(asyncio.to_thread(encoder.embed, ["another"]))
        assert len(loops) == 1 and seen == {"none", "the caller's"}


def test_a_client_or_a_loaded_model_is_no_name():
    embedder = LangChain()
    embedder.model = object()  # whose address is another one tomorrow
    assert KeyTokenEncoder(embedder).model[0].name == "LangChain"
