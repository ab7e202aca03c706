"""Collections that the tests of an engine share, one of them with real embeddings by the tiny embedder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.register_assert_rewrite("conformance")

from conformance import DIMENSION, METADATA, VOCAB_SIZE, open_named, small_records  # noqa: E402  # after the line above

from st_keytokens import HybridIndex, KeyTokenEncoder  # noqa: E402
from st_keytokens.engines import Records  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NUM_DOCUMENTS, NUM_QUERIES = 120, 12


def read_lines(name, limit):
    with (EXAMPLES / "data" / "arxiv-abstracts" / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]


@pytest.fixture(scope="session")
def abstracts():
    """Ids, texts, embeddings of abstracts and of titles as queries, and a HybridIndex of the abstracts."""
    documents = read_lines("corpus.jsonl", NUM_DOCUMENTS)
    texts = [document["text"] for document in documents]
    encoder = KeyTokenEncoder(EXAMPLES / "tiny-embedder" / "embedder")
    encoder.calibrate(texts, show_progress_bar=False)
    ids = [document["_id"] for document in documents]
    embeddings = encoder.encode_document(texts)
    index = HybridIndex()
    index.add(ids, texts, embeddings=embeddings)
    yield SimpleNamespace(
        ids=ids,
        texts=texts,
        embeddings=embeddings,
        queries=encoder.encode_query([query["text"] for query in read_lines("queries.jsonl", NUM_QUERIES)]),
        index=index,
        fingerprint=encoder.fingerprint,
    )
    index.close()


@pytest.fixture(scope="class")
def directory(tmp_path_factory):
    """The directory of a test class."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="class")
def loaded(request, directory, abstracts):
    """A collection of real abstracts."""
    with open_named(request.cls.opener, directory, "abstracts") as engine:
        engine.create(
            vocab_size=abstracts.embeddings.sparse.vocab_size,
            embedding_dimension=abstracts.embeddings.dense.shape[1],
            fingerprint=abstracts.fingerprint,
        )
        engine.upsert(Records(abstracts.ids, abstracts.embeddings, abstracts.texts))
        engine.flush()
        yield engine


@pytest.fixture(scope="class")
def filtered(request, directory):
    """A collection of documents with metadata of all kinds, and an index of the same."""
    records = small_records([f"document {number}" for number in range(len(METADATA))], METADATA)
    with open_named(request.cls.opener, directory, "filtered") as engine, HybridIndex() as index:
        engine.create(vocab_size=VOCAB_SIZE, embedding_dimension=DIMENSION)
        engine.upsert(records)
        engine.flush()
        index.add(records.ids, records.texts, embeddings=records.hybrid, metadata=METADATA)
        yield engine, index
