"""What a word of a query is worth in an index that the calibration does not know."""

from __future__ import annotations

import numpy as np
import pytest

from st_keytokens import HybridIndex, KeyTokenEncoder
from st_keytokens.sparse_embeddings import HybridEmbeddings

CALIBRATED_ON = [f"wolves{n} hunt at night" for n in range(99)] + ["a comet"]


@pytest.fixture(scope="module")
def encoder(llama_embedder):
    encoder = KeyTokenEncoder(llama_embedder, query="lookup")
    encoder.calibrate(CALIBRATED_ON, show_progress_bar=False)
    return encoder


def index_of(encoder, texts):
    index = HybridIndex()
    index.add(embeddings=HybridEmbeddings(None, encoder.weigh(texts, None, "document")))
    return index


def factors(encoder, texts, words):
    """What is left of the weight of each word, which is one query."""
    given = encoder.encode_query(words, query="lookup").sparse
    with index_of(encoder, texts) as index:
        return index.fit_queries(encoder, words, given).values / given.values


def test_the_texts_that_were_counted_change_nothing(encoder):
    assert factors(encoder, CALIBRATED_ON, ["hunt", "comet", "wolves7", "unknown"]).tolist() == [1.0] * 4


def test_a_word_that_is_common_in_the_index_alone_weighs_less(encoder):
    """By idf: 100 documents and ten as the calibration's; "comet" in one of a hundred there, in all of these."""
    found = factors(encoder, ["a comet"] * 99 + ["wolves hunt"], ["comet", "hunt"])
    idf = [np.log1p((110 - df + 0.5) / (df + 0.5)) for df in (99 + 0.1, 1.1)]
    np.testing.assert_allclose(found, [(idf[0] + np.log(2)) / idf[1], 1], rtol=1e-6)


def test_a_word_in_one_document_of_few_keeps_its_weight(encoder):
    assert factors(encoder, ["a comet", "stars"], ["comet", "stars", "code17"]).tolist() == [1.0] * 3


def test_a_document_counts_only_with_the_word_in_its_text(encoder):
    """Decoded terms weigh less than a word of the text at the least."""
    (comet,) = encoder.literal_terms(["comet"])[0].tolist()
    sparse = encoder.weigh(["a comet"] * 60, None, "document")
    faint = sparse.with_values(np.where(sparse.indices == comet, 0.01, sparse.values).astype(np.float32))
    with HybridIndex() as index:
        index.add(embeddings=HybridEmbeddings(None, faint))
        assert index.document_frequencies([comet]) == [60]
        given = encoder.encode_query(["comet"]).sparse
        assert index.fit_queries(encoder, ["comet"], given) == given


def test_a_search_by_text_and_its_explanation(encoder, tmp_path):
    texts = ["a comet"] * 99 + ["wolves hunt a comet"]
    with HybridIndex(tmp_path / "index", encoder=encoder, embedding_dimension=0) as index:
        index.add(texts=texts)
        query = "wolves comet"
        given = encoder.encode_query([query]).sparse
        fitted = index.fit_queries(encoder, [query], given)
        assert fitted != given
        (hit, *_) = index.search(query, mode="sparse")
        (expected, *_) = index.search(fitted, mode="sparse")[0]
        assert (hit.id, hit.score) == (expected.id, expected.score)
        assert sum(term.contribution for term in index.explain(query, hit.id)) == pytest.approx(hit.score, rel=1e-5)


def test_without_a_calibration_nothing_is_known(llama_embedder):
    assert factors(KeyTokenEncoder(llama_embedder), ["a comet"] * 50, ["comet"]).tolist() == [1.0]
